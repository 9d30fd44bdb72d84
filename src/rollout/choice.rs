//! Which devices take part in a stage: a share of them, chosen by a hash of version and name.
//!
//! The same devices are chosen again by a push that goes on with an earlier one, and others by the next
//! version, so that no device is always the first.

use crate::fleet::digest::Digest;

/// The devices in the order in which they are offered this version.
pub fn ranked(version: u64, names: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<(Digest, String)> =
        names.map(|name| (Digest::of(format!("{version} {name}").as_bytes()), name)).collect();
    all.sort_unstable();
    all.into_iter().map(|(_, name)| name).collect()
}

/// The number of devices that are this share of all, rounded up: at least one, if there are any.
pub fn share(all: usize, percent: u8) -> usize {
    (all * usize::from(percent)).div_ceil(100).max(1).min(all)
}
