//! Import circles: no two files need each other, directly or through others.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::Paths;
use super::source::Tree;

/// Groups of files of which each reaches each other by imports.
///
/// Counted are imports between siblings, across folders, and from a folder's `mod.rs` to its files.
/// Not counted are imports from a file to a `mod.rs` above it: `impl Scheduler` in a file of the
/// folder needs `use super::Scheduler`, and the parts of one type are no circle.
pub fn circles(tree: &Tree) -> Vec<String> {
    let edges = Paths::of(tree).edges();
    let is_above = |to: &str, from: &str| {
        from.strip_prefix(to).is_some_and(|rest| rest.starts_with('/')) || to == "lib"
    };
    let mut next: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for edge in &edges {
        let (from, to) = (&tree.src[edge.from], &tree.src[edge.to]);
        if !is_above(to.key().unwrap(), from.key().unwrap()) {
            next.entry(edge.from).or_default().insert(edge.to);
        }
    }
    let reached_from: Vec<BTreeSet<usize>> =
        (0..tree.src.len()).map(|from| reached(from, &next)).collect();
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for file in 0..tree.src.len() {
        let circle: BTreeSet<usize> = reached_from[file]
            .iter()
            .copied()
            .filter(|other| reached_from[*other].contains(&file))
            .collect();
        if circle.is_empty() || !told.insert(circle.clone()) {
            continue;
        }
        let mut text = format!("{} files import each other:", circle.len());
        let mut listed = BTreeSet::new();
        for edge in edges.iter().filter(|e| circle.contains(&e.from) && circle.contains(&e.to)) {
            let is_counted = next[&edge.from].contains(&edge.to);
            if is_counted && listed.insert((edge.from, edge.to)) {
                let (from, to) = (&tree.src[edge.from].path, &tree.src[edge.to].path);
                text += &format!("\n    {from}:{}: {} -> {to}", edge.named.line, edge.named.text());
            }
        }
        found.push(text + "\n    move what both sides need into a file that imports neither");
    }
    found
}

/// The files that imports lead to from here; the file itself only by a circle.
fn reached(from: usize, next: &BTreeMap<usize, BTreeSet<usize>>) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        open.extend(next.get(&file).into_iter().flatten().filter(|to| found.insert(**to)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expected: usize) {
        let found = circles(&Tree::of(files));
        assert_eq!(found.len(), expected, "{found:?}");
    }

    #[test]
    fn circles_are_found() {
        let (a, b) = ("src/a/mod.rs", "src/a/b.rs");
        check(&[("src/x.rs", "use crate::y;"), ("src/y.rs", "fn f() { crate::x::g() }")], 1);
        check(&[(a, ""), (b, "use super::c::C;"), ("src/a/c.rs", "use super::b::B;")], 1);
        // through the parent: it uses `b`, which uses `x`, which uses the parent
        check(&[(a, "use b::B;"), (b, "use crate::x::X;"), ("src/x.rs", "use crate::a::A;")], 1);
        // through three files, and a second circle beside them
        let three = [
            ("src/x.rs", "use crate::y::Y;"),
            ("src/y.rs", "use crate::z::Z;"),
            ("src/z.rs", "use crate::x::X;"),
            ("src/v.rs", "use crate::w::W;"),
            ("src/w.rs", "use crate::v::V;"),
        ];
        check(&three, 2);
    }

    #[test]
    fn parts_of_one_type_are_no_circle() {
        check(&[("src/a/mod.rs", "use b::B;"), ("src/a/b.rs", "use super::A;")], 0);
        check(&[("src/a/mod.rs", "use b::B;"), ("src/a/b.rs", "use super::*;")], 0);
        check(&[("src/x.rs", "use crate::y;"), ("src/y.rs", "")], 0);
    }
}
