//! Opens a graph on an execution provider: the configured ones are tried in order, and the one that is
//! used is stated.

use std::path::{Path, PathBuf};

use ort::ep;
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};

use super::OnnxOptions;
use super::runtime::OnnxRuntime;
use crate::model::generate::Fault;

/// Execution provider of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExecutionProvider {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An NVIDIA GPU through `TensorRT`.
    Tensorrt,
}

impl ExecutionProvider {
    /// Whether it computes on a GPU.
    pub fn is_accelerator(self) -> bool {
        self != ExecutionProvider::Cpu
    }

    fn name(self) -> &'static str {
        match self {
            ExecutionProvider::Cpu => "cpu",
            ExecutionProvider::Cuda => "cuda",
            ExecutionProvider::Tensorrt => "tensorrt",
        }
    }
}

/// An opened graph.
pub(super) struct Opened {
    pub(super) session: Session,
    /// The execution provider that is used; `None` for the CPU.
    pub(super) accelerator: Option<String>,
    /// Why a preferred execution provider is not used.
    pub(super) fallback: Option<String>,
}

/// Opens a graph with the first execution provider that supports it. `prepared` returns the graph with
/// prepacked weights for the CPU, if there is one.
///
/// # Errors
/// [`Fault::Unavailable`] if an execution provider fails and no fallback is configured.
pub(super) fn open(
    runtime: &OnnxRuntime,
    graph: &Path,
    prepared: impl Fn() -> Result<Option<PathBuf>, Fault>,
    options: &OnnxOptions,
) -> Result<Opened, Fault> {
    let mut wanted = options.providers.clone();
    if options.fallback || wanted.is_empty() {
        wanted.push(ExecutionProvider::Cpu);
    }
    let mut refused: Vec<String> = Vec::new();
    for provider in wanted {
        let shown = graph.display();
        let prepared = if provider == ExecutionProvider::Cpu { prepared()? } else { None };
        match try_open(runtime, graph, prepared.as_deref(), provider, options) {
            Ok(session) => {
                let accelerator =
                    (provider != ExecutionProvider::Cpu).then(|| provider.name().to_owned());
                let fallback = (!refused.is_empty()).then(|| refused.join("; "));
                return Ok(Opened { session, accelerator, fallback });
            }
            Err(error) => {
                let why = format!("{} cannot take {shown}: {error}", provider.name());
                tracing::warn!(why, "an execution provider can't be used");
                refused.push(why);
                if !options.fallback {
                    break;
                }
            }
        }
    }
    let hint = if options.fallback { "" } else { "; --fallback allows the next provider" };
    let runtime = "ONNX Runtime cannot load the graph";
    Err(Fault::unavailable(format!("{runtime}: {}{hint}", refused.join("; "))))
}

fn try_open(
    runtime: &OnnxRuntime,
    graph: &Path,
    prepared: Option<&Path>,
    provider: ExecutionProvider,
    options: &OnnxOptions,
) -> ort::Result<Session> {
    // a prepared graph is optimized already
    let (graph, level) = match prepared {
        Some(path) => (path, GraphOptimizationLevel::Disable),
        None => (graph, GraphOptimizationLevel::Level3),
    };
    let builder = Session::builder(&runtime.environment)?
        .with_intra_threads(options.threads as usize)?
        // spinning threads halve the rate beside another busy process, and gain nothing otherwise
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(level)?;
    // by default, an execution provider that fails is skipped silently
    let mut builder = match provider {
        ExecutionProvider::Cpu => builder.with_auto_device(AutoDevicePolicy::PreferCPU)?,
        ExecutionProvider::Cuda => {
            builder.with_execution_providers([ep::CUDA::default().build().error_on_failure()])?
        }
        ExecutionProvider::Tensorrt => builder
            .with_execution_providers([ep::TensorRT::default().build().error_on_failure()])?,
    };
    builder.commit_from_file(graph)
}
