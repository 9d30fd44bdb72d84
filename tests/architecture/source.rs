//! Source files as tokens: comments, text of literals and test code are told apart from code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    /// The text of a string, without its quotes.
    Text,
    /// `::`, or any other single character.
    Mark,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub kind: Kind,
    pub text: String,
    pub line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.kind != Kind::Text && self.text == text
    }
}

pub struct Source {
    /// Relative to the package: `src/scheduler/mod.rs`.
    pub path: String,
    pub text: String,
    /// The code without tests.
    pub code: Vec<Token>,
    /// The code with tests.
    pub all: Vec<Token>,
    /// Comments with the line on which each starts.
    pub comments: Vec<(usize, String)>,
    /// Lines of the file without its tests.
    pub lines: usize,
    /// Submodules that exist only for tests: `#[cfg(test)] mod tests;`, `#[cfg(fuzzing)] mod fuzzing;`.
    test_modules: Vec<String>,
}

impl Source {
    pub fn of(path: &str, text: &str) -> Self {
        let (all, comments) = read(text);
        let tests = test_items(&all);
        let inside = |at: usize| tests.iter().any(|(from, to)| (*from..=*to).contains(&at));
        let code = (0..all.len()).filter(|at| !inside(*at)).map(|at| all[at].clone()).collect();
        let of_tests: usize =
            tests.iter().map(|(from, to)| all[*to].line - all[*from].line + 1).sum();
        let test_modules = tests
            .iter()
            .filter(|(_, to)| all[*to].is(";") && *to >= 2 && all[to - 2].is("mod"))
            .map(|(_, to)| all[to - 1].text.clone())
            .collect();
        let lines = text.lines().count() - of_tests;
        let (path, text) = (path.to_owned(), text.to_owned());
        Self { path, text, code, all, comments, lines, test_modules }
    }

    /// The path below `src/` without `.rs` and `/mod`; `None` outside `src/`.
    pub fn key(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        Some(below.strip_suffix("/mod").unwrap_or(below))
    }

    /// The top-level module below `src/`.
    pub fn top(&self) -> Option<&str> {
        self.key()?.split('/').next()
    }
}

/// The files of the package: `src` without the files that exist only for tests, and all others.
pub struct Tree {
    pub src: Vec<Source>,
    /// Test files in `src/`, `tests/` and `benches/`.
    pub others: Vec<Source>,
}

impl Tree {
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self::sorted(files.iter().map(|(path, text)| Source::of(path, text)).collect())
    }

    pub fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        for folder in ["src", "tests", "benches"] {
            walk(&root.join(folder), "rs", &mut |path, text| {
                let below = path.strip_prefix(root).unwrap().to_str().unwrap();
                found.push(Source::of(below, text));
            });
        }
        Self::sorted(found)
    }

    fn sorted(files: Vec<Source>) -> Self {
        let tests: BTreeSet<String> = files
            .iter()
            .filter_map(|file| Some((file.key()?, &file.test_modules)))
            .flat_map(|(key, tests)| tests.iter().map(move |test| format!("{key}/{test}")))
            .collect();
        let is_code = |file: &Source| {
            file.key().is_some_and(|key| {
                !tests.iter().any(|test| key == test || key.starts_with(&format!("{test}/")))
            })
        };
        let (src, others) = files.into_iter().partition(is_code);
        Self { src, others }
    }
}

/// Calls `found` with each file below `folder` whose name has this ending, in order of names.
pub fn walk(folder: &Path, ending: &str, found: &mut dyn FnMut(&Path, &str)) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, ending, found);
        } else if path.extension().is_some_and(|it| it == ending) {
            found(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

/// The tokens and the comments of a text.
fn read(text: &str) -> (Vec<Token>, Vec<(usize, String)>) {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut comments) = (Vec::new(), Vec::new());
    let (mut at, mut line) = (0, 1);
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied().unwrap_or('\n');
        let began = at;
        let mut token = None;
        match c {
            '/' if next == '/' => {
                at = find(&chars, at, |c| c == '\n');
                comments.push((line, chars[began..at].iter().collect()));
            }
            '/' if next == '*' => {
                at = end_of_block(&chars, at);
                comments.push((line, chars[began..at].iter().collect()));
            }
            '"' => {
                at = end_of_string(&chars, at);
                token = Some((Kind::Text, chars[began + 1..at - 1].iter().collect()));
            }
            '\'' => at = end_of_quote(&chars, at),
            _ if c.is_alphabetic() || c == '_' => {
                at = find(&chars, at, |c| !c.is_alphanumeric() && c != '_');
                let word: String = chars[began..at].iter().collect();
                if let Some(end) = end_of_raw(&chars, at, &word) {
                    let hashes = find(&chars, at, |c| c != '#') - at;
                    let inner = at + hashes + 1..end - hashes - 1;
                    token = Some((Kind::Text, chars[inner].iter().collect()));
                    at = end;
                } else if word != "r" || chars.get(at) != Some(&'#') {
                    token = Some((Kind::Word, word));
                }
            }
            _ if c.is_ascii_digit() => {
                at = find(&chars, at, |c| !c.is_alphanumeric() && c != '_');
            }
            ':' if next == ':' => {
                at += 2;
                token = Some((Kind::Mark, "::".to_owned()));
            }
            _ => {
                at += 1;
                token = (!c.is_whitespace()).then(|| (Kind::Mark, c.to_string()));
            }
        }
        if let Some((kind, text)) = token {
            tokens.push(Token { kind, text, line });
        }
        line += chars[began..at].iter().filter(|c| **c == '\n').count();
    }
    (tokens, comments)
}

