//! Addresses and URLs that a remote configuration may name: hosts of the public internet, reached over
//! TLS.

use std::collections::BTreeSet;

// the types of addresses alone, without sockets
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Whether the address is one of the public internet: global unicast, by the registries of special
/// addresses of IANA (RFC 6890, in the version of 2024).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Special networks of IPv4: this network, private use, shared address space, loopback, link-local,
/// private use, protocol assignments, documentation, 6to4 relays, private use, benchmarking, documentation
/// (two), multicast, reserved with the broadcast address.
const SPECIAL_V4: [([u8; 4], u32); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = u32::from(address);
    let is_in = |(network, length): &([u8; 4], u32)| {
        (bits ^ u32::from(Ipv4Addr::from(*network))) >> (32 - length) == 0
    };
    !SPECIAL_V4.iter().any(is_in)
}

/// Global unicast is `2000::/3` without protocol assignments and Teredo (`2001::/23`), documentation
/// (`2001:db8::/32`, `3fff::/20`) and 6to4 (`2002::/16`), which carries an address of IPv4. An address that
/// a NAT64 gateway translates (`64:ff9b::/96`, RFC 6052) is what it carries.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x2002, ..] => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Whether a remote configuration may name this URL. Where its host is a name, the name is looked up
/// when it is connected to, and the addresses are checked then.
///
/// # Errors
/// What is wrong and what to do.
pub fn check_url(text: &str, neighbours: &BTreeSet<String>) -> Result<(), String> {
    if text.contains("${") {
        return Err(
            "has a variable: what it names can't be checked; write the URL itself".to_owned()
        );
    }
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user name or password".to_owned());
    }
    if neighbours.contains(&url.origin().ascii_serialization()) {
        return Ok(());
    }
    if url.scheme() != "https" {
        return Err(format!("must begin with https://, or {NEIGHBOUR}"));
    }
    let is_public = match url.host() {
        Some(Host::Ipv4(address)) => is_public_v4(address),
        Some(Host::Ipv6(address)) => is_public_v6(address),
        Some(Host::Domain(name)) => !is_local_name(name),
        None => false,
    };
    if is_public {
        return Ok(());
    }
    let host = url.host_str().unwrap_or("no host");
    Err(format!("{host} is not an address of the public internet; {NEIGHBOUR}"))
}

/// What to do for a host of the local network.
pub const NEIGHBOUR: &str =
    "for a host of the local network, list its origin in neighbours of the trust policy";

/// Names that never belong to the public internet (RFC 6761, RFC 6762, RFC 8375, RFC 9476, and the name
/// that ICANN has reserved for private use), and names without a dot, which a search list completes.
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let last = name.rsplit('.').next().unwrap_or_default();
    !name.contains('.')
        || matches!(last, "localhost" | "local" | "internal" | "invalid" | "test" | "alt" | "onion")
        || name.ends_with(".home.arpa")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.7",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "::8.8.8.8",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.0",
            "172.15.255.255",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00::1",
            "3ffe::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn urls_of_the_local_network_are_refused_in_every_spelling() {
        let neighbours = BTreeSet::from([
            "https://10.0.0.7:8080".to_owned(),
            "http://big.local:1234".to_owned(),
        ]);
        for right in [
            "https://models.example/mcp",
            "https://models.example.:8443/mcp?x=1",
            "https://8.8.8.8/",
            "https://[2606:4700::1111]/",
            "https://10.0.0.7:8080/mcp",
            "http://big.local:1234/mcp",
        ] {
            assert_eq!(check_url(right, &neighbours), Ok(()), "{right}");
        }
        for (wrong, expected) in [
            ("http://models.example/", "must begin with https://"),
            ("ftp://models.example/", "must begin with https://"),
            ("file:///etc/shadow", "must begin with https://"),
            ("https://10.0.0.7/", "10.0.0.7 is not"),
            ("https://10.0.0.7:8081/", "10.0.0.7 is not"),
            ("http://10.0.0.7:8080/", "must begin with https://"),
            ("https://127.1/", "127.0.0.1 is not"),
            ("https://0x7f.0.0.1/", "127.0.0.1 is not"),
            ("https://0177.0.0.1/", "127.0.0.1 is not"),
            ("https://2130706433/", "127.0.0.1 is not"),
            ("https://127.0.0.1./", "127.0.0.1 is not"),
            ("https://%31%32%37.0.0.1/", "127.0.0.1 is not"),
            ("https://１２７.0.0.1/", "127.0.0.1 is not"),
            ("https://169.254.169.254/latest/meta-data", "169.254.169.254 is not"),
            ("https://[::1]/", "[::1] is not"),
            ("https://[::ffff:10.0.0.1]/", "is not an address"),
            ("https://[fe80::1]/", "is not an address"),
            ("https://[fd00::1]/", "is not an address"),
            ("https://localhost/", "localhost is not"),
            ("https://LOCALHOST./", "is not an address"),
            ("https://a.localhost/", "is not an address"),
            ("https://printer.local/", "is not an address"),
            ("https://nas/", "nas is not"),
            ("https://x.home.arpa/", "is not an address"),
            ("https://user@models.example/", "user name"),
            ("https://models.example:x@127.0.0.1/", "user name"),
            ("https://${HOST}/", "has a variable"),
            ("https://", "is not a URL"),
            ("models.example", "is not a URL"),
        ] {
            let error = check_url(wrong, &neighbours).unwrap_err();
            assert!(error.contains(expected), "{wrong}: {error}");
        }
    }
}
