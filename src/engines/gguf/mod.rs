//! GGUF models through llama.cpp.
//!
//! llama.cpp ends the process on a failed assertion and reads files from anywhere, so this runs
//! in a child process (`pilotlight engine`); see `docs/decisions/0002-child-engines.md`.

mod alone;
#[cfg(any(test, feature = "cpu-variants"))]
mod cpu;
mod decoder;
mod ids;
mod kv_cache;
#[cfg(test)]
mod kv_cache_tests;
mod kv_cells;
mod load;
mod prefix_file;
mod prefix_folder;
mod sequences;
mod start_record;
mod template;
mod threads;

pub mod quantize;

pub use self::prefix_folder::create as create_prefix_folder;

use std::path::PathBuf;

use super::worker::{Calibration, OnThread};
use crate::model::generate::Fault;
use crate::sandbox::memory::EngineBounds;

/// The variant of llama.cpp's code that fits this processor, loaded at the first call, which must come before
/// the sandbox. None if the program has only one.
pub fn cpu_variant() -> Option<&'static str> {
    #[cfg(feature = "cpu-variants")]
    {
        cpu::load_variant()
    }
    #[cfg(not(feature = "cpu-variants"))]
    None
}

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct GgufOptions {
    /// The file.
    pub path: PathBuf,
    /// Name of the model for clients; by default the file's name without its extension.
    pub name: Option<String>,
    /// Length of the context: most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Threads of the prefill; 0 for all processors.
    pub threads: u32,
    /// Threads of decoding one answer; 0 to measure at start how many are of use.
    pub decode_threads: u32,
    /// Layers on the GPU, if the program is built with CUDA.
    pub gpu_layers: u32,
    /// How the bias towards some labels is subtracted when labels are scored.
    pub calibration: Calibration,
    /// Folder in which the beginnings that prompts have in common, and what was measured, are kept for the next
    /// start, for this model alone; none: they are not kept.
    pub prefixes: Option<PathBuf>,
}

/// Loads and measures a model, which takes from tens of milliseconds to seconds.
///
/// # Errors
/// [`Fault::Unavailable`] states what is wrong with the file, the available memory or the options.
pub async fn open(options: GgufOptions) -> Result<OnThread, Fault> {
    open_within(options, EngineBounds::default()).await
}

/// [`open`] in a process that is held to `bounds`.
///
/// # Errors
/// As [`open`]; also if the file is not the pinned one.
pub async fn open_within(options: GgufOptions, bounds: EngineBounds) -> Result<OnThread, Fault> {
    OnThread::open(move |worker| decoder::run(options, &bounds, worker)).await
}