fn find(chars: &[char], from: usize, ends: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|at| ends(chars[*at])).unwrap_or(chars.len())
}

fn end_of_block(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0_usize);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of a character, or of the quote of a lifetime.
fn end_of_quote(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => find(chars, from + 3, |c| c == '\'') + 1,
        (Some(_), Some('\'')) => from + 3,
        _ => find(chars, from + 1, |c| !c.is_alphanumeric() && c != '_'),
    }
}

/// The end of a raw string that follows this prefix.
fn end_of_raw(chars: &[char], at: usize, prefix: &str) -> Option<usize> {
    if !["r", "br", "cr"].contains(&prefix) {
        return None;
    }
    let hashes = find(chars, at, |c| c != '#') - at;
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut end = at + hashes + 1;
    loop {
        end = find(chars, end, |c| c == '"') + 1;
        if end > chars.len() {
            return Some(chars.len());
        }
        if chars[end..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(end + hashes);
        }
    }
}

/// The spans of the items behind `#[cfg(test)]` and `#[cfg(fuzzing)]`, from the attribute to the last
/// token: both are left out of the program.
fn test_items(tokens: &[Token]) -> Vec<(usize, usize)> {
    let is_left_out = |at: usize, open: &[&str]| {
        starts_with(&tokens[at..], open)
            && ["test", "fuzzing"]
                .iter()
                .any(|cfg| starts_with(&tokens[at + open.len()..], &[*cfg, ")", "]"]))
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_left_out(at, &["#", "!", "[", "cfg", "("]) {
            return vec![(0, tokens.len() - 1)];
        }
        if is_left_out(at, &["#", "[", "cfg", "("]) {
            let mut item = at;
            while tokens.get(item).is_some_and(|token| token.is("#")) {
                item = closing(tokens, item + 1) + 1;
            }
            let end = end_of_item(tokens, item);
            found.push((at, end));
            at = end;
        }
        at += 1;
    }
    found
}

pub fn starts_with(tokens: &[Token], texts: &[&str]) -> bool {
    tokens.len() >= texts.len() && tokens.iter().zip(texts).all(|(token, text)| token.is(text))
}

/// The token that closes the bracket at `open`.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if ["(", "[", "{"].iter().any(|it| token.is(it)) {
            depth += 1;
        } else if [")", "]", "}"].iter().any(|it| token.is(it)) {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return at;
            }
        }
    }
    tokens.len() - 1
}

/// The last token of the item that starts at `from`: its semicolon, or the brace of its body.
pub fn end_of_item(tokens: &[Token], from: usize) -> usize {
    // the braces of `const X: T = T { … };` and `use a::{…};` are no bodies
    let has_body = !tokens[from..]
        .iter()
        .take(5)
        .take_while(|token| !token.is("{") && !token.is("fn"))
        .any(|token| ["const", "static", "use", "type", "let"].iter().any(|it| token.is(it)));
    let mut at = from;
    while at < tokens.len() {
        if tokens[at].is(";") {
            return at;
        }
        if ["(", "[", "{"].iter().any(|it| tokens[at].is(it)) {
            let is_body = tokens[at].is("{") && has_body;
            at = closing(tokens, at);
            if is_body {
                return at;
            }
        }
        at += 1;
    }
    tokens.len() - 1
}

#[test]
fn comments_literals_and_tests_are_no_code() {
    let text = "//! doc\nfn a<'t>() { let s = \"b \\\" c\"; let r = r#\"d \" e\"#; '\\''; 'x'; }\n\
                /* f /* g */ */ const fn h() {}\n\
                #[cfg(test)]\n#[expect(x)]\nmod tests {\n fn i() {}\n}\nfn j() {}\n";
    let source = Source::of("src/a.rs", text);
    let words: Vec<&str> =
        source.code.iter().filter(|t| t.kind == Kind::Word).map(|t| t.text.as_str()).collect();
    assert_eq!(words, ["fn", "a", "let", "s", "let", "r", "const", "fn", "h", "fn", "j"]);
    assert_eq!(source.code.last().unwrap().line, 9);
    assert_eq!((source.lines, source.comments.len()), (4, 2));
}

#[test]
fn a_file_of_tests_is_no_part_of_src() {
    let tree = Tree::of(&[
        (
            "src/a/mod.rs",
            "pub mod b;\n#[cfg(test)]\nmod tests;\n#[cfg(fuzzing)]\npub mod fuzzing;\n",
        ),
        ("src/a/b.rs", ""),
        ("src/a/fuzzing.rs", ""),
        ("src/a/tests.rs", ""),
        ("tests/c.rs", ""),
    ]);
    let paths = |files: &[Source]| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&tree.src), ["src/a/mod.rs", "src/a/b.rs"]);
    assert_eq!(paths(&tree.others), ["src/a/fuzzing.rs", "src/a/tests.rs", "tests/c.rs"]);
}
