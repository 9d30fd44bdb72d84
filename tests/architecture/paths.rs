//! Paths that a file names, written out in full, and the files that they lead to.

use std::collections::BTreeMap;

use super::source::{Kind, Source, Token, Tree, closing, starts_with};

/// A path as `["crate", "scheduler", "Event"]` or `["std", "fs", "read"]`.
pub type Segments = Vec<String>;

#[derive(Clone, Debug)]
pub struct Named {
    pub segments: Segments,
    pub line: usize,
}

impl Named {
    pub fn text(&self) -> String {
        self.segments.join("::")
    }

    /// Whether the path is `prefix` or lies below it.
    pub fn is_below(&self, prefix: &str) -> bool {
        let text = self.text();
        text == prefix || text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::"))
    }
}

/// What one file names and imports.
pub struct Scan {
    pub named: Vec<Named>,
    imports: BTreeMap<String, Segments>,
}

/// An import: one file names an item of another.
pub struct Edge {
    pub from: usize,
    pub to: usize,
    pub named: Named,
}

/// All paths of `src/`.
pub struct Paths {
    pub scans: Vec<Scan>,
    modules: BTreeMap<String, usize>,
}

impl Paths {
    pub fn of(tree: &Tree) -> Self {
        let keys = tree.src.iter().map(|file| file.key().unwrap());
        let modules: BTreeMap<String, usize> = keys
            .enumerate()
            .map(|(at, key)| if key == "lib" { (String::new(), at) } else { (key.to_owned(), at) })
            .collect();
        let scans = tree.src.iter().map(|file| scan(file, &modules)).collect();
        Self { scans, modules }
    }

    /// The imports between different files. A name that a module only imports itself leads on to
    /// the file that it comes from.
    pub fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        for (from, scan) in self.scans.iter().enumerate() {
            for named in &scan.named {
                if let Some(to) = self.file_of(&named.segments, 8).filter(|to| *to != from) {
                    edges.push(Edge { from, to, named: named.clone() });
                }
            }
        }
        edges
    }

    fn file_of(&self, segments: &[String], depth: u8) -> Option<usize> {
        let (first, rest) = segments.split_first()?;
        if first != "crate" || depth == 0 {
            return None;
        }
        let mut key = String::new();
        for (at, segment) in rest.iter().enumerate() {
            let below = child(&key, segment);
            if self.modules.contains_key(&below) {
                key = below;
                continue;
            }
            let file = self.modules.get(&key).copied();
            let import = file.and_then(|file| self.scans[file].imports.get(segment));
            let through = import.and_then(|import| {
                let whole: Segments = import.iter().chain(&rest[at + 1..]).cloned().collect();
                self.file_of(&whole, depth - 1)
            });
            return through.or(file);
        }
        self.modules.get(&key).copied()
    }
}

fn child(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") }
}

fn scan(file: &Source, modules: &BTreeMap<String, usize>) -> Scan {
    let key = file.key().unwrap();
    let here: Segments = match key {
        "lib" => vec!["crate".to_owned()],
        _ => ["crate"].into_iter().chain(key.split('/')).map(str::to_owned).collect(),
    };
    let (mut uses, mut inline) = (Vec::new(), Vec::new());
    let code = &file.code;
    let mut at = 0;
    let mut attribute_ends = 0;
    while at < code.len() {
        let token = &code[at];
        if token.is("#") && code.get(at + 1).is_some_and(|next| next.is("[")) {
            attribute_ends = closing(code, at + 1);
        }
        if token.is("use") && code.get(at + 1).is_some_and(|next| !next.is("<")) {
            at += 1;
            use_tree(code, &mut at, &[], &mut uses);
        } else if token.kind == Kind::Word {
            let is_visibility = at > 1 && starts_with(&code[at - 2..], &["(", "in"]);
            let named = path_at(code, &mut at);
            if !is_visibility {
                inline.push(named);
            }
        } else if token.kind == Kind::Text && at < attribute_ends && token.text.contains("::") {
            let segments = token.text.split("::").map(str::to_owned).collect();
            inline.push(Named { segments, line: token.line });
        }
        at += 1;
    }
    let written_out = |segments: &[String], imports: &BTreeMap<String, Segments>| {
        write_out(segments, &here, modules, imports)
    };
    let none = BTreeMap::new();
    let imports: BTreeMap<String, Segments> = uses
        .iter()
        .filter(|(named, _)| !named.segments.ends_with(&["*".to_owned()]))
        .map(|(named, name)| (name.clone(), written_out(&named.segments, &none)))
        .collect();
    let mut all = Vec::new();
    for (named, _) in &uses {
        all.push(Named { segments: written_out(&named.segments, &imports), line: named.line });
    }
    for named in inline.iter().filter(|named| named.segments.len() > 1) {
        all.push(Named { segments: written_out(&named.segments, &imports), line: named.line });
    }
    Scan { named: all, imports }
}

