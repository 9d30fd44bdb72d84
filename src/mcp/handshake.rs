//! Finds and reads the `ModelContext` of a server, within bounds: a server may list resources without
//! end.

use std::io;

use rmcp::RoleClient;
use rmcp::model::{
    PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ResourceContents,
};
use rmcp::service::{Peer, ServiceError};
use serde::Serialize;

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
    let mut bounds = PageBounds::new("resources");
    let mut cursor: Option<String> = None;
    // bounded by the pages
    loop {
        let params =
            cursor.clone().map(|at| PaginatedRequestParams::default().with_cursor(Some(at)));
        let page = peer.list_resources(params).await.map_err(|e| unreadable(&e))?;
        bounds.take(page.resources.len(), &page)?;
        let mut uris = page.resources.into_iter().map(|resource| resource.uri);
        if let Some(uri) = uris.find(|uri| model_of_uri(uri).is_some()) {
            return Ok(uri);
        }
        if page.next_cursor.is_none() {
            let wanted = context_uri("NAME");
            return Err(broken(&format!("not a model server: no resource {wanted}")));
        }
        bounds.turn(cursor.as_ref(), page.next_cursor.as_ref())?;
        cursor = page.next_cursor;
    }
}

/// What was read of a list that comes in pages.
pub(super) struct PageBounds {
    /// What is listed.
    what: &'static str,
    pages: usize,
    items: usize,
    bytes: usize,
}

impl PageBounds {
    pub(super) fn new(what: &'static str) -> PageBounds {
        PageBounds { what, pages: 0, items: 0, bytes: 0 }
    }

    /// Counts a page.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if these are more than [`LIST_ITEMS_MAX`] items or [`LIST_BYTES_MAX`] bytes.
    pub(super) fn take(&mut self, items: usize, page: &impl Serialize) -> Result<(), Fault> {
        self.items += items;
        self.bytes = self.bytes.saturating_add(size_of(page));
        if self.items <= LIST_ITEMS_MAX && self.bytes <= LIST_BYTES_MAX {
            return Ok(());
        }
        let PageBounds { what, items, bytes, .. } = self;
        Err(broken(&format!(
            "it lists {items} {what} in {bytes} bytes, at most {LIST_ITEMS_MAX} in {LIST_BYTES_MAX} bytes \
             are read"
        )))
    }

    /// Goes on with the next page.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] after [`LIST_PAGES_MAX`] pages, or if the page is the same as this.
    pub(super) fn turn(
        &mut self,
        this: Option<&String>,
        next: Option<&String>,
    ) -> Result<(), Fault> {
        self.pages += 1;
        let what = self.what;
        if this == next {
            return Err(broken(&format!("its list of {what} repeats the same page (nextCursor)")));
        }
        if self.pages >= LIST_PAGES_MAX {
            return Err(broken(&format!(
                "its list of {what} has more than {LIST_PAGES_MAX} pages (nextCursor)"
            )));
        }
        Ok(())
    }
}

/// The size of a page as JSON, in bytes.
fn size_of(page: &impl Serialize) -> usize {
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

pub(super) fn broken(why: &str) -> Fault {
    Fault::ProtocolError(why.to_owned()).bounded()
}

fn unreadable(error: &ServiceError) -> Fault {
    Fault::unavailable(format!("its ModelContext cannot be read: {error}")).bounded()
}
