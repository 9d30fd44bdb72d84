//! Output: lines on standard output, until its reader closes the pipe.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Prints a line.
///
/// # Errors
/// If it cannot be written, for example because the reader closed the pipe, as `head` does.
pub(super) fn write_line(text: Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints a line; an error returns from the function.
macro_rules! print_line {
    () => { $crate::cli::output::write_line(format_args!(""))? };
    ($($arguments:tt)*) => { $crate::cli::output::write_line(format_args!($($arguments)*))? };
}
