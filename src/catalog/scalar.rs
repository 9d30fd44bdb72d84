//! The part of the strict scan for texts, numbers and words.

use super::strict::{Scanner, Stop, is_other_quote, is_word};

/// Words of other languages, and what JSON has for them.
const WORDS: [(&str, &str); 7] = [
    ("true", "true"),
    ("false", "false"),
    ("null", "null"),
    ("none", "null"),
    ("nil", "null"),
    ("undefined", "null"),
    ("void", "null"),
];

impl Scanner<'_, '_> {
    /// Scans a text in double quotes.
    pub(super) fn string(&mut self) -> Result<(), Stop> {
        let start = self.at;
        self.at += 1;
        // bounded: each turn goes on in the text, or returns
        loop {
            self.skip_while(|c| c >= ' ' && c != '"' && c != '\\');
            match self.peek() {
                Some('"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('\\') => self.escape(),
                None | Some('\n' | '\r') => {
                    let message = "the text that begins here is not closed in its line: a double quote is \
                                   missing; a line feed within a text is written \\n";
                    return Err(self.stop(start, message));
                }
                Some(c) => {
                    let message =
                        format!("a control character within a text; write {}", escaped(c));
                    self.syntax(self.at, &message);
                    self.at += 1;
                }
            }
        }
    }

    /// Scans an escape.
    fn escape(&mut self) {
        let start = self.at;
        self.at += 1;
        let Some(kind) = self.peek() else { return };
        if kind == 'u' {
            self.at += 1;
            self.unicode(start);
            return;
        }
        if !matches!(kind, '\n' | '\r') {
            self.at += kind.len_utf8();
        }
        if !matches!(kind, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') {
            self.syntax(start, "an unknown escape; a backslash is written \\\\");
        }
    }

    /// Scans the digits behind `\u`, of both halves of a pair (RFC 8259, section 7).
    fn unicode(&mut self, start: usize) {
        let message = match self.hex() {
            None => "\\u needs four digits 0-9a-f",
            Some(0xd800..=0xdbff) => {
                let first = self.at;
                if self.text[first..].starts_with("\\u") {
                    self.at += 2;
                    if matches!(self.hex(), Some(0xdc00..=0xdfff)) {
                        return;
                    }
                    self.at = first;
                }
                HALF
            }
            Some(0xdc00..=0xdfff) => HALF,
            Some(_) => return,
        };
        self.syntax(start, message);
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    /// Scans a text or key in quotes of another kind.
    pub(super) fn other_quotes(&mut self, what: &str) -> Result<(), Stop> {
        let start = self.at;
        let mut rest = self.text[start..].char_indices().skip(1);
        let is_end = |c: char| is_other_quote(c) || matches!(c, '"' | '\n');
        match rest.find(|(_, c)| is_end(*c)) {
            Some((end, quote)) if quote != '\n' => {
                self.at += end + quote.len_utf8();
                self.syntax(start, &format!("{what} in other than double quotes; write \""));
                Ok(())
            }
            Some(_) | None => {
                let message =
                    "a text or key that is not closed in its line, and not in double quotes";
                Err(self.stop(start, message))
            }
        }
    }

    /// Takes a double quote at the end of a word that has none at its beginning.
    pub(super) fn skip_quote(&mut self) {
        self.at += usize::from(self.text[self.at..].starts_with('"'));
    }

    /// Scans a word without quotes. A wrong one is not repeated: it may be a secret.
    pub(super) fn word(&mut self) {
        let start = self.at;
        self.skip_while(is_word);
        let word = &self.text[start..self.at];
        if matches!(word, "true" | "false" | "null") {
            return;
        }
        let known = WORDS.iter().find(|(other, _)| word.eq_ignore_ascii_case(other));
        let message = match known {
            Some((_, json)) => format!("JSON has the word {json} in its place"),
            None if matches!(word, "NaN" | "Infinity" | "inf" | "nan") => {
                "JSON has no such number".to_owned()
            }
            None => {
                self.skip_while(|c| !matches!(c, ',' | '}' | ']' | '\n'));
                "a text must be in double quotes".to_owned()
            }
        };
        self.syntax(start, &message);
    }

    pub(super) fn number(&mut self) {
        let start = self.at;
        self.skip_while(|c| is_word(c) || c == '+');
        let number = &self.text[start..self.at];
        if !is_number(number) {
            let message = "not a number of JSON: digits with at most one point and an exponent, without zeros \
                           or + before them; a text must be in double quotes";
            self.syntax(start, message);
            return;
        }
        let is_integer = !number.contains(['.', 'e', 'E']);
        if is_integer && number.parse::<u64>().is_err() && number.parse::<i64>().is_err() {
            let message = "is a number that does not fit: -2^63 to 2^64 - 1";
            self.add(self.places.last(), message.to_owned());
        } else if !is_integer && !fits(number) {
            let message = "is a number that does not fit: its size must be 5e-324 to 1.7e308, or 0";
            self.add(self.places.last(), message.to_owned());
        }
    }
}

/// The message for half of a surrogate pair.
const HALF: &str =
    "half of a surrogate pair; write both halves, as in \\ud83d\\ude00, or the character itself";

/// How a control character is written.
fn escaped(c: char) -> String {
    if c == '\t' { "\\t".to_owned() } else { format!("\\u{:04x}", u32::from(c)) }
}

/// Whether this is a number by the grammar of JSON (RFC 8259, section 6).
fn is_number(text: &str) -> bool {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    is_digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(is_digits)
        && exponent.is_none_or(|text| is_digits(text.strip_prefix(['-', '+']).unwrap_or(text)))
}

/// Whether a number neither exceeds a double, nor becomes 0 in it.
fn fits(number: &str) -> bool {
    let digits = number.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !digits.contains(|c: char| matches!(c, '1'..='9'));
    number.parse().is_ok_and(|n: f64| n.is_finite() && (is_zero || n != 0.0))
}
