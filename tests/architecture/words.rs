//! Words: metaphors that neither names nor prose may use, each with the field's term.

use std::collections::BTreeMap;
use std::path::Path;

use super::source::{Kind, Tree, walk};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Identifiers, comments, documents, and texts that the program prints.
    Everywhere,
    /// Identifiers only: the word has a plain meaning in prose.
    Names,
    /// Prose only: the word is also a name of the standard library.
    Prose,
}

pub struct Word {
    pub word: &'static str,
    pub term: &'static str,
    pub scope: Scope,
    /// Starts of paths where the word is the field's term.
    pub allowed: &'static [&'static str],
}

const fn word(word: &'static str, term: &'static str) -> Word {
    Word { word, term, scope: Scope::Everywhere, allowed: &[] }
}

const fn name(word: &'static str, term: &'static str) -> Word {
    Word { word, term, scope: Scope::Names, allowed: &[] }
}

/// The plural is meant as well. A name of several parts is written with `_`.
pub const WORDS: &[Word] = &[
    word("asker", "client or caller"),
    word("crowd", "full queue"),
    word("door", "client protocol or ingress"),
    word("elsewhere", "remote"),
    word("flame", "model"),
    word("house", "service, crate or board"),
    word("judgement", "decision"),
    word("jury", "judge"),
    word("passage", "egress guard"),
    word("penniless", "over budget"),
    word("roof", "top layer"),
    word("shelf", "model host"),
    word("shelves", "model hosts"),
    word("strain", "device pressure"),
    word("talent", "skill; the wire word stays by serde rename"),
    word("ticket", "job specification or acknowledgement guard"),
    word("victim", "job to offload"),
    word("wish", "option"),
    Word {
        word: "floor",
        term: "layer, or threshold; a version floor is the lowest version that is accepted",
        scope: Scope::Prose,
        allowed: &["docs/fleet.md", "src/cli/config_update", "src/fleet/", "src/store/slots"],
    },
    Word {
        word: "judge",
        term: "scheduler, or offload; a judge is only a model that compares answers",
        scope: Scope::Everywhere,
        allowed: &[
            "README.md",
            "docs/",
            "src/catalog/",
            "src/cli/",
            "src/ingress/http/chat.rs",
            "src/limits.rs",
            "src/mcp/contract.rs",
            "src/redact/pieces.rs",
            "src/request/",
            "src/decision/",
            "src/scheduler/strategy.rs",
            "src/strategy/",
            "src/wire/",
        ],
    },
    name("be_first_to_be_killed", "set_oom_score_adj"),
    name("card", "profile"),
    name("give_way", "yield_to_urgent"),
    name("is_whole", "is_buffered"),
    name("leave_by", "offload_deadline"),
    name("reach", "locality"),
    name("resting", "open, of a circuit breaker"),
    name("seized", "watch event"),
    name("urgent_first", "preemptive"),
    name("whole_ms", "e2e_ms"),
];

/// The documents of the package: path and text.
pub fn documents() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut found = vec![("README.md".to_owned(), readme)];
    walk(&root.join("docs"), "md", &mut |path, text| {
        let below = path.strip_prefix(root).unwrap().to_str().unwrap();
        found.push((below.to_owned(), text.to_owned()));
    });
    found
}

/// Metaphors in `src/` and the documents; one line for each word and file.
///
/// Code in backticks and fences is not prose. Texts of one word, and texts with quotes, are words
/// on a wire and not searched.
pub fn metaphors(tree: &Tree, documents: &[(String, String)], words: &[Word]) -> Vec<String> {
    let mut hits = Hits { words, found: BTreeMap::new() };
    let is_src = |path: &str| path.starts_with("src/");
    for file in tree.src.iter().chain(tree.others.iter().filter(|file| is_src(&file.path))) {
        for (line, text) in &file.comments {
            hits.search(&file.path, *line, text, Scope::Prose);
        }
        for token in &file.all {
            let is_prose = token.text.contains(' ') && !token.text.contains('"');
            if token.kind == Kind::Word {
                hits.search(&file.path, token.line, &token.text, Scope::Names);
            } else if token.kind == Kind::Text && is_prose {
                hits.search(&file.path, token.line, &token.text, Scope::Prose);
            }
        }
        hits.search(&file.path, 1, file.key().unwrap(), Scope::Names);
    }
    for (path, text) in documents {
        let mut is_code = false;
        for (at, line) in text.lines().enumerate() {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            if !is_code && !is_fence {
                hits.search(path, at + 1, line, Scope::Prose);
            }
        }
    }
    let told = hits.found.into_iter();
    told.map(|((path, word, term), (line, count))| {
        format!("{path}:{line}: `{word}` is a metaphor ({count} places); say: {term}")
    })
    .collect()
}

