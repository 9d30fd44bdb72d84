//! Form: the head and the length of files, the length of functions, unfinished code, the size of
//! modules.

use std::collections::BTreeMap;

use super::items::items;
use super::source::{Source, Tree, starts_with};

const FILE_LINES_MAX: usize = 500;
/// From the line of `fn` to the line of the closing brace.
const FUNCTION_LINES_MAX: usize = 80;
const MODULE_PERCENT_MAX: usize = 15;
const ROOT_FILES_MAX: usize = 11;

fn everything(tree: &Tree) -> impl Iterator<Item = &Source> {
    tree.src.iter().chain(&tree.others)
}

/// Files that do not open with a sentence.
pub fn without_a_sentence(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in everything(tree) {
        let head = file.text.lines().map_while(|line| line.strip_prefix("//! "));
        let head = head.collect::<Vec<_>>().join(" ");
        if head.split_whitespace().count() < 3 || !head.ends_with(['.', ':']) {
            found.push(format!(
                "{}:1: does not open with `//! ` and a sentence; state what the file is for",
                file.path
            ));
        }
    }
    found
}

/// Files below `src/` that no `mod` declares: the compiler never reads them.
pub fn undeclared(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in everything(tree) {
        let Some(key) = file.key().filter(|key| !["lib", "main"].contains(key)) else { continue };
        let (parent, name) = key.rsplit_once('/').unwrap_or(("lib", key));
        let is_declared = |other: &Source| {
            let is_here = |at| starts_with(&other.all[at..], &["mod", name, ";"]);
            other.key() == Some(parent) && (0..other.all.len()).any(is_here)
        };
        if !everything(tree).any(is_declared) {
            found.push(format!("{}: no module declares it; declare it or remove it", file.path));
        }
    }
    found
}

/// Files and functions that are too long. Tests do not count in `src/`.
pub fn too_long(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in everything(tree) {
        if file.lines > FILE_LINES_MAX {
            found.push(format!(
                "{}: has {} lines, at most {FILE_LINES_MAX}; split it",
                file.path, file.lines
            ));
        }
    }
    for file in &tree.src {
        for item in items(file).iter().filter(|item| item.kind == "fn") {
            let lines = file.code[item.span.1].line - item.line + 1;
            if lines > FUNCTION_LINES_MAX {
                found.push(format!(
                    "{}:{}: fn {} has {lines} lines, at most {FUNCTION_LINES_MAX}; split it",
                    file.path, item.line, item.name
                ));
            }
        }
    }
    found
}

/// Marks of unfinished code, in tests as well.
pub fn unfinished(tree: &Tree) -> Vec<String> {
    const MARKS: [&[&str]; 4] =
        [&["todo", "!"], &["unimplemented", "!"], &["dbg", "!"], &["#", "[", "ignore"]];
    let mut found = Vec::new();
    for file in everything(tree) {
        for at in 0..file.all.len() {
            if let Some(mark) = MARKS.iter().find(|mark| starts_with(&file.all[at..], mark)) {
                let (line, mark) = (file.all[at].line, mark.concat());
                found.push(format!("{}:{line}: {mark}: finish it or remove it", file.path));
            }
        }
    }
    found
}

/// Lines without tests of each top-level module, the largest first.
pub fn sizes(tree: &Tree) -> Vec<(&str, usize)> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for file in &tree.src {
        *sizes.entry(file.top().unwrap()).or_default() += file.lines;
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
    sizes
}

/// Modules that are too large.
pub fn too_large(tree: &Tree) -> Vec<String> {
    let sizes = sizes(tree);
    let total: usize = sizes.iter().map(|(_, lines)| lines).sum();
    let large = sizes.iter().filter(|(_, lines)| lines * 100 > total * MODULE_PERCENT_MAX);
    large
        .map(|(module, lines)| {
            format!(
                "src/{module}: {lines} of {total} lines, at most {MODULE_PERCENT_MAX} %; move a \
                 part with a purpose of its own to another module"
            )
        })
        .collect()
}

