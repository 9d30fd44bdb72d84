//! Type names: one name stands for one type in the whole crate.

use std::collections::BTreeMap;

use super::items::items;
use super::source::Tree;

/// Where private types mirror a format that others define; each format has its own `Message`.
const MIRRORS: &[&str] = &["providers/", "ingress/http/", "convert/proto", "wire", "catalog/read"];

/// Type names that are defined more than once.
///
/// Exempt are private types of the mirrors of a wire format, and types that only a test has.
pub fn shared(tree: &Tree) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in &tree.src {
        let key = file.key().unwrap();
        let is_mirror = MIRRORS.iter().any(|mirror| key.starts_with(mirror));
        for item in items(file) {
            let is_type = ["struct", "enum", "union", "trait"].contains(&item.kind.as_str())
                || (item.kind == "type" && !item.is_inside);
            let is_exempt = !item.is_public && (is_mirror || item.name.starts_with("Raw"));
            if is_type && !is_exempt {
                places.entry(item.name).or_default().push(format!("{}:{}", file.path, item.line));
            }
        }
    }
    let shared = places.iter().filter(|(_, places)| places.len() > 1);
    shared
        .map(|(name, places)| {
            format!(
                "{name} names {} types; rename all but one: {}",
                places.len(),
                places.join(", ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: usize) {
        let found = shared(&Tree::of(files));
        assert_eq!(found.len(), expected, "{found:?}");
    }

    #[test]
    fn one_name_is_one_type() {
        check(&[("src/a.rs", "struct Line;"), ("src/b.rs", "pub enum Line {}")], 1);
        check(&[("src/a.rs", "type Line = u8;"), ("src/b.rs", "trait Line {}")], 1);
        check(&[("src/a.rs", "struct A; fn f() { struct A; }")], 1);
        // a public type is no private mirror
        check(&[("src/a.rs", "struct M;"), ("src/providers/b.rs", "pub(super) struct M;")], 1);
    }

    #[test]
    fn mirrors_tests_and_associated_types_are_exempt() {
        check(&[("src/a.rs", "struct M;"), ("src/providers/b.rs", "struct M;")], 0);
        check(&[("src/a.rs", "struct RawM;"), ("src/b.rs", "struct RawM;")], 0);
        check(&[("src/a.rs", "struct M; #[cfg(test)] mod tests { struct M; }")], 0);
        check(&[("src/a.rs", "struct M; impl X for Y { type M = u8; }")], 0);
        check(&[("src/a.rs", "struct M; fn f() { \"struct M\"; } // struct M")], 0);
    }
}
