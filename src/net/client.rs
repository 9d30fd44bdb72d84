//! HTTP clients for remote models: timeouts, no redirects, and no proxy for loopback.

use std::net::IpAddr;

use reqwest::{ClientBuilder, Url, redirect};

use super::lookup::Lookup;
use crate::limits::{CONNECT_MAX, UNACKNOWLEDGED_MAX};

/// The builder of a client for the host of this URL.
///
/// Redirects are not followed: they would leak the key to another host. The proxies of the
/// environment are used except for loopback, where requests are not encrypted.
pub fn builder(url: &Url) -> ClientBuilder {
    let builder = reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .tcp_nodelay(true)
        .dns_resolver(Lookup::new(url.scheme() == "https"));
    if url.host_str().is_some_and(is_loopback) { builder.no_proxy() } else { builder }
}

/// Whether the host of a URL, or of a `Host` header without its port, is a loopback address or
/// `localhost`.
pub fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}
