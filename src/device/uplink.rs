//! The network interfaces that the default routes use.
//!
//! The formats of `/proc/net/route` and `/proc/net/ipv6_route` are those of the kernel's
//! `net/ipv4/fib_trie.c` and `net/ipv6/route.c`, the flags those of `linux/route.h`.

use std::path::Path;

use super::files::text;

const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

/// The interfaces of the default routes with the lowest metric, of IPv4 and of IPv6: at most one each.
/// `root` is the folder of the sensors. A route table that can't be read has none.
pub fn uplinks(root: &Path) -> Vec<String> {
    let best = |file: &str, route: fn(&str) -> Option<(u32, &str)>| {
        let table = text(&root.join(file))?;
        let (_, interface) = table.lines().filter_map(route).min_by_key(|(metric, _)| *metric)?;
        Some(interface.to_owned())
    };
    let found = [best("proc/net/route", default_v4), best("proc/net/ipv6_route", default_v6)];
    let mut all: Vec<String> = found.into_iter().flatten().collect();
    all.dedup();
    all
}

/// Metric and interface of a line of `/proc/net/route`, if it is a default route: interface, destination,
/// gateway, flags, references, uses, metric, mask and more.
fn default_v4(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let (interface, destination) = (fields.next()?, fields.next()?);
    let flags = fields.nth(1)?;
    let metric = fields.nth(2)?.parse().ok()?;
    let is_default = is_zero(destination) && is_zero(fields.next()?);
    (is_default && is_usable(flags)).then_some((metric, interface))
}

/// Metric and interface of a line of `/proc/net/ipv6_route`, if it is a default route: destination, length
/// of its prefix, source, length of its prefix, next hop, metric, references, uses, flags and interface.
fn default_v6(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let is_default = is_zero(fields.next()?) && is_zero(fields.next()?);
    let metric = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let flags = fields.nth(2)?;
    let interface = fields.next()?;
    (is_default && is_usable(flags)).then_some((metric, interface))
}

fn is_zero(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|digit| digit == b'0')
}

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (RTF_UP | RTF_REJECT) == RTF_UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4_HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
    const V4_WLAN: &str = "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0";
    const V4_WWAN: &str = "wwan0\t00000000\t00000000\t0001\t0\t0\t700\t00000000\t0\t0\t0";
    const V4_LOCAL: &str = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
    const V6_REJECT: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                             00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo";
    const V6_ETH: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                          fe800000000000000000000000000001 00000064 00000002 00000000 00450003     eth0";

    fn found(v4: &[&str], v6: &[&str]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/net");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("route"), v4.join("\n")).unwrap();
        std::fs::write(folder.join("ipv6_route"), v6.join("\n")).unwrap();
        uplinks(root.path())
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        assert_eq!(found(&[V4_HEAD, V4_WWAN, V4_LOCAL, V4_WLAN], &[V6_REJECT]), ["wlan0"]);
        assert_eq!(found(&[V4_HEAD, V4_WWAN, V4_LOCAL], &[V6_REJECT]), ["wwan0"]);
        assert_eq!(found(&[V4_WWAN], &[V6_REJECT, V6_ETH]), ["wwan0", "eth0"]);
        assert_eq!(found(&[V4_HEAD, V4_LOCAL], &[V6_REJECT]), [""; 0]);
        assert_eq!(uplinks(Path::new("/nowhere")), [""; 0]);
    }

    #[test]
    fn damaged_lines_and_routes_that_are_down_are_left_out() {
        let down = V4_WLAN.replace("\t0003\t", "\t0002\t");
        let reject = V4_WLAN.replace("\t0003\t", "\t0201\t");
        let half = V4_WLAN.replace("00000000\t0\t0\t0", "00000080\t0\t0\t0");
        let cut = &V4_WLAN[..30];
        let text = V4_WLAN.replace("\t600\t", "\tlow\t");
        let lines = [&down, &reject, &half, cut, &text, "", "\0"];
        assert_eq!(found(&lines, &[&V6_ETH[..90], "x"]), [""; 0]);
    }
}
