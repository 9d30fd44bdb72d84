//! Name lookup for URLs of remote configurations: each new connection is made to addresses that were
//! checked, so that a name server can't answer with an address of the local network later (DNS rebinding).

use std::fmt;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::lookup::Lookup;
use crate::fleet::address::{NEIGHBOUR, is_public};

/// A resolver that returns addresses of the public internet alone.
pub(super) struct PublicLookup(Lookup);

impl PublicLookup {
    pub(super) fn new() -> PublicLookup {
        // the host is verified by a certificate
        PublicLookup(Lookup::new(true))
    }
}

/// An address that is not one of the public internet.
#[derive(Debug)]
pub(super) struct NotPublic(pub(super) String);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPublic {}

impl Resolve for PublicLookup {
    fn resolve(&self, name: Name) -> Resolving {
        let shown = name.as_str().to_owned();
        let found = self.0.resolve(name);
        Box::pin(async move {
            let found: Vec<_> = found.await?.collect();
            // one private address among public ones is an attack, or a mistake of the name server
            match found.iter().find(|address| !is_public(address.ip())) {
                Some(other) => {
                    let why = format!(
                        "{shown} has the address {}, which is not one of the public internet; {NEIGHBOUR}",
                        other.ip()
                    );
                    Err(NotPublic(why).into())
                }
                None => {
                    let found: Addrs = Box::new(found.into_iter());
                    Ok(found)
                }
            }
        })
    }
}

/// Checks what no lookup sees: the scheme, and a literal address, which is connected to as it is. The
/// parser of URLs has written it in its one form.
pub(super) fn check_literal(url: &Url) -> Result<(), String> {
    let host = url.host_str().unwrap_or("no host");
    if url.scheme() != "https" {
        return Err(format!("{host} would be connected to without TLS; {NEIGHBOUR}"));
    }
    let address = host.trim_matches(['[', ']']).parse();
    if address.is_ok_and(|address| !is_public(address)) {
        return Err(format!("{host} is not an address of the public internet; {NEIGHBOUR}"));
    }
    Ok(())
}
