//! A graph on the processor or on an accelerator: what was asked for is tried, and what took it is
//! told.

use std::path::{Path, PathBuf};

use ort::ep;
use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};

use super::OnnxOptions;
use super::runtime::OnnxRuntime;
use crate::model::generate::Fault;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExecutionProvider {
    /// The processor.
    Cpu,
    /// An NVIDIA accelerator through CUDA.
    Cuda,
    /// An NVIDIA accelerator through `TensorRT`.
    Tensorrt,
}

impl ExecutionProvider {
    fn name(self) -> &'static str {
        match self {
            ExecutionProvider::Cpu => "cpu",
            ExecutionProvider::Cuda => "cuda",
            ExecutionProvider::Tensorrt => "tensorrt",
        }
    }
}

/// A graph that can be run.
pub(super) struct Opened {
    pub(super) session: Session,
    /// The accelerator that took it; none is the processor.
    pub(super) accelerator: Option<String>,
    /// Why something that was asked for first did not.
    pub(super) fallback: Option<String>,
}

/// Opens a graph with the first provider that takes it. `prepared` gives the graph as it was made
/// for this processor, if there is one.
///
/// # Errors
/// [`Fault::Unavailable`] if a provider does not take it and no other may be tried.
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
                tracing::warn!(why, "an execution provider");
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
    // what was prepared is optimized already
    let (graph, level) = match prepared {
        Some(path) => (path, GraphOptimizationLevel::Disable),
        None => (graph, GraphOptimizationLevel::Level3),
    };
    let builder = Session::builder(&runtime.environment)?
        .with_intra_threads(options.threads as usize)?
        // a spinning thread halves the rate beside a busy neighbour, and gains nothing alone
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(level)?;
    // a provider that fails would be passed over without a word
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
