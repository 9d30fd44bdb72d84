//! Memory admission check: whether a model and its context fit into this machine before they are
//! loaded.

use std::path::Path;

use crate::device::memory;
use crate::model::generate::Fault;

/// Longest context, tokens. A library may accept a million, and the kernel then kill the process.
const CONTEXT_TOKENS_MAX: u32 = 131_072;
/// Working memory of one batch, bytes: measured on models of some hundred million weights, with
/// headroom.
pub(crate) const WORK_BYTES: u64 = 48 * 1024 * 1024;

/// Checks the length of a context: 1 to 131,072 tokens.
///
/// # Errors
/// [`Fault::Unavailable`] that names the bound.
pub(crate) fn check_context(tokens: u32) -> Result<(), Fault> {
    if (1..=CONTEXT_TOKENS_MAX).contains(&tokens) {
        return Ok(());
    }
    Err(Fault::unavailable(format!("--context is {tokens}, at most {CONTEXT_TOKENS_MAX}")))
}

/// Checks that `needed` bytes of memory are available for a model.
///
/// # Errors
/// [`Fault::Unavailable`] that states what is needed, what is available, and what to do.
pub(crate) fn check_model(path: &Path, needed: u64) -> Result<(), Fault> {
    // a machine without /proc/meminfo is not checked
    let free = memory::read().map_or(u64::MAX, |memory| memory.available);
    if needed <= free {
        return Ok(());
    }
    Err(Fault::unavailable(format!(
        "the model {} needs {} MiB of memory and {} MiB are free; use a smaller model or a shorter \
         --context",
        path.display(),
        needed >> 20,
        free >> 20
    )))
}
