//! The strict scan of a text of JSON (RFC 8259) that people write: all mistakes of syntax in words, keys
//! that are there twice, numbers and texts that have no value, and the place of each value.
//!
//! The scan goes on behind what people often write (comments, commas too many, single quotes), so that one
//! run names all of it. `serde_json` then makes the values; both must accept the same texts.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::mistake::{FILE, Mistake, Mistakes};
use super::place::{ValuePlaces, key_at};
use crate::limits::config::CONFIG_DEPTH_MAX;

/// Before each message of syntax.
pub(super) const SYNTAX: &str = "not valid JSON: ";

/// What a scan has found.
pub(super) struct Scanned<'t> {
    pub(super) places: ValuePlaces<'t>,
    /// Whether the text has no mistake of syntax.
    pub(super) is_json: bool,
}

/// Scans a text, and adds its mistakes.
pub(super) fn scan<'t>(text: &'t str, mistakes: &mut Mistakes) -> Scanned<'t> {
    let mut scanner = Scanner {
        text,
        at: 0,
        path: String::new(),
        places: ValuePlaces::new(text),
        open: Vec::new(),
        indented: None,
        mistakes,
        is_json: true,
    };
    // the mistake that ended the scan is added already
    let _ = scanner.file();
    Scanned { places: scanner.places, is_json: scanner.is_json }
}

/// Gives each mistake in this file its place with the file's name, and sorts them by their places. What is
/// in no file, such as a variable of the environment, comes last.
pub fn locate(text: &str, file: &str, mistakes: &mut [Mistake]) {
    let is_in_file = |mistake: &Mistake| {
        let first = mistake.path.split(['.', '[']).next();
        mistake.place.is_none() && matches!(first, Some("pilotlight" | "mcpServers" | "servers"))
    };
    if mistakes.iter().any(is_in_file) {
        let places = scan(text, &mut Mistakes::default()).places;
        for mistake in mistakes.iter_mut().filter(|mistake| is_in_file(mistake)) {
            places.locate(std::slice::from_mut(mistake));
        }
    }
    for mistake in &mut *mistakes {
        if mistake.path == FILE {
            file.clone_into(&mut mistake.path);
        }
        if let Some(place) = &mut mistake.place {
            file.clone_into(&mut place.file);
        }
    }
    mistakes.sort_by_key(|mistake| match &mistake.place {
        Some(place) => (place.line, place.column),
        None => (usize::MAX, usize::MAX),
    });
}

/// A mistake behind which nothing can be told.
pub(super) struct Stop;

pub(super) struct Scanner<'t, 'm> {
    pub(super) text: &'t str,
    /// The offset of the next character.
    pub(super) at: usize,
    /// The path of the value that is scanned.
    path: String,
    pub(super) places: ValuePlaces<'t>,
    /// The offsets of the brackets that are open.
    open: Vec<usize>,
    /// The first bracket that closes one whose line is indented differently, and that one.
    indented: Option<(usize, usize)>,
    mistakes: &'m mut Mistakes,
    is_json: bool,
}

impl Scanner<'_, '_> {
    fn file(&mut self) -> Result<(), Stop> {
        self.space()?;
        let Some(first) = self.peek() else {
            return Err(self.stop(self.at, "the file is empty; it must be a JSON object: {…}"));
        };
        self.element(self.at)?;
        let end = self.places.line(self.at.saturating_sub(1));
        self.space()?;
        let message = match self.peek() {
            None => return Ok(()),
            Some(close @ ('}' | ']')) => {
                format!("`{close}` too many: what it would close ended in line {end}")
            }
            Some(_) if first == '{' => {
                format!("text behind the end of the file's object, which ended in line {end}")
            }
            Some(_) => format!("text behind the end of the file's value in line {end}"),
        };
        Err(self.stop(self.at, &message))
    }

    /// A value whose key, if it has one, began at this offset.
    fn element(&mut self, start: usize) -> Result<(), Stop> {
        let node = self.places.begin(start, self.at);
        let scanned = self.value();
        self.places.end(node);
        scanned
    }

    fn value(&mut self) -> Result<(), Stop> {
        match self.peek() {
            None => Err(self.ends_early()),
            Some('{') => self.object(),
            Some('[') => self.array(),
            Some('"') => self.string(),
            Some('-' | '+' | '.' | '0'..='9') => {
                self.number();
                Ok(())
            }
            Some(',' | '}' | ']') => {
                self.syntax(self.at, "a value is missing here");
                Ok(())
            }
            Some(c) if is_other_quote(c) => self.other_quotes("a text"),
            Some(c) if is_word(c) => {
                self.word();
                Ok(())
            }
            Some(_) => Err(self.unexpected("a value")),
        }
    }

