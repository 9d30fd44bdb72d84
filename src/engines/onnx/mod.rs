//! ONNX models through ONNX Runtime: a folder with a graph and its tokenizer, of a decoder or a
//! sentence encoder.
//!
//! The runtime reads files from anywhere and may end the process, so this runs in a child process
//! (`pilotlight engine`); see `docs/decisions/0002-child-engines.md`.

pub(crate) mod decoder;
pub(crate) mod encoder;
pub(crate) mod files;
pub(crate) mod folder;
mod graph;
pub(crate) mod load;
mod prepared;
mod runtime;
mod session;
mod vocabulary;

use std::path::PathBuf;

pub use self::session::ExecutionProvider;

use super::worker::{Calibration, OnThread};
use crate::model::generate::Fault;
use crate::sandbox::memory::EngineBounds;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct OnnxOptions {
    /// The folder.
    pub path: PathBuf,
    /// Name of the model for clients; by default the folder's name.
    pub name: Option<String>,
    /// Length of the context: most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Compute threads; 0 for all processors.
    pub threads: u32,
    /// The runtime's library or its folder; searched for if `None`.
    pub runtime: Option<PathBuf>,
    /// Conversations in the prefix cache, 1 to 64. Each needs the memory of a context.
    pub prefixes: u32,
    /// How the bias towards some labels is subtracted when labels are scored.
    pub calibration: Calibration,
    /// Execution providers in the order of preference; the CPU if empty.
    pub providers: Vec<ExecutionProvider>,
    /// Whether the next execution provider, and last the CPU, is tried if one fails.
    pub fallback: bool,
}

impl OnnxOptions {
    /// The default options for a folder.
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

/// Loads and measures a model, which takes from tenths of a second to seconds.
///
/// # Errors
/// [`Fault::Unavailable`] states what is wrong with the runtime, the folder, the available memory or
/// the options.
pub async fn open(options: OnnxOptions) -> Result<OnThread, Fault> {
    open_within(options, EngineBounds::default()).await
}

/// [`open`] in a process that is held to `bounds`.
///
/// # Errors
/// As [`open`]; also if the folder is not the pinned one.
pub async fn open_within(options: OnnxOptions, bounds: EngineBounds) -> Result<OnThread, Fault> {
    OnThread::open(move |worker| load::run(options, &bounds, worker)).await
}
