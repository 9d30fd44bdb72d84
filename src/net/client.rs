//! HTTP clients for remote models: timeouts, no redirects, and no proxy for loopback.

use std::error::Error;
use std::net::IpAddr;

use reqwest::{ClientBuilder, Url, redirect};

use super::lookup::Lookup;
use super::public_lookup::{NotPublic, PublicLookup, check_literal};
use super::tls::{self, TlsFiles};
use crate::catalog::addresses::AddressRule;
use crate::limits::{CONNECT_MAX, UNACKNOWLEDGED_MAX};

/// The builder of a client for the host of this URL.
///
/// Redirects are not followed: they would leak the key to another host. The proxies of the
/// environment are used except for loopback, where requests are not encrypted.
///
/// Under [`AddressRule::Public`] each new connection goes to an address that was looked up and checked
/// here, so no proxy is used, which would look the name up itself. The client must not be used for a URL of
/// another origin.
///
/// # Errors
/// If the rule does not permit the scheme or the literal address of the URL: the host, and what to do.
pub fn builder(url: &Url, addresses: &AddressRule) -> Result<ClientBuilder, String> {
    let builder = reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .tcp_nodelay(true);
    if let AddressRule::Public { neighbours } = addresses
        && !neighbours.contains(&url.origin().ascii_serialization())
    {
        check_literal(url)?;
        return Ok(builder.https_only(true).no_proxy().dns_resolver(PublicLookup::new()));
    }
    let is_encrypted = url.scheme() == "https";
    let builder = builder.dns_resolver(Lookup::new(is_encrypted));
    // without encryption no authority is needed, and a small system has none; a proxy may need one
    let has_all = is_encrypted || tls::has_authorities();
    let builder = if has_all { builder } else { builder.tls_certs_only([]) };
    Ok(if url.host_str().is_some_and(is_loopback) { builder.no_proxy() } else { builder })
}

/// [`builder`] with the authorities of the file `ca`, or of the system, and these protocols (ALPN).
///
/// # Errors
/// As [`builder`]; if the file can't be used, or the URL is encrypted and the system has no authorities.
pub fn trusting(
    url: &Url,
    addresses: &AddressRule,
    ca: Option<&str>,
    protocols: &[&[u8]],
) -> Result<ClientBuilder, String> {
    let builder = builder(url, addresses)?;
    let files = TlsFiles { ca: ca.map(str::to_owned), ..TlsFiles::default() };
    let config = match tls::client(&files) {
        Ok(config) => config,
        Err(_) if ca.is_none() && url.scheme() == "http" => return Ok(builder),
        Err(why) => return Err(format!("{why:#}")),
    };
    let mut config = config.as_ref().clone();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(builder.tls_backend_preconfigured(config))
}

/// The host, its address and what to do, if a request failed because [`AddressRule::Public`] does not permit
/// the address; no connection was made then.
pub fn not_public(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source();
    // bounded by the causes of one error
    while let Some(error) = cause {
        if let Some(NotPublic(why)) = error.downcast_ref() {
            return Some(why.clone());
        }
        cause = error.source();
    }
    None
}

/// Whether the host of a URL, or of a `Host` header without its port, is a loopback address or
/// `localhost`.
pub fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}
