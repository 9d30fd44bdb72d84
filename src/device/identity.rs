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

/// The names of the board that patterns of `pilotlight.models.NAME.boards` are compared with: its
/// architecture (`aarch64`, also as `arm64`; `x86_64`, also as `amd64`), the model and the compatible
/// names of its device tree, such as `Raspberry Pi 5 Model B Rev 1.0`, `raspberrypi,5-model-b` and
/// `brcm,bcm2712`.
pub fn board_names(root: &Path) -> Vec<String> {
    let mut names = vec![std::env::consts::ARCH.to_owned()];
    match std::env::consts::ARCH {
        "aarch64" => names.push("arm64".to_owned()),
        "x86_64" => names.push("amd64".to_owned()),
        _ => {}
    }
    for file in ["model", "compatible"] {
        let places = ["proc/device-tree", "sys/firmware/devicetree/base"];
        let found = places.iter().find_map(|place| files::text(&root.join(place).join(file)));
        let found = found.unwrap_or_default();
        // a list of texts, each with a NUL at its end
        let texts = found.split('\0').map(str::trim).filter(|text| !text.is_empty());
        names.extend(texts.map(str::to_owned));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_has_the_names_of_its_device_tree() {
        let root = tempfile::tempdir().unwrap();
        let arch = board_names(root.path());
        assert!(arch.contains(&std::env::consts::ARCH.to_owned()));
        let tree = root.path().join("proc/device-tree");
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("model"), "Raspberry Pi 5 Model B Rev 1.0\0").unwrap();
        std::fs::write(tree.join("compatible"), "raspberrypi,5-model-b\0brcm,bcm2712\0").unwrap();
        let expected = ["Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712"];
        assert_eq!(board_names(root.path())[arch.len()..], expected);
    }

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
