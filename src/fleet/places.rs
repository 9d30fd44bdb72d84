//! What the entries of a remote configuration may be connected to. An entry whose URL the local file has
//! too keeps the rights of the local file; all others get [`AddressRule::Public`].

use std::sync::Arc;

use super::trust::Trust;
use crate::catalog::addresses::AddressRule;
use crate::catalog::catalog::Catalog;
use crate::catalog::expand::Variables;
use crate::catalog::mistake::Mistake;
use crate::catalog::model::ModelSource;
use crate::catalog::read;
use crate::catalog::secret::Secret;
use crate::catalog::server::Endpoint;

/// What a URL is for: the same URL has another meaning in an entry of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// An MCP server.
    Server,
    /// A provider.
    Provider,
    /// The source of a model.
    Model,
}

/// Whether the local file has this URL in an entry of this kind.
pub(super) fn is_local(local: &Catalog, kind: PlaceKind, url: &str) -> bool {
    let mut servers = local.servers.iter();
    match kind {
        PlaceKind::Server => servers.any(
            |server| matches!(&server.endpoint, Endpoint::Http { url: Secret(own), .. } if own == url),
        ),
        PlaceKind::Provider => servers.any(|server| {
            let url = url.trim_end_matches('/');
            matches!(&server.endpoint, Endpoint::Provider(own) if own.base_url == url)
        }),
        PlaceKind::Model => local
            .models
            .iter()
            .flat_map(|model| &model.files)
            .any(|file| matches!(&file.source, ModelSource::Url(Secret(own)) if own == url)),
    }
}

/// Reads the text of a remote configuration with the local parts, as [`read::read`] does. This is how
/// the catalog of an update is made, at its arrival as at each later start.
pub fn read(
    text: &str,
    variables: &Variables,
    local: &Catalog,
    trust: &Trust,
) -> (Catalog, Vec<Mistake>) {
    let (mut catalog, mistakes) = read::read(text, variables);
    let public = AddressRule::Public { neighbours: Arc::new(trust.neighbours.clone()) };
    let rule = |kind, url: &str| {
        if is_local(local, kind, url) { AddressRule::Any } else { public.clone() }
    };
    for server in &mut catalog.servers {
        match &mut server.endpoint {
            Endpoint::Http { url, addresses, .. } => *addresses = rule(PlaceKind::Server, &url.0),
            Endpoint::Provider(provider) => {
                provider.addresses = rule(PlaceKind::Provider, &provider.base_url);
            }
            Endpoint::Child { .. } | Endpoint::Mqtt { .. } => {}
        }
    }
    for file in catalog.models.iter_mut().flat_map(|model| &mut model.files) {
        if let ModelSource::Url(Secret(url)) = &file.source {
            file.addresses = rule(PlaceKind::Model, url);
        }
    }
    (catalog, mistakes)
}
