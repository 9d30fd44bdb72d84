//! Whether there is room for a model on this machine, before it is loaded.

use std::path::Path;

use crate::device::memory;
use crate::model::generate::Fault;

/// The longest context that may be asked for; a library may accept a million and be killed.
const CONTEXT_TOKENS_MAX: u32 = 131_072;
/// Work space for one step, bytes, measured on models of some hundred million weights, with
/// head-room.
pub(crate) const WORK_BYTES: u64 = 48 * 1024 * 1024;

/// Whether a context of this many tokens may be asked for.
///
/// # Errors
/// [`Fault::Unavailable`] that names the bound.
pub(crate) fn for_context(tokens: u32) -> Result<(), Fault> {
    if (1..=CONTEXT_TOKENS_MAX).contains(&tokens) {
        return Ok(());
    }
    Err(Fault::unavailable(format!(
        "a context of {tokens} tokens is not possible, at most {CONTEXT_TOKENS_MAX}"
    )))
}

/// Whether a model that needs this many bytes can be loaded.
///
/// # Errors
/// [`Fault::Unavailable`] that says what is needed, what is free, and what to do.
pub(crate) fn for_model(path: &Path, needed: u64) -> Result<(), Fault> {
    // a machine that does not say is tried
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
