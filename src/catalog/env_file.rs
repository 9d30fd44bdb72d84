//! The reader of `.env`: `NAME=value`, one variable a line.
//!
//! Values are literal: `$` is a dollar sign, and variables are not substituted. What Docker Compose,
//! systemd and shells read differently is refused. A message has the line and the variable's name, never
//! a part of the value or of a line that could not be read: it may be a secret.

use std::collections::BTreeMap;

use super::expand::{Variables, is_variable};
use super::file_text;
use super::mistake::Mistake;
use super::secret;
use crate::limits::config::VARIABLE_NAME_BYTES_MAX;

/// The name of the file.
pub const ENV_FILE: &str = ".env";

/// The variables of one file.
#[derive(Debug, Default)]
pub struct EnvFile {
    /// Their values.
    pub variables: Variables,
    /// What was read and may be meant differently.
    pub warnings: Vec<Mistake>,
}

/// Reads the content of a file.
///
/// # Errors
/// All mistakes, without any value.
pub fn parse(bytes: &[u8]) -> Result<EnvFile, Vec<Mistake>> {
    let text = file_text::decode(bytes).map_err(|message| vec![Mistake::new(ENV_FILE, message)])?;
    let mut reader = Reader { rest: text, line: 0, ..Reader::default() };
    while reader.next_line() {}
    if reader.mistakes.is_empty() { Ok(reader.file) } else { Err(reader.mistakes) }
}

#[derive(Default)]
struct Reader<'t> {
    rest: &'t str,
    /// The number of the line that is read.
    line: usize,
    file: EnvFile,
    /// The line of each variable.
    lines: BTreeMap<&'t str, usize>,
    mistakes: Vec<Mistake>,
}

impl<'t> Reader<'t> {
    /// Reads one line, or the lines of one quoted value; false at the end.
    fn next_line(&mut self) -> bool {
        if self.rest.is_empty() {
            return false;
        }
        self.line += 1;
        let first = self.line;
        let (line, after) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            self.rest = after;
            return true;
        }
        let named = match line.strip_prefix("export") {
            Some(named) if named.starts_with([' ', '\t']) => named.trim_start(),
            Some(_) | None => line,
        };
        let Some((name, value)) = named.split_once('=') else {
            self.rest = after;
            self.mistake(first, "has no `=`; write NAME=value".to_owned());
            return true;
        };
        let name = name.trim_end();
        let begun = value.trim_start();
        let result = if let Some(quote @ ('\'' | '"')) = begun.chars().next() {
            // a quoted value may have several lines
            let start = begun.as_ptr().addr() - self.rest.as_ptr().addr() + 1;
            self.quoted(start, quote)
        } else {
            self.rest = after;
            unquoted(value)
        };
        if !is_variable(name) {
            let message = format!(
                "the text before `=` is not the name of a variable, at most \
                 {VARIABLE_NAME_BYTES_MAX} of [A-Za-z0-9_] that begin with no digit"
            );
            self.mistake(first, message);
            return true;
        }
        match result {
            Ok((value, comment)) => self.take(name, value, comment, first),
            Err(message) => self.mistake(first, format!("{name} {message}")),
        }
        true
    }

    fn take(&mut self, name: &'t str, value: String, comment: Comment, line: usize) {
        if let Some(other) = self.lines.insert(name, line) {
            let message = format!("{name} is set on line {other} already; remove one of them");
            return self.mistake(line, message);
        }
        if comment == Comment::Follows && secret::is_secret_variable(name) {
            let message = format!(
                "{name}: what follows ` #` is a comment and not part of the value; if it is part of \
                 it, put the value into single quotes"
            );
            self.file.warnings.push(at(line, message));
        }
        self.file.variables.insert(name.to_owned(), value);
    }

    /// The value whose opening quote ends at `start` of the rest; continues after the line of the
    /// closing quote.
    fn quoted(&mut self, start: usize, quote: char) -> Result<(String, Comment), String> {
        let text = &self.rest[start..];
        let mut value = String::new();
        let mut chars = text.char_indices().peekable();
        let mut result = Ok(());
        // bounded: each turn consumes a character
        while let Some((at, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    let (tail, after) =
                        text[at + 1..].split_once('\n').unwrap_or((&text[at + 1..], ""));
                    self.line += text[..at].matches('\n').count();
                    self.rest = after;
                    let is_end = tail.trim().is_empty() || tail.trim_start().starts_with('#');
                    if !is_end || tail.starts_with('#') {
                        result = Err("has text after its closing quote".to_owned());
                    }
                    return result.map(|()| (value, Comment::None));
                }
                '\\' if quote == '"' => match chars.next().map(|(_, c)| c) {
                    Some('n') => value.push('\n'),
                    Some('r') => value.push('\r'),
                    Some('t') => value.push('\t'),
                    Some(c @ ('\\' | '"' | '$' | '\'')) => value.push(c),
                    Some(_) | None => {
                        result =
                            Err("has an unknown escape in its double quotes; known are \\n, \\r, \
                                      \\t, \\\\, \\\" and \\$; single quotes take all literally"
                                .to_owned());
                    }
                },
                '$' if quote == '"' && chars.peek().is_some_and(|(_, c)| *c == '{') => {
                    result = Err(SUBSTITUTION.to_owned());
                }
                '\r' if chars.peek().is_some_and(|(_, c)| *c == '\n') => {}
                '\n' | '\t' => value.push(c),
                c if c.is_control() => result = Err(CONTROL.to_owned()),
                c => value.push(c),
            }
        }
        self.rest = "";
        Err("has a quote that is not closed; the lines after it were not read".to_owned())
    }

    fn mistake(&mut self, line: usize, message: String) {
        self.mistakes.push(at(line, message));
    }
}

