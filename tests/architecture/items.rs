//! Items of a file: what it defines, how visible that is, and where each definition ends.

use super::source::{Kind, Source, Token, closing, end_of_item};

#[derive(Debug)]
pub struct Item {
    /// `fn`, `struct`, `enum`, `union`, `trait`, `type`, `const` or `static`.
    pub kind: String,
    pub name: String,
    /// `pub`, or `pub(…)` of any kind.
    pub is_public: bool,
    /// An item of an `impl` or a `trait`.
    pub is_inside: bool,
    pub line: usize,
    /// The first and the last token in [`Source::code`].
    pub span: (usize, usize),
}

/// An `impl` block and the type that it is for.
pub struct Impl {
    pub of: String,
    pub span: (usize, usize),
}

const KINDS: [&str; 7] = ["fn", "struct", "enum", "union", "trait", "type", "static"];

pub fn items(file: &Source) -> Vec<Item> {
    let code = &file.code;
    let blocks: Vec<_> =
        impls(file).into_iter().map(|block| block.span).chain(traits(code)).collect();
    let mut found = Vec::new();
    for at in 0..code.len().saturating_sub(1) {
        let (token, next) = (&code[at], &code[at + 1]);
        let is_const = token.is("const") && next.kind == Kind::Word && code[at + 2].is(":");
        let is_item = KINDS.iter().any(|kind| token.is(kind)) && next.kind == Kind::Word;
        if !is_const && !is_item {
            continue;
        }
        let first = start_of(code, at);
        found.push(Item {
            kind: token.text.clone(),
            name: next.text.clone(),
            is_public: code[first].is("pub"),
            is_inside: blocks.iter().any(|(from, to)| *from < at && at < *to),
            line: token.line,
            span: (first, end_of_item(code, at)),
        });
    }
    found
}

/// The first token of an item: its `pub`, if it has one.
fn start_of(code: &[Token], keyword: usize) -> usize {
    let mut first = keyword;
    while first > 0 {
        let before = &code[first - 1];
        let is_modifier =
            ["async", "const", "unsafe", "extern", "pub"].iter().any(|it| before.is(it));
        if before.is(")") {
            // `pub(in crate::a)`
            let open = (0..first - 1).rev().take(12).find(|at| code[*at].is("("));
            match open {
                Some(open) if open > 0 && code[open - 1].is("pub") => first = open - 1,
                _ => break,
            }
        } else if is_modifier {
            first -= 1;
        } else {
            break;
        }
    }
    first
}

pub fn impls(file: &Source) -> Vec<Impl> {
    let code = &file.code;
    let mut found = Vec::new();
    for at in (0..code.len()).filter(|at| code[*at].is("impl")) {
        let is_item =
            at == 0 || ["}", "{", ";", "]", "unsafe"].iter().any(|before| code[at - 1].is(before));
        let Some(open) = (at..code.len()).find(|at| code[*at].is("{")) else { continue };
        if is_item {
            let of = self_type(&code[at + 1..open]);
            found.push(Impl { of, span: (at, closing(code, open)) });
        }
    }
    found
}

fn traits(code: &[Token]) -> Vec<(usize, usize)> {
    let starts = (0..code.len()).filter(|at| code[*at].is("trait"));
    starts.map(|at| (at, end_of_item(code, at))).collect()
}

/// The last name of the type in `<T> Trait<T> for a::Type<T> where …`.
fn self_type(header: &[Token]) -> String {
    let mut rest = header;
    if rest.first().is_some_and(|token| token.is("<")) {
        let mut depth = 0_i32;
        let end = rest.iter().position(|token| {
            depth += i32::from(token.is("<")) - i32::from(token.is(">"));
            depth == 0
        });
        rest = &rest[end.map_or(0, |end| end + 1)..];
    }
    let is_for =
        |at: &usize| rest[*at].is("for") && rest.get(at + 1).is_some_and(|next| !next.is("<"));
    if let Some(at) = (0..rest.len()).find(is_for) {
        rest = &rest[at + 1..];
    }
    let words = rest.iter().take_while(|token| !token.is("<") && !token.is("where"));
    words.filter(|token| token.kind == Kind::Word).last().map_or(String::new(), |t| t.text.clone())
}

#[test]
fn items_are_found_with_their_visibility() {
    let text = "pub(in crate::a) async fn b<T: X>(c: T) -> impl D { e() }\n\
                struct F(u8);\npub const G: H = H { i: 1 };\n\
                impl<T: for<'x> J<'x>> K for l::M<T> { type N = u8; pub fn o(&self) {} }\n";
    let file = Source::of("src/a.rs", text);
    let found = items(&file);
    let told: Vec<_> = found
        .iter()
        .map(|i| (i.kind.as_str(), i.name.as_str(), i.is_public, i.is_inside))
        .collect();
    let expected = [
        ("fn", "b", true, false),
        ("struct", "F", false, false),
        ("const", "G", true, false),
        ("type", "N", false, true),
        ("fn", "o", true, true),
    ];
    assert_eq!(told, expected);
    let ends: Vec<_> = found.iter().map(|i| file.code[i.span.1].text.as_str()).collect();
    assert_eq!(ends, ["}", ";", ";", ";", "}"]);
    assert_eq!(impls(&file)[0].of, "M");
}
