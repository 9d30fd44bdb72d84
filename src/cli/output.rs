//! Output: text on standard output and standard error, until its reader closes the pipe.
//!
//! A model or a server may write control characters, which a terminal obeys: they change the title, the
//! clipboard or what was printed before. Text for a terminal has them escaped; other readers get it as
//! it is.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};

/// Prints a line.
///
/// # Errors
/// If it cannot be written, for example because the reader closed the pipe, as `head` does.
pub(super) fn write_line(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        writeln!(out, "{}", escaped(&text.to_string()))
    } else {
        writeln!(out, "{text}")
    }
}

/// Prints a part of a line at once.
///
/// # Errors
/// As [`write_line`].
pub(super) fn write_piece(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let text = if out.is_terminal() { escaped(text) } else { Cow::Borrowed(text) };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line on standard error.
pub(super) fn write_error(text: Arguments<'_>) {
    let mut out = io::stderr().lock();
    let text = text.to_string();
    let text = if out.is_terminal() { escaped(&text) } else { Cow::Borrowed(text.as_str()) };
    // there is nowhere else to report it
    let _ = writeln!(out, "{text}");
}

/// The text with each character escaped that a terminal obeys; line feeds and tabs are kept.
fn escaped(text: &str) -> Cow<'_, str> {
    let is_kept = |c: char| matches!(c, '\n' | '\t') || !is_obeyed(c);
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_kept(c) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    Cow::Owned(out)
}

/// Whether a terminal obeys this character: control characters (C0, C1 and DEL), and those that change
/// the direction of the text (Unicode Standard Annex 9, section 2), with which a text looks like
/// another one.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A writer of log lines: all that is obeyed is escaped, line feeds too, so that no value looks like a
/// line of its own.
pub(super) struct Escaping<'w>(pub(super) &'w mut dyn std::fmt::Write);

impl std::fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            if is_obeyed(c) {
                write!(self.0, "{}", c.escape_unicode())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The text as a part of one line: a device or a server may write control characters and line feeds.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    // writing to a string does not fail
    let _ = std::fmt::Write::write_str(&mut Escaping(&mut line), text);
    line
}

/// Whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Draws lines on a terminal in place of the `above` lines that were drawn last. Longer lines than the
/// terminal has columns are cut by it.
///
/// # Errors
/// As [`write_line`].
pub(super) fn redraw(lines: &[String], above: usize) -> io::Result<()> {
    // DECAWM off, cursor up, erase to the end of the screen (ECMA-48, and xterm's control sequences)
    let mut text = String::from("\x1b[?7l\r");
    if above > 0 {
        text.extend(["\x1b[", &above.to_string(), "A"]);
    }
    text.push_str("\x1b[J");
    for line in lines {
        text.push_str(&one_line(line));
        text.push_str("\r\n");
    }
    text.push_str("\x1b[?7h");
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line; an error returns from the function.
macro_rules! print_line {
    () => { $crate::cli::output::write_line(format_args!(""))? };
    ($($arguments:tt)*) => { $crate::cli::output::write_line(format_args!($($arguments)*))? };
}

/// Prints a line on standard error.
macro_rules! print_error {
    ($($arguments:tt)*) => { $crate::cli::output::write_error(format_args!($($arguments)*)) };
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        let check = |text: &str, expected: &str| assert_eq!(escaped(text), expected, "{text:?}");
        check("plain äöü 日本 \u{200d}\n\ttext", "plain äöü 日本 \u{200d}\n\ttext");
        check("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}");
        check("\u{9b}31m\u{7f}\r\0", "\\u{9b}31m\\u{7f}\\u{d}\\u{0}");
        check("a\u{202e}b\u{202a}\u{2066}c\u{2069}", "a\\u{202e}b\\u{202a}\\u{2066}c\\u{2069}");
        check("\u{2029}\u{2065}\u{206a}", "\u{2029}\u{2065}\u{206a}");
    }

    #[test]
    fn a_log_line_is_one_line() {
        let mut line = String::new();
        write!(Escaping(&mut line), "a\n2000-01-01 INFO b\t\x1b[2J\u{202e}").unwrap();
        assert_eq!(line, "a\\u{a}2000-01-01 INFO b\\u{9}\\u{1b}[2J\\u{202e}");
    }
}
