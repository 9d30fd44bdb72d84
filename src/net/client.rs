//! HTTP clients for models elsewhere: bounds, no redirects, and nothing for this machine by a proxy.

use std::net::IpAddr;

use reqwest::{ClientBuilder, Url, redirect};

use super::lookup::Lookup;
use crate::limits::{CONNECT_MAX, UNACKNOWLEDGED_MAX};

/// A client that asks the host of this URL alone.
///
/// The proxies of the environment are followed, but not to this machine: what is sent there is not
/// encrypted, and meant for nobody else.
pub fn builder(url: &Url) -> ClientBuilder {
    let builder = reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT_MAX)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .tcp_nodelay(true)
        .dns_resolver(Lookup::new(url.scheme() == "https"));
    if url.host_str().is_some_and(is_loopback) { builder.no_proxy() } else { builder }
}

/// Whether the host of a URL, or of a `Host` header without its port, is this machine.
pub fn is_loopback(host: &str) -> bool {
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|ip| ip.is_loopback())
}
