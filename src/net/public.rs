//! Fetches a remote configuration that its update names by URL: over TLS from a host of the public
//! internet, or from a neighbour that the device lists. Redirects are not followed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Error, bail, ensure};
use reqwest::{Client, Url};

use super::client;
use crate::catalog::addresses::AddressRule;
use crate::fleet::address::check_url;
use crate::fleet::digest::Digest;
use crate::fleet::envelope::RemoteText;
use crate::limits::{CONFIG_BYTES_MAX, HTTP_BODY_MAX};

/// A client for the host of this URL, which a remote configuration names.
///
/// # Errors
/// If no remote configuration may name the URL, or the client can't be made.
fn client(url: &str, neighbours: &BTreeSet<String>) -> anyhow::Result<(Client, Url)> {
    check_url(url, neighbours).map_err(Error::msg)?;
    let url: Url = url.parse()?;
    let addresses = AddressRule::Public { neighbours: Arc::new(neighbours.clone()) };
    Ok((client::builder(&url, &addresses).map_err(Error::msg)?.build()?, url))
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
