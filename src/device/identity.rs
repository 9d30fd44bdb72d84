//! The identity of the machine, from which the default name of the device follows.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::files;

/// Files that identify a machine below its root folder. A copied flash card has the same machine-id, a
/// board's serial number differs.
const IDENTITIES: [&str; 3] = [
    "etc/machine-id",
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
];

/// Eight hexadecimal digits that are the same at each start and differ between machines; none if the
/// machine has no identity.
///
/// The identity itself is confidential (machine-id(5)): topics have a part of its digest.
pub fn machine_suffix(root: &Path) -> Option<String> {
    let found: Vec<String> =
        IDENTITIES.iter().filter_map(|file| files::text(&root.join(file))).collect();
    if found.iter().all(|identity| identity == "uninitialized") {
        return None;
    }
    let digest: [u8; 32] =
        Sha256::digest(format!("pilotlight device name\n{}", found.join("\n"))).into();
    let [one, two, three, four, ..] = digest;
    Some(format!("{:08x}", u32::from_be_bytes([one, two, three, four])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_is_stable_and_differs_between_machines() {
        let of = |files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = root.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            machine_suffix(root.path())
        };
        let id = "0123456789abcdef0123456789abcdef\n";
        let one = of(&[("etc/machine-id", id)]).unwrap();
        assert_eq!(one.len(), 8);
        assert!(!id.contains(&one));
        assert_eq!(of(&[("etc/machine-id", id)]), Some(one.clone()));
        assert_ne!(of(&[("etc/machine-id", "fedcba9876543210\n")]), Some(one.clone()));
        // a copied flash card in another board
        let serial = ("proc/device-tree/serial-number", "10000000abcdef01\0");
        let copied = of(&[("etc/machine-id", id), serial]);
        assert!(copied.is_some() && copied != Some(one));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("etc/machine-id", "uninitialized\n")]), None);
    }
}
