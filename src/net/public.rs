//! HTTP requests to URLs of remote configurations: over TLS to hosts of the public internet, or to
//! neighbours that the device lists.
//!
//! A name is looked up once, all of its addresses are checked, and the connection is made to these
//! addresses: a name server can't answer with an address of the local network after the check (DNS
//! rebinding). Redirects are not followed, and no proxy is used, which would look the name up itself.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, bail, ensure};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};

use super::client;
use super::lookup::Lookup;
use crate::fleet::address::{check_url, is_public};
use crate::fleet::digest::Digest;
use crate::fleet::envelope::RemoteText;
use crate::limits::{CONFIG_BYTES_MAX, HTTP_BODY_MAX};

/// A resolver that returns addresses of the public internet alone.
struct PublicOnly(Lookup);

/// An address that is not one of the public internet.
#[derive(Debug)]
struct NotPublic(String);

impl fmt::Display for NotPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPublic {}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let shown = name.as_str().to_owned();
        let found = self.0.resolve(name);
        Box::pin(async move {
            let found: Vec<_> = found.await?.collect();
            // one private address among public ones is an attack, or a mistake of the name server
            match found.iter().find(|address| !is_public(address.ip())) {
                Some(other) => {
                    let why = format!(
                        "{shown} has the address {}, which is not one of the public internet",
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

/// A client for the host of this URL, which a remote configuration names.
///
/// # Errors
/// If no remote configuration may name the URL, or the client can't be made.
pub fn client(url: &str, neighbours: &BTreeSet<String>) -> anyhow::Result<(Client, Url)> {
    check_url(url, neighbours).map_err(anyhow::Error::msg)?;
    let url: Url = url.parse()?;
    let builder = client::builder(&url).no_proxy();
    let is_neighbour = neighbours.contains(&url.origin().ascii_serialization());
    let builder = if is_neighbour {
        builder
    } else {
        builder.https_only(true).dns_resolver(PublicOnly(Lookup::new(true)))
    };
    Ok((builder.build()?, url))
}

/// Fetches a text of which size and digest are known.
///
/// # Errors
/// If the URL may not be named, the host does not answer with exactly these bytes, or they are no text.
pub async fn fetch(text: &RemoteText, neighbours: &BTreeSet<String>) -> anyhow::Result<String> {
    let RemoteText { url, sha256, bytes } = text;
    ensure!(*bytes <= CONFIG_BYTES_MAX, "{bytes} bytes, at most {CONFIG_BYTES_MAX}");
    let (client, url) = client(url, neighbours)?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let mut response = client
        .get(url)
        .timeout(HTTP_BODY_MAX)
        .send()
        .await
        .map_err(reqwest::Error::without_url)
        .with_context(|| format!("{host} is not reachable"))?;
    let status = response.status();
    if !status.is_success() {
        bail!("{host} answers {status}; redirects are not followed");
    }
    let mut body = Vec::new();
    // bounded by the size that is known
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        body.extend_from_slice(&chunk);
        ensure!(
            body.len() as u64 <= *bytes,
            "{host} sends more than the {bytes} bytes of the update"
        );
    }
    ensure!(body.len() as u64 == *bytes, "{host} sends {} of {bytes} bytes", body.len());
    let found = Digest::of(&body);
    ensure!(found == sha256.0, "{host} sends bytes with the digest {found}, not {}", sha256.0);
    String::from_utf8(body).context("the configuration is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// The name of this machine has an address, which is none of the public internet: no connection is
    /// made to it.
    #[tokio::test]
    async fn a_name_with_a_private_address_is_not_connected_to() {
        crate::net::tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let resolver = PublicOnly(Lookup::new(true));
        let client = Client::builder().no_proxy().dns_resolver(resolver).build().unwrap();
        let request = client.get(format!("http://localhost:{port}/"));
        // bounds the test if there is a connection, which nobody answers
        let request = request.timeout(std::time::Duration::from_secs(60));
        let error = request.send().await.unwrap_err();
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains("not one of the public internet"), "{error}");
        assert!(listener.accept().is_err(), "a connection was made");
    }
}