struct Hits<'w> {
    words: &'w [Word],
    /// First line and count by path, word and term.
    found: BTreeMap<(String, &'static str, &'static str), (usize, usize)>,
}

impl Hits<'_> {
    fn search(&mut self, path: &str, line: usize, text: &str, scope: Scope) {
        let text = if scope == Scope::Prose { without_code(text) } else { text.to_owned() };
        let parts = parts(&text);
        for word in self.words {
            let is_searched = word.scope == Scope::Everywhere || word.scope == scope;
            if !is_searched || word.allowed.iter().any(|start| path.starts_with(start)) {
                continue;
            }
            let one = format!("_{}_", word.word);
            let many = format!("_{}s_", word.word);
            let count = parts.matches(&one).count() + parts.matches(&many).count();
            if count > 0 {
                let key = (path.to_owned(), word.word, word.term);
                self.found.entry(key).or_insert((line, 0)).1 += count;
            }
        }
    }
}

/// The text without what stands in backticks.
fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// `leaveBy now-or` as `_leave__by__now__or_`, so that each part has its own bounds; the parts of a
/// name stand together: `offload_deadline` as `_leave_by_`.
fn parts(text: &str) -> String {
    let mut parts = String::from("_");
    let mut was_lower = false;
    for c in text.chars() {
        if c.is_uppercase() && was_lower {
            parts.push('_');
        }
        was_lower = c.is_lowercase();
        if c.is_alphanumeric() {
            parts.extend(c.to_lowercase());
        } else if c == '_' {
            parts.push('_');
        } else {
            parts.push_str("__");
        }
    }
    parts + "_"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Word] = &[
        word("shelf", "host"),
        name("reach", "locality"),
        name("leave_by", "deadline"),
        Word { word: "floor", term: "layer", scope: Scope::Prose, allowed: &[] },
        Word { word: "judge", term: "x", scope: Scope::Everywhere, allowed: &["src/strategy/"] },
    ];

    fn check(path: &str, text: &str, expected: &[&str]) {
        let found = match path.strip_suffix(".md") {
            Some(_) => metaphors(&Tree::of(&[]), &[(path.to_owned(), text.to_owned())], TABLE),
            None => metaphors(&Tree::of(&[(path, text)]), &[], TABLE),
        };
        assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn metaphors_are_found() {
        check("src/a.rs", "\nstruct TheShelf;", &["src/a.rs:2: `shelf` is a metaphor (1 places)"]);
        check("src/a.rs", "fn a(old_shelfs: u8) { /* a shelf */ }", &["(2 places); say: host"]);
        check("src/a.rs", "//! The Shelf, and a shelf.", &["(2 places)"]);
        check("src/a.rs", "fn a() { b(\"no such shelf\") }", &["`shelf`"]);
        check("src/a.rs", "fn a(leave_by: Time, max_reach: u8) {}", &["`leave_by`", "`reach`"]);
        check("src/a.rs", "// one floor below", &["`floor`"]);
        check("src/judge.rs", "", &["src/judge.rs:1: `judge`"]);
        check("src/a.rs", "#[cfg(test)] mod tests { fn shelf() {} }", &["`shelf`"]);
        check("docs/a.md", "A line.\nA shelf.", &["docs/a.md:2"]);
    }

    #[test]
    fn plain_words_wire_words_and_code_are_left_alone() {
        check("src/a.rs", "// within reach\nfn a(b: f32) { b.floor(); c(\"shelf\") }", &[]);
        check("src/a.rs", "// leave by `shelf`\nfn a() { b(r#\"{\"a\": \"a shelf\"}\"#) }", &[]);
        check("src/a.rs", "fn shelfish() {}", &[]);
        check("src/strategy/judge.rs", "//! A judge compares.", &[]);
        check("docs/a.md", "The field `shelf`:\n```json\nshelf\n```\n", &[]);
    }
}
