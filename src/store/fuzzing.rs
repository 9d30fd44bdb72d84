//! Entry point of the fuzz target `ledger`: the lines of a ledger, and a correction.

use super::files;
use super::ledger::{Begin, stated};
use crate::money::account::{Correction, SpendingAccount};

/// The account that the lines of a ledger state, and the line that would replace them.
///
/// # Errors
/// What is wrong, with the line.
pub fn account(text: &str) -> Result<(SpendingAccount, String), String> {
    let books = stated(text).map_err(|e| e.to_string())?;
    let line = serde_json::to_string(&Begin { books: books.clone() });
    Ok((books, line.map_err(|e| e.to_string())? + "\n"))
}

/// A correction, as its file has it.
///
/// # Errors
/// Why it is none.
pub fn correction(text: &str) -> Result<Correction, String> {
    files::parse(text.as_bytes()).map_err(|e| e.to_string())
}
