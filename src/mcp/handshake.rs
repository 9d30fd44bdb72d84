//! Finds and reads the `ModelContext` of a server, within bounds: a server may list resources without
//! end.

use std::io;

use rmcp::RoleClient;
use rmcp::model::{
    ListResourcesResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
    ResourceContents,
};
use rmcp::service::{Peer, ServiceError};

use super::contract::{context_uri, model_of_uri};
use crate::limits::{CONTEXT_BYTES_MAX, LIST_BYTES_MAX, LIST_ITEMS_MAX, LIST_PAGES_MAX};
use crate::model::claims;
use crate::model::context::ModelContext;
use crate::model::generate::Fault;

/// Reads the context of the first model that the server lists, and bounds what it claims.
///
/// # Errors
/// [`Fault::ProtocolError`] if the server lists no model, or more than [`LIST_PAGES_MAX`] pages,
/// [`LIST_ITEMS_MAX`] resources or [`LIST_BYTES_MAX`] bytes before it, or if its context is no
/// `ModelContext`; [`Fault::Unavailable`] if it does not answer.
pub(super) async fn read_context(peer: &Peer<RoleClient>) -> Result<ModelContext, Fault> {
    let uri = find_context(peer).await?;
    let read = peer.read_resource_once(ReadResourceRequestParams::new(&uri)).await;
    let ReadResourceResponse::Complete(read) = read.map_err(|e| unreadable(&e))? else {
        return Err(broken("it wants input before it states its context"));
    };
    let text = read.contents.iter().find_map(|content| match content {
        ResourceContents::TextResourceContents { text, .. } => Some(text),
        // the enum is non-exhaustive; a context is text
        ResourceContents::BlobResourceContents { .. } | _ => None,
    });
    let text = text.ok_or_else(|| broken("the ModelContext resource is not text"))?;
    if text.len() > CONTEXT_BYTES_MAX {
        let bytes = text.len();
        return Err(broken(&format!(
            "a ModelContext of {bytes} bytes, at most {CONTEXT_BYTES_MAX}"
        )));
    }
    let stated: ModelContext = serde_json::from_str(text)
        .map_err(|e| broken(&format!("its ModelContext cannot be parsed: {e}")))?;
    let context = claims::bounded(stated.clone());
    let name = context.identification.name.as_str();
    if name.is_empty() {
        return Err(broken("its ModelContext states no name of the model"));
    }
    if context != stated {
        tracing::warn!(model = name, "impossible claims in the ModelContext were bounded");
    }
    Ok(context)
}

/// The URI of the first model's context.
async fn find_context(peer: &Peer<RoleClient>) -> Result<String, Fault> {
    let (mut items, mut bytes) = (0, 0);
    let mut cursor: Option<String> = None;
    for _ in 0..LIST_PAGES_MAX {
        let params =
            cursor.clone().map(|at| PaginatedRequestParams::default().with_cursor(Some(at)));
        let page = peer.list_resources(params).await.map_err(|e| unreadable(&e))?;
        items += page.resources.len();
        bytes += size_of(&page);
        if items > LIST_ITEMS_MAX || bytes > LIST_BYTES_MAX {
            return Err(broken(&format!(
                "it lists {items} resources in {bytes} bytes, at most {LIST_ITEMS_MAX} in \
                 {LIST_BYTES_MAX} bytes are read"
            )));
        }
        let mut uris = page.resources.into_iter().map(|resource| resource.uri);
        if let Some(uri) = uris.find(|uri| model_of_uri(uri).is_some()) {
            return Ok(uri);
        }
        match page.next_cursor {
            None => {
                let wanted = context_uri("NAME");
                return Err(broken(&format!("not a model server: no resource {wanted}")));
            }
            Some(next) if cursor.as_ref() == Some(&next) => {
                return Err(broken("its list of resources repeats the same page (nextCursor)"));
            }
            next => cursor = next,
        }
    }
    Err(broken(&format!("its list of resources has more than {LIST_PAGES_MAX} pages (nextCursor)")))
}

/// The size of a page as JSON, in bytes.
fn size_of(page: &ListResourcesResult) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, page) {
        Ok(()) => count.0,
        Err(_) => usize::MAX,
    }
}

fn broken(why: &str) -> Fault {
    Fault::ProtocolError(why.to_owned()).bounded()
}

fn unreadable(error: &ServiceError) -> Fault {
    Fault::unavailable(format!("its ModelContext cannot be read: {error}")).bounded()
}
