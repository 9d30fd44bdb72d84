//! GGUF models through llama.cpp.
//!
//! llama.cpp ends the process on a failed assertion and reads files from anywhere, so this runs
//! in a child process (`pilotlight engine`); see `docs/decisions/0002-child-engines.md`.

mod decoder;
mod load;
mod template;

pub mod quantize;

use std::path::PathBuf;

use super::worker::{Calibration, OnThread};
use crate::model::generate::Fault;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct GgufOptions {
    /// The file.
    pub path: PathBuf,
    /// The name by which it is asked for; the file's name without its ending if none.
    pub name: Option<String>,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Threads that read the prompt; all processors if 0.
    pub threads: u32,
    /// Threads that write the answer. A tiny model is bound by memory: one is as fast as two, and
    /// far faster beside a busy neighbour.
    pub decode_threads: u32,
    /// Layers that an accelerator takes, if one is built in.
    pub gpu_layers: u32,
    /// How the bias towards some labels is taken off when labels are scored.
    pub calibration: Calibration,
}

/// Loads a model and measures it; takes from tens of milliseconds to seconds.
///
/// # Errors
/// [`Fault::Unavailable`] says what is wrong with the file, the machine's memory or the options.
pub async fn open(options: GgufOptions) -> Result<OnThread, Fault> {
    OnThread::open(move |line| decoder::run(options, line)).await
}