    fn object(&mut self) -> Result<(), Stop> {
        self.enter()?;
        let mut known: BTreeMap<Cow<'_, str>, usize> = BTreeMap::new();
        let mut comma = None;
        // bounded: each turn goes on in the text, or returns
        loop {
            self.space()?;
            let start = self.at;
            match self.peek() {
                None => return Err(self.ends_early()),
                Some('}') => {
                    self.leave(comma);
                    return Ok(());
                }
                Some(']') => return Err(self.wrong_bracket()),
                Some(',') => {
                    self.syntax(start, "a comma too many; remove it");
                    self.at += 1;
                    continue;
                }
                Some('"') => self.string()?,
                Some(c) if is_other_quote(c) => self.other_quotes("a key")?,
                Some(c) if is_word(c) => {
                    self.skip_while(is_word);
                    self.skip_quote();
                    self.syntax(start, "a key must be in double quotes");
                }
                Some(_) => return Err(self.unexpected("a key in double quotes, or `}`,")),
            }
            let raw = &self.text[start..self.at];
            let key = key_at(self.text, start).unwrap_or_else(|| {
                Cow::Borrowed(raw.trim_matches(|c| c == '"' || is_other_quote(c)))
            });
            let outside = self.path.len();
            if outside > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if let Some(first) = known.insert(key, start) {
                let line = self.places.line(first);
                let message =
                    format!("is there twice, the first time in line {line}; remove one of the two");
                self.add(start, message);
            }
            if self.colon()? {
                self.element(start)?;
            }
            self.path.truncate(outside);
            comma = self.comma()?;
        }
    }

    fn array(&mut self) -> Result<(), Stop> {
        self.enter()?;
        let mut comma = None;
        // bounded: each turn goes on in the text, or returns
        for index in 0_usize.. {
            self.space()?;
            match self.peek() {
                None => return Err(self.ends_early()),
                Some(']') => {
                    self.leave(comma);
                    return Ok(());
                }
                Some('}') => return Err(self.wrong_bracket()),
                Some(',') => {
                    self.syntax(self.at, "a comma too many; remove it");
                    self.at += 1;
                    continue;
                }
                Some(_) => {}
            }
            let outside = self.path.len();
            self.path.extend(["[", &index.to_string(), "]"]);
            self.element(self.at)?;
            self.path.truncate(outside);
            comma = self.comma()?;
        }
        Ok(())
    }

    /// Takes the colon behind a key; false if the key has no value.
    fn colon(&mut self) -> Result<bool, Stop> {
        let end = self.at;
        self.space()?;
        match self.peek() {
            Some(':') => self.at += 1,
            Some('=') => {
                self.syntax(self.at, "`=` between a key and its value; write `:`");
                self.skip_while(|c| matches!(c, '=' | '>' | ':'));
            }
            Some(',' | '}') => {
                self.syntax(end, "the key has no value: `:` and a value are missing");
                return Ok(false);
            }
            None => return Err(self.ends_early()),
            Some(_) => self.syntax(end, "`:` is missing behind the key"),
        }
        self.space()?;
        Ok(true)
    }

    /// Takes the comma behind a value, and returns its offset.
    fn comma(&mut self) -> Result<Option<usize>, Stop> {
        let end = self.at;
        self.space()?;
        match self.peek() {
            Some(',') => {
                self.at += 1;
                Ok(Some(self.at - 1))
            }
            Some(c) if matches!(c, '"' | '{' | '[') || is_word(c) || is_other_quote(c) => {
                self.syntax(end, "a comma is missing here, or a double quote before it");
                Ok(None)
            }
            Some(':')
                if self.open.last().is_some_and(|open| self.text[*open..].starts_with('[')) =>
            {
                let message = "`:` within `[ ]`; an object with keys is written in `{ }`";
                Err(self.stop(self.at, message))
            }
            Some(';') => {
                self.syntax(self.at, "`;` between two values; write a comma");
                self.at += 1;
                Ok(None)
            }
            None | Some('}' | ']') => Ok(None),
            Some(_) => Err(self.unexpected("a comma, or the end of the object or array,")),
        }
    }

    fn enter(&mut self) -> Result<(), Stop> {
        if self.open.len() >= CONFIG_DEPTH_MAX {
            self.is_json = false;
            let message = format!(
                "is nested too deep: at most {CONFIG_DEPTH_MAX} levels of objects and arrays"
            );
            self.add(self.places.last(), message);
            return Err(Stop);
        }
        self.open.push(self.at);
        self.at += 1;
        Ok(())
    }

    fn leave(&mut self, comma: Option<usize>) {
        let close = self.at;
        if let Some(comma) = comma {
            let bracket = &self.text[close..=close];
            self.syntax(comma, &format!("a comma before `{bracket}`; remove it"));
        }
        let indentation = self.places.line_before(close);
        if let Some(open) = self.open.pop()
            && self.indented.is_none()
            && self.places.line(open) < self.places.line(close)
            && indentation.trim().is_empty()
        {
            let before = self.places.line_before(open);
            let of_open = &before[..before.len() - before.trim_start().len()];
            self.indented = (of_open != indentation).then_some((close, open));
        }
        self.at += 1;
    }

    /// The place of a bracket in a message.
    fn bracket(&self, offset: usize) -> String {
        let place = self.places.place(offset);
        let bracket = &self.text[offset..=offset];
        format!("the `{bracket}` of line {}, column {}", place.line, place.column)
    }

