//! Layers: a file may import only from lower layers, or from its own top-level module.

use super::paths::Paths;
use super::source::Tree;

/// The layer of each path below `src/`; the longest prefix counts. A folder whose files stand on
/// several layers has a line for each. Layers 0 to 5 are pure.
pub const LAYERS: &[(&str, u8)] = &[
    ("limits", 0),
    ("money", 0),
    ("request/client", 0),
    ("time", 0),
    ("model/health", 1),
    ("money/account", 1),
    ("request/name", 1),
    ("request/refusal", 1),
    ("request/skill", 1),
    ("model/batch", 2),
    ("model/context", 2),
    ("pressure/level", 2),
    ("pressure/limit", 2),
    ("request/format", 2),
    ("request/labels", 2),
    ("request/schema", 2),
    ("request/tools", 2),
    ("request", 3),
    ("calibrate", 4),
    ("decision", 4),
    ("model", 4),
    ("redact", 4),
    ("catalog", 5),
    ("pressure", 5),
    ("scheduler", 5),
    ("clock", 6),
    ("fleet", 6),
    ("random", 6),
    ("store/files", 6),
    ("device", 7),
    ("gguf", 7),
    ("mqtt", 7),
    ("net", 7),
    ("sandbox", 7),
    ("status", 7),
    ("store", 7),
    ("wire", 7),
    ("engines", 8),
    ("mcp", 8),
    ("metrics", 8),
    ("models", 8),
    ("providers", 8),
    ("rollout", 8),
    ("backends", 9),
    ("convert", 9),
    ("dispatch", 9),
    ("simulate", 9),
    ("benchmark", 10),
    ("strategy", 10),
    ("ingress", 11),
    ("trial", 11),
    ("config", 12),
    ("daemon", 13),
    ("cli", 14),
    ("main", 15),
    ("lib", 16),
];

/// The client protocols; each is a module of `ingress` and knows none of the others.
pub const PROTOCOLS: &[&str] = &["http", "mcp", "mqtt"];

