//! What a command prints: lines on standard output, as long as somebody reads them.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Prints a line.
///
/// # Errors
/// If it can't be: its reader may have gone, as `head` does. Then there is nothing left to do.
pub(super) fn line(text: Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints a line, or ends the function with why it can't.
macro_rules! say {
    () => { $crate::cli::say::line(format_args!(""))? };
    ($($words:tt)*) => { $crate::cli::say::line(format_args!($($words)*))? };
}