    /// Stops at the end of the file: brackets are open, or there is no value.
    fn ends_early(&mut self) -> Stop {
        let Some(open) = self.open.last().copied() else {
            return self.stop(self.at, "the file ends before its value");
        };
        let missing = if self.text[open..].starts_with('{') { '}' } else { ']' };
        let hint = self.indented.map(|(close, other)| {
            format!(
                "; a bracket may be missing before line {}, which closes {} with another indentation",
                self.places.line(close),
                self.bracket(other)
            )
        });
        let message = format!(
            "the file ends, and {} is not closed: `{missing}` is missing{}",
            self.bracket(open),
            hint.unwrap_or_default()
        );
        self.stop(self.text.trim_end().len(), &message)
    }

    fn wrong_bracket(&mut self) -> Stop {
        let found = &self.text[self.at..=self.at];
        let open = self.open.last().map(|open| self.bracket(*open)).unwrap_or_default();
        let expected = if found == "]" { '}' } else { ']' };
        let message = format!("`{found}` where `{expected}` must close {open}");
        self.stop(self.at, &message)
    }

    fn unexpected(&mut self, expected: &str) -> Stop {
        let found = self.peek().unwrap_or_default();
        let message = format!("{expected} is expected, and there is {found:?}");
        self.stop(self.at, &message)
    }

    pub(super) fn stop(&mut self, at: usize, message: &str) -> Stop {
        self.syntax(at, message);
        Stop
    }

    /// Adds a mistake of syntax at this offset.
    pub(super) fn syntax(&mut self, at: usize, message: &str) {
        self.is_json = false;
        self.add(at, format!("{SYNTAX}{message}"));
    }

    /// Adds a mistake at this offset and at the present path.
    pub(super) fn add(&mut self, at: usize, message: String) {
        let path = if self.path.is_empty() { FILE } else { &self.path };
        let place = Some(self.places.place(at));
        self.mistakes.push(Mistake { path: path.to_owned(), message, place });
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    pub(super) fn skip_while(&mut self, is_skipped: impl Fn(char) -> bool) {
        let rest = &self.text[self.at..];
        self.at += rest.find(|c| !is_skipped(c)).unwrap_or(rest.len());
    }

    /// Skips white space, and comments with a mistake for each.
    fn space(&mut self) -> Result<(), Stop> {
        // bounded: each turn goes on in the text, or returns
        loop {
            if self.mistakes.is_full() {
                self.is_json = false;
                return Err(Stop);
            }
            self.skip_while(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            let (start, rest) = (self.at, &self.text[self.at..]);
            if rest.starts_with("//") || rest.starts_with('#') {
                self.skip_while(|c| c != '\n');
                self.syntax(start, "a comment; JSON has none: remove it");
            } else if rest.starts_with("/*") {
                let Some(end) = rest.find("*/") else {
                    return Err(self.stop(start, "a comment that is not closed; JSON has none"));
                };
                self.at += end + 2;
                self.syntax(start, "a comment; JSON has none: remove it");
            } else if let Some(c) = self.peek().filter(|c| is_other_space(*c)) {
                self.at += c.len_utf8();
                let message = format!(
                    "the invisible character U+{:04X}; replace it by a space",
                    u32::from(c)
                );
                self.syntax(start, &message);
            } else {
                return Ok(());
            }
        }
    }
}

/// White space that is none in JSON, such as the no-break space of a copied web page.
fn is_other_space(c: char) -> bool {
    c.is_whitespace() && !matches!(c, ' ' | '\t' | '\n' | '\r')
        || matches!(c, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}')
}

pub(super) fn is_other_quote(c: char) -> bool {
    matches!(c, '\'' | '`' | '\u{2018}'..='\u{201f}' | '\u{ab}' | '\u{bb}')
}

/// A character of a word without quotes.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '-' | '.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Whether the scan has no mistake, or only those of texts that are JSON.
    fn is_accepted(text: &str) -> bool {
        let mut mistakes = Mistakes::default();
        let is_json = scan(text, &mut mistakes).is_json;
        // beyond a double, which serde refuses too
        is_json && !mistakes.into_vec().iter().any(|mistake| mistake.message.contains("5e-324"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        /// What one reader accepts and the other refuses would be read differently by another program.
        #[test]
        fn the_scan_and_serde_accept_the_same_texts(
            changes in proptest::collection::vec((0_usize..200, "[\\[\\]{},:\"'\\\\/*# \n\t0-9.eE+untrlfasd8-]{0,3}", 0_usize..3), 1..4)
        ) {
            let mut text = r#"{"a": [1, -2.5e3, "x\n\ud83d\ude00"], "b": {"c": true, "d": [null, {}]}, "e": ""}"#.to_owned();
            for (at, put, taken) in changes {
                let at = at % (text.len() + 1);
                let end = (at + taken).min(text.len());
                text.replace_range(at..end, &put);
            }
            prop_assert_eq!(is_accepted(&text), serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn no_text_stops_the_scan(text in "\\PC{0,60}", rough in "[\\[\\]{},:\"'\\\\ \n#/*a1é日\u{feff}-]{0,40}") {
            for text in [text, rough] {
                let accepted = is_accepted(&text);
                prop_assert_eq!(accepted, serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
            }
        }
    }
}
