//! Unused public items: the compiler reports no dead code behind `pub` in a library.

use std::collections::BTreeMap;

use super::items::{Impl, Item, impls, items};
use super::source::{Kind, Token, Tree, closing};

/// Public items that only tests or benches use, with the reason why each stays.
pub const FACE_FOR_TESTS: &[(&str, &str)] = &[];

/// One place where a name occurs in the code of `src/`.
struct Place {
    file: usize,
    at: usize,
}

/// Public functions, types, traits and constants that no code of `src/` uses.
///
/// The search is by name: an item counts as used if its name occurs in the code of `src/` outside
/// its own definition, its own `impl` blocks and `use` lines. A method has to be called (`.name(`)
/// or named by a path (`::name`). Tests are not searched.
pub fn unused(tree: &Tree, face: &[(&str, &str)]) -> Vec<String> {
    let places = places(tree);
    let blocks: Vec<Vec<Impl>> = tree.src.iter().map(impls).collect();
    let mut found = Vec::new();
    let mut names = Vec::new();
    for (at, file) in tree.src.iter().enumerate() {
        for item in items(file).into_iter().filter(|item| item.is_public) {
            let none = Vec::new();
            let mut all = places.get(item.name.as_str()).unwrap_or(&none).iter();
            if all.any(|place| is_use(tree, &blocks, at, &item, place)) {
                continue;
            }
            names.push(item.name.clone());
            if !face.iter().any(|(name, _)| *name == item.name) {
                found.push(format!(
                    "{}:{}: {} {} is public and used by tests and benches at most; remove it, move \
                     it to the tests, or name it in FACE_FOR_TESTS with a reason",
                    file.path, item.line, item.kind, item.name
                ));
            }
        }
    }
    for (name, reason) in face {
        if !names.iter().any(|unused| unused == name) || reason.is_empty() {
            found.push(format!(
                "FACE_FOR_TESTS: {name} is used or has gone, or has no reason; remove the line"
            ));
        }
    }
    found
}

/// Where each name occurs outside `use` lines, names in attributes' texts included.
fn places(tree: &Tree) -> BTreeMap<&str, Vec<Place>> {
    let mut found: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    for (file, source) in tree.src.iter().enumerate() {
        let code = &source.code;
        let (mut use_ends, mut attribute_ends) = (0, 0);
        for (at, token) in code.iter().enumerate() {
            let next = code.get(at + 1);
            if token.is("use") && next.is_some_and(|next| !next.is("<")) {
                use_ends = (at..code.len()).find(|at| code[*at].is(";")).unwrap_or(at);
            }
            if token.is("#") && next.is_some_and(|next| next.is("[")) {
                attribute_ends = closing(code, at + 1);
            }
            let is_renamed = next.is_some_and(|next| next.is("as"));
            if token.kind == Kind::Word && (at >= use_ends || is_renamed) {
                found.entry(&token.text).or_default().push(Place { file, at });
            } else if token.kind == Kind::Text {
                for name in names_in(&token.text, at < attribute_ends) {
                    found.entry(name).or_default().push(Place { file, at });
                }
            }
        }
    }
    found
}

/// The names in a text: `{NAME}` of a format, or the path of an attribute.
fn names_in(text: &str, is_attribute: bool) -> Vec<&str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    if is_attribute && text.chars().all(|c| is_name(c) || c == ':') {
        return text.split("::").collect();
    }
    let starts = text.split('{').skip(1);
    starts.filter_map(|rest| rest.split(|c| !is_name(c)).next()).filter(|n| !n.is_empty()).collect()
}

fn is_use(tree: &Tree, blocks: &[Vec<Impl>], file: usize, item: &Item, place: &Place) -> bool {
    let code = &tree.src[place.file].code;
    let is_within = |span: (usize, usize)| span.0 <= place.at && place.at <= span.1;
    if place.file == file && is_within(item.span) {
        return false;
    }
    let of_itself = |block: &Impl| block.of == item.name && is_within(block.span);
    if item.kind != "fn" && blocks[place.file].iter().any(of_itself) {
        return false;
    }
    if code[place.at].kind == Kind::Text {
        return true;
    }
    let mark = |at: Option<usize>, text: &str| {
        at.and_then(|at| code.get(at)).is_some_and(|token: &Token| token.is(text))
    };
    let (before, after) = (place.at.checked_sub(1), Some(place.at + 1));
    let is_definition = ["fn", "struct", "enum", "trait", "type", "let", "mod", "const"]
        .iter()
        .any(|word| mark(before, word));
    if is_definition {
        return false;
    }
    let is_path = mark(before, "::");
    let is_called = mark(before, ".") && (mark(after, "(") || mark(after, "::"));
    match (item.kind.as_str(), item.is_inside) {
        ("fn", true) => is_path || is_called,
        // not a field, not the start of a path, not a parameter or the key of a literal
        ("fn", false) => !mark(before, ".") && !mark(after, "::") && !mark(after, ":"),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: &str = "use crate::a::S;\nfn f(s: S) { s.used(); g(S::other, a::free); K; }\n";

    fn check(text: &str, face: &[(&str, &str)], expected: &[&str]) {
        let found = unused(&Tree::of(&[("src/a.rs", text), ("src/b.rs", CALLS)]), face);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn what_only_tests_use_is_found() {
        check("impl S {\npub fn waiting(&self) {}\n}\n", &[], &["src/a.rs:2: fn waiting"]);
        check("pub(crate) fn h() { h() }", &[], &["fn h"]);
        check("pub const L: u8 = 1; #[cfg(test)] mod tests { fn t() { L; } }", &[], &["const L"]);
        check("pub struct T; impl T { fn t() -> T { T } }", &[], &["struct T"]);
        // a field or a variable of the same name is no call
        check("struct X { h: u8 } impl S { pub fn h(&self) -> u8 { self.h } }", &[], &["fn h"]);
        check("pub fn h() {} fn i(x: X) { x.h; X { h: 1 }; }", &[], &["fn h"]);
        // importing an item does not use it
        check("pub mod m { pub struct T; } pub use m::T;", &[], &["struct T"]);
    }

    #[test]
    fn what_the_program_uses_is_left_alone() {
        check("pub struct S; impl S { pub fn used(&self) {} pub fn other() {} }", &[], &[]);
        check("pub fn free() {} pub const K: u8 = 1;", &[], &[]);
        check("pub fn h() {} #[serde(default = \"h\")] struct X;", &[], &[]);
        check("pub const L: u8 = 1; fn h() { format!(\"at most {L}\") }", &[], &[]);
    }

    #[test]
    fn the_face_for_tests_holds_only_what_it_needs() {
        check("pub fn h() {}", &[("h", "read by a bench")], &[]);
        check("pub fn h() {}", &[("h", "")], &["has no reason"]);
        check("pub fn free() {}", &[("free", "read by a bench")], &["free is used or has gone"]);
    }
}