/// Too many files directly below `src/`.
pub fn too_many_at_the_root(tree: &Tree) -> Vec<String> {
    let is_root = |file: &&Source| file.path.matches('/').count() == 1;
    let files: Vec<&str> = tree.src.iter().filter(is_root).map(|f| f.path.as_str()).collect();
    if files.len() <= ROOT_FILES_MAX {
        return Vec::new();
    }
    let (count, names) = (files.len(), files.join(", "));
    vec![format!(
        "{count} files directly below src/, at most {ROOT_FILES_MAX}; move some into a module: {names}"
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &str, text: &str) -> Tree {
        Tree::of(&[(path, text)])
    }

    #[test]
    fn every_file_opens_with_a_sentence() {
        for text in ["use a;", "/// An item.\n", "//! Words\n", "//! No end of a sentence\n"] {
            assert_eq!(without_a_sentence(&one("benches/a.rs", text)).len(), 1, "{text}");
        }
        assert!(without_a_sentence(&one("src/a.rs", "//! Says what\n//! it does.\n")).is_empty());
    }

    #[test]
    fn every_file_is_declared() {
        let tree = |text| {
            Tree::of(&[("src/lib.rs", "mod a;"), ("src/a/mod.rs", text), ("src/a/b.rs", "")])
        };
        for text in ["pub mod b;", "#[cfg(test)]\nmod b;"] {
            assert!(undeclared(&tree(text)).is_empty(), "{text}");
        }
        for text in ["", "// mod b;", "mod b {}", "mod bc;"] {
            let found = undeclared(&tree(text));
            assert_eq!(found, ["src/a/b.rs: no module declares it; declare it or remove it"]);
        }
        assert_eq!(undeclared(&one("src/a.rs", "")).len(), 1);
    }

    #[test]
    fn files_and_functions_are_short() {
        let lines = |count: usize| "fn f() {}\n".repeat(count);
        assert!(too_long(&one("tests/a.rs", &lines(500))).is_empty());
        assert_eq!(too_long(&one("tests/a.rs", &lines(501))).len(), 1);
        let with_tests = lines(500) + "#[cfg(test)]\nmod tests {\n" + &lines(9) + "}\n";
        assert!(too_long(&one("src/a.rs", &with_tests)).is_empty());
        let function = |inner: usize| format!("\nfn f() {{\n{}}}\n", "g();\n".repeat(inner));
        assert!(too_long(&one("src/a.rs", &function(78))).is_empty());
        let found = too_long(&one("src/a.rs", &function(79)));
        assert_eq!(found, ["src/a.rs:2: fn f has 81 lines, at most 80; split it"]);
    }

    #[test]
    fn nothing_is_left_unfinished() {
        for mark in ["todo!()", "unimplemented!()", "dbg!(a)", "#[ignore = \"slow\"]"] {
            let text = format!("#[cfg(test)]\nmod tests {{\n{mark}\n}}");
            let found = unfinished(&one("src/a.rs", &text));
            assert_eq!(found.len(), 1, "{mark}");
            assert!(found[0].starts_with("src/a.rs:3: "), "{found:?}");
        }
        assert!(unfinished(&one("src/a.rs", "// todo!()\nfn f() { \"todo!()\" }")).is_empty());
    }

    #[test]
    fn no_module_outgrows_the_others() {
        let files = |large: usize| {
            let text = "\n".repeat(large);
            let mut files: Vec<(String, String)> =
                (0..8).map(|n| (format!("src/m{n}.rs"), "\n".repeat(100))).collect();
            files.push(("src/large/mod.rs".to_owned(), text));
            files
        };
        for (lines, expected) in [(141, 0), (142, 1)] {
            let files = files(lines);
            let files: Vec<_> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            let found = too_large(&Tree::of(&files));
            assert_eq!(found.len(), expected, "{found:?}");
        }
    }

    #[test]
    fn few_files_lie_at_the_root() {
        for (count, expected) in [(11, 0), (12, 1)] {
            let names: Vec<String> = (0..count).map(|n| format!("src/a{n}.rs")).collect();
            let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
            files.push(("src/deep/mod.rs", ""));
            assert_eq!(too_many_at_the_root(&Tree::of(&files)).len(), expected);
        }
    }
}
