//! ONNX models through ONNX Runtime: a folder with a graph and its tokenizer, which writes text or
//! says what a text means.
//!
//! The runtime reads files from anywhere and may end the process, so this runs in a child process
//! (`pilotlight engine`); see `docs/decisions/0002-child-engines.md`.

pub(crate) mod decoder;
pub(crate) mod encoder;
pub(crate) mod files;
pub(crate) mod folder;
pub(crate) mod load;
mod prepared;
mod runtime;
mod session;
mod vocabulary;

use std::path::PathBuf;

pub use self::session::ExecutionProvider;

use super::worker::{Calibration, OnThread};
use crate::model::generate::Fault;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct OnnxOptions {
    /// The folder.
    pub path: PathBuf,
    /// The name by which it is asked for; the folder's name if none.
    pub name: Option<String>,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Threads that compute; all processors if 0.
    pub threads: u32,
    /// The runtime's library, or the folder that holds it; looked for if none.
    pub runtime: Option<PathBuf>,
    /// Prompts whose beginnings are kept ready at once, at least 1. Each takes memory for a whole
    /// context as it fills.
    pub prefixes: u32,
    /// How the bias towards some labels is taken off when labels are scored.
    pub calibration: Calibration,
    /// What computes, the first that can; the processor if empty.
    pub providers: Vec<ExecutionProvider>,
    /// Whether another provider, and the processor at last, may be tried if one fails.
    pub fallback: bool,
}

impl OnnxOptions {
    /// This folder, and all else as it is if nobody says.
    pub fn of(path: impl Into<PathBuf>) -> OnnxOptions {
        OnnxOptions {
            path: path.into(),
            name: None,
            context_tokens: 2048,
            threads: 0,
            runtime: None,
            prefixes: 1,
            calibration: Calibration::default(),
            providers: Vec::new(),
            fallback: false,
        }
    }
}

/// Loads a model and measures it; takes from tenths of a second to seconds.
///
/// # Errors
/// [`Fault::Unavailable`] says what is wrong with the runtime, the folder, the machine's memory or the
/// options.
pub async fn open(options: OnnxOptions) -> Result<OnThread, Fault> {
    OnThread::open(move |line| load::run(options, line)).await
}