pub fn layer_of(key: &str, layers: &[(&str, u8)]) -> Option<u8> {
    let fits = |prefix: &str| {
        key.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let found = layers.iter().filter(|(prefix, _)| fits(prefix));
    found.max_by_key(|(prefix, _)| prefix.len()).map(|(_, layer)| *layer)
}

/// Files without a layer, lines of the table without a file, and imports that look up or beside.
///
/// Within a top-level module the same layer is allowed, a higher one is not: a file that has a
/// lower layer than its folder is imported from below, and brings along what it imports.
pub fn broken(tree: &Tree, layers: &[(&str, u8)]) -> Vec<String> {
    let mut found = Vec::new();
    for file in &tree.src {
        if layer_of(file.key().unwrap(), layers).is_none() {
            found.push(format!("{}: has no layer; add it to LAYERS", file.path));
        }
    }
    for edge in Paths::of(tree).edges() {
        let (from, to) = (&tree.src[edge.from], &tree.src[edge.to]);
        let layer = |key: &str| layer_of(key, layers).unwrap_or(u8::MAX);
        let (upper, lower) = (layer(from.key().unwrap()), layer(to.key().unwrap()));
        if lower < upper || (lower == upper && from.top() == to.top()) {
            continue;
        }
        found.push(format!(
            "{}:{}: layer {upper} imports {} of layer {lower} from {}; move the item to a lower \
             layer, or pass it in as a parameter",
            from.path,
            edge.named.line,
            edge.named.text(),
            to.path
        ));
    }
    found
}

/// Lines of the table that stand for no file.
pub fn without_files(tree: &Tree, layers: &[(&str, u8)]) -> Vec<String> {
    let stands_for = |prefix: &str| {
        tree.src.iter().any(|file| layer_of(file.key().unwrap(), &[(prefix, 0)]).is_some())
    };
    let unused = layers.iter().filter(|(prefix, _)| !stands_for(prefix));
    unused.map(|(prefix, _)| format!("LAYERS: {prefix} is no file; remove the line")).collect()
}

/// Client protocols that know each other.
pub fn protocols_that_meet(tree: &Tree) -> Vec<String> {
    let protocol = |key: &str| {
        let name = key.strip_prefix("ingress/")?.split('/').next()?.to_owned();
        PROTOCOLS.contains(&name.as_str()).then_some(name)
    };
    let mut found = Vec::new();
    for edge in Paths::of(tree).edges() {
        let (from, to) = (&tree.src[edge.from], &tree.src[edge.to]);
        if let (Some(one), Some(other)) =
            (protocol(from.key().unwrap()), protocol(to.key().unwrap()))
            && one != other
        {
            found.push(format!(
                "{}:{}: the protocol {one} imports {} of {other}; pass it in as a \
                 parameter, or move what both need to ingress/answers.rs or below",
                from.path,
                edge.named.line,
                edge.named.text()
            ));
        }
    }
    found
}

/// `lib.rs` is a map of the crate and holds no code.
pub fn more_than_a_map(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in tree.src.iter().filter(|file| file.path == "src/lib.rs") {
        let mut at = 0;
        while let Some(token) = file.code.get(at) {
            if token.is("#") {
                let open = if file.code[at + 1].is("!") { at + 2 } else { at + 1 };
                at = super::source::closing(&file.code, open) + 1;
            } else if super::source::starts_with(&file.code[at..], &["pub", "mod"])
                && file.code.get(at + 3).is_some_and(|end| end.is(";"))
            {
                at += 4;
            } else {
                found.push(format!(
                    "src/lib.rs:{}: `{}` is neither documentation nor `pub mod`; move the code to \
                     a module",
                    token.line, token.text
                ));
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[(&str, u8)] =
        &[("low", 0), ("beside", 0), ("mid/first", 1), ("mid", 3), ("top", 14)];

    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let found = broken(&Tree::of(files), TABLE);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn imports_look_down() {
        let low = ("src/low.rs", "");
        check(&[("src/top.rs", "use crate::low::X;"), low], &[]);
        let beside = ("src/mid/a.rs", "use super::b;");
        check(&[("src/mid/mod.rs", ""), beside, ("src/mid/b.rs", "")], &[]);
        check(&[("src/mid/mod.rs", "use self::first::X;"), ("src/mid/first.rs", "")], &[]);
    }

    #[test]
    fn no_layer_is_exempt() {
        let (low, top) = (("src/low.rs", ""), ("src/top.rs", ""));
        check(&[("src/beside.rs", "\nuse crate::low::X;"), low], &["src/beside.rs:2: layer 0"]);
        check(&[("src/low.rs", "fn f() { crate::top::x() }"), top], &["of layer 14"]);
        check(&[("src/mid/first.rs", "use super::X;"), ("src/mid/mod.rs", "")], &["of layer 3"]);
        check(&[("src/stray.rs", "")], &["src/stray.rs: has no layer"]);
    }

    #[test]
    fn each_line_of_the_table_stands_for_a_file() {
        let tree = Tree::of(&[("src/mid/first.rs", "")]);
        let found = without_files(&tree, &[("mid", 3), ("mid/first", 1), ("mi", 2)]);
        assert_eq!(found, ["LAYERS: mi is no file; remove the line"]);
    }

    #[test]
    fn protocols_do_not_meet() {
        let files = [
            ("src/ingress/mod.rs", ""),
            ("src/ingress/http/mod.rs", "use crate::ingress::{answers, mqtt};"),
            ("src/ingress/mqtt/mod.rs", ""),
            ("src/ingress/answers.rs", ""),
        ];
        let found = protocols_that_meet(&Tree::of(&files));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("the protocol http imports crate::ingress::mqtt"), "{found:?}");
    }

    #[test]
    fn the_map_has_no_code() {
        let lib = |text| more_than_a_map(&Tree::of(&[("src/lib.rs", text)]));
        assert!(lib("//! Map.\n#![warn(x)]\n#[cfg(feature = \"a\")]\npub mod a;\n").is_empty());
        assert!(lib("pub mod a;\npub use a::B;\n")[0].contains("src/lib.rs:2: `pub`"));
        assert!(lib("mod a;\n")[0].contains("src/lib.rs:1"));
    }
}
