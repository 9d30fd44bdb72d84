//! Entry point of the fuzz target `gguf`: the head of a model file.

use std::fs::File;

use super::head::GgufHead;

/// Checks the head of a file of this length.
///
/// # Errors
/// What is wrong with it.
pub fn check(file: &File, length: u64) -> Result<(), String> {
    GgufHead::read(file, length).map(drop).map_err(|error| format!("{error:#}"))
}