fn at(line: usize, message: String) -> Mistake {
    Mistake::new(format!("{ENV_FILE}, line {line}"), message)
}

const SUBSTITUTION: &str = "has `${`, and variables are not substituted in .env; write the value itself, \
                            or put it into single quotes if `${` is part of it";
const CONTROL: &str = "has a control character; remove it, or write \\n or \\t in double quotes";

/// Whether a comment follows the value in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comment {
    None,
    Follows,
}

/// A value without quotes: up to the end of the line, or to a `#` after white space.
fn unquoted(text: &str) -> Result<(String, Comment), String> {
    let after_space = |(at, _): &(usize, &str)| text[..*at].ends_with([' ', '\t']);
    let comment = text.match_indices('#').find(after_space).map(|(at, _)| at);
    let value = comment.map_or(text, |at| &text[..at]).trim();
    if value.contains('\\') {
        return Err(
            "has a backslash outside of quotes, which programs read differently; put the value \
                    into single quotes to take it literally"
                .to_owned(),
        );
    }
    if value.contains("${") {
        return Err(SUBSTITUTION.to_owned());
    }
    if value.contains(|c: char| c.is_control() && c != '\t') {
        return Err(CONTROL.to_owned());
    }
    let comment = if comment.is_some() { Comment::Follows } else { Comment::None };
    Ok((value.to_owned(), comment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, expected: &[(&str, &str)]) {
        let file = parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e:?}"));
        let found: Vec<(&str, &str)> =
            file.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected, "{text:?}");
        assert!(file.warnings.is_empty(), "{text:?}: {:?}", file.warnings);
    }

    #[test]
    fn values_are_literal() {
        read("", &[]);
        read(
            "\u{feff}A=1\r\n\r\n# note\r\nexport B = two words \r\n",
            &[("A", "1"), ("B", "two words")],
        );
        read("A=pa$word1\nB=$HOME/x\nC=a$", &[("A", "pa$word1"), ("B", "$HOME/x"), ("C", "a$")]);
        read(
            "A=a#b\nB=#c\nC=d # note\nD= # note",
            &[("A", "a#b"), ("B", "#c"), ("C", "d"), ("D", "")],
        );
        read("A='pa$word1 ${B} \\n \" # x' # note", &[("A", "pa$word1 ${B} \\n \" # x")]);
        read(r#"A="a \"b\" \$c $d \n\t\\ 'e' # f""#, &[("A", "a \"b\" $c $d \n\t\\ 'e' # f")]);
        read("A='one\r\ntwo'\nB=it's\nC=a=b", &[("A", "one\ntwo"), ("B", "it's"), ("C", "a=b")]);
        read("export=1\nA=", &[("A", ""), ("export", "1")]);
    }

    #[test]
    fn a_mistake_has_line_and_name_and_no_value() {
        let canary = "hunter2";
        for (text, expected) in [
            ("A=1\n\nhunter2\n", ".env, line 3: has no `=`"),
            ("hunter2 x=1", ".env, line 1: the text before `=`"),
            ("A=1\nA=hunter2", ".env, line 2: A is set on line 1 already"),
            ("A=1\r\nB='hunter2\r\nC=3", ".env, line 2: B has a quote that is not closed"),
            ("A='\nhunter2'x\nhunter2", ".env, line 1: A has text after its closing quote"),
            ("A='\n\n'\nhunter2", ".env, line 4: has no `=`"),
            ("A=\"hunter2\"hunter2", ".env, line 1: A has text after its closing quote"),
            ("A=hunter2\\x", ".env, line 1: A has a backslash"),
            ("A=\"hunter2\\x\"", ".env, line 1: A has an unknown escape"),
            ("A=hunter2${B}", ".env, line 1: A has `${`"),
            ("A=\"hunter2${B}\"", ".env, line 1: A has `${`"),
            ("A=hunter2\0", ".env, line 1: A has a control character"),
            ("A='hunter2\0'", ".env, line 1: A has a control character"),
            ("A=hunter2\rB=1", ".env, line 1: A has a control character"),
        ] {
            let mistakes = parse(text.as_bytes()).expect_err(text);
            let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            assert!(shown.iter().any(|shown| shown.starts_with(expected)), "{text:?}: {shown:?}");
            assert!(!shown.concat().contains(canary), "{text:?}: {shown:?}");
        }
        let long = format!("{}={canary}", "N".repeat(VARIABLE_NAME_BYTES_MAX + 1));
        let mistakes = parse(long.as_bytes()).unwrap_err();
        let shown = mistakes[0].to_string();
        assert!(shown.starts_with(".env, line 1: the text before `=`"), "{shown}");
        assert!(shown.len() < VARIABLE_NAME_BYTES_MAX, "the name is not repeated: {shown}");
        let mistakes = parse(b"A\n\nB\n").unwrap_err();
        assert_eq!(mistakes.len(), 2, "every mistake is named: {mistakes:?}");
    }

    #[test]
    fn a_comment_behind_a_secret_is_told() {
        let file = parse(b"NOTE=a # b\nMY_PASSWORD=hunter #2\n").unwrap();
        assert_eq!(file.variables["MY_PASSWORD"], "hunter");
        let [warning] = &file.warnings[..] else { panic!("{:?}", file.warnings) };
        assert!(warning.to_string().starts_with(".env, line 2: MY_PASSWORD"), "{warning}");
        assert!(!warning.to_string().contains("hunter"), "{warning}");
    }
}