/// Reads the path that starts at `at` and leaves `at` on its last token.
fn path_at(code: &[Token], at: &mut usize) -> Named {
    let line = code[*at].line;
    let mut segments = vec![code[*at].text.clone()];
    while code.get(*at + 1).is_some_and(|t| t.is("::"))
        && code.get(*at + 2).is_some_and(|t| t.kind == Kind::Word)
    {
        *at += 2;
        segments.push(code[*at].text.clone());
    }
    Named { segments, line }
}

/// Reads one branch of a `use`, with the name that each import gets.
fn use_tree(code: &[Token], at: &mut usize, before: &[String], found: &mut Vec<(Named, String)>) {
    let mut segments = before.to_vec();
    let line = code.get(*at).map_or(0, |token| token.line);
    while let Some(token) = code.get(*at) {
        if token.is("{") {
            *at += 1;
            while code.get(*at).is_some_and(|token| !token.is("}")) {
                use_tree(code, at, &segments, found);
                if code.get(*at).is_some_and(|token| token.is(",")) {
                    *at += 1;
                }
            }
            *at += 1;
            return;
        } else if token.is(",") || token.is("}") || token.is(";") {
            break;
        } else if token.is("as") {
            let name = code[*at + 1].text.clone();
            *at += 2;
            found.push((Named { segments: without_self(segments), line }, name));
            return;
        } else if !token.is("::") {
            segments.push(token.text.clone());
        }
        *at += 1;
    }
    let segments = without_self(segments);
    let name = segments.last().cloned().unwrap_or_default();
    found.push((Named { segments, line }, name));
}

/// `a::{self}` is `a`.
fn without_self(mut segments: Segments) -> Segments {
    if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
        segments.pop();
    }
    segments
}

fn write_out(
    segments: &[String],
    here: &[String],
    modules: &BTreeMap<String, usize>,
    imports: &BTreeMap<String, Segments>,
) -> Segments {
    let (first, rest) = segments.split_first().unwrap();
    let joined = |start: &[String], rest: &[String]| start.iter().chain(rest).cloned().collect();
    match first.as_str() {
        "crate" => segments.to_vec(),
        "pilotlight" => joined(&["crate".to_owned()], rest),
        "self" => joined(here, rest),
        "super" => {
            let mut start = here[..here.len().max(2) - 1].to_vec();
            let ups = rest.iter().take_while(|segment| *segment == "super").count();
            start.truncate(start.len().saturating_sub(ups).max(1));
            joined(&start, &rest[ups..])
        }
        _ if modules.contains_key(&child(&here[1..].join("/"), first)) => joined(here, segments),
        _ => match imports.get(first) {
            Some(import) => joined(import, rest),
            None => segments.to_vec(),
        },
    }
}

#[cfg(test)]
pub fn edges_of(files: &[(&str, &str)]) -> Vec<(String, String)> {
    let tree = Tree::of(files);
    let paths = Paths::of(&tree);
    let path = |at: usize| tree.src[at].path.clone();
    paths.edges().iter().map(|edge| (path(edge.from), path(edge.to))).collect()
}

#[test]
fn every_way_to_name_a_file_is_found() {
    for text in [
        "use crate::{limits, x::{self, y::{Z, W}}};",
        "use crate::x::y;",
        "use super::super::x::y::Z as Other;",
        "fn f() { crate::x::y::z(); }",
        "use crate::x as short; fn f() { short::y::z() }",
        "use crate::x; fn f() -> x::y::Z {}",
        "#[serde(with = \"crate::x::y\")] struct S;",
        // through a name that another module only imports
        "use crate::x::Z;",
    ] {
        let edges = edges_of(&[
            ("src/a/b.rs", text),
            ("src/limits.rs", ""),
            ("src/x/mod.rs", "pub use self::y::Z;"),
            ("src/x/y.rs", ""),
        ]);
        let found = edges.iter().any(|(from, to)| from == "src/a/b.rs" && to == "src/x/y.rs");
        assert!(found, "{text}: {edges:?}");
    }
}

#[test]
fn comments_texts_and_visibilities_name_no_file() {
    let text = "// crate::x::y\n//! [`crate::x`]\nfn f() { \"crate::x::y\"; }\n\
                pub(in crate::x) struct S;\n#[cfg(test)]\nmod tests { use crate::x; }\n";
    assert!(edges_of(&[("src/a.rs", text), ("src/x.rs", "")]).is_empty());
}
