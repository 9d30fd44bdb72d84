//! `engine` and `mcp`: one model, or the whole service, as an MCP server on standard input and
//! output.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use rmcp::transport::async_rw::AsyncRwTransport;

use crate::backends::scripted::{Crash, Scripted};
use crate::config::Config;
use crate::daemon::{Core, calm};
use crate::dispatch::LearnedStore;
use crate::ingress::mcp::Service;
use crate::limits::LINE_BYTES_MAX;
use crate::mcp::server::{ModelHost, SingleModel, serve};
use crate::model::generate::Generate;

#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// GGUF file.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["onnx", "scripted"])]
    gguf: Option<PathBuf>,
    /// ONNX model folder, made by `model convert` or onnxruntime-genai's builder.
    #[arg(long, value_name = "FOLDER", conflicts_with = "gguf")]
    onnx: Option<PathBuf>,
    /// Name of a scripted model, instead of a file.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["gguf", "onnx"])]
    scripted: Option<String>,
    /// Name of the model in requests.
    #[arg(long)]
    name: Option<String>,
    /// Context length: maximum tokens of prompt and answer together.
    #[arg(long, default_value_t = 2048)]
    context: u32,
    /// Threads for prefill; 0 means all processors.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    /// Threads for decode.
    #[arg(long, default_value_t = 1)]
    decode_threads: u32,
    /// Layers on the GPU (build with feature `cuda`).
    #[arg(long, default_value_t = 0)]
    gpu_layers: u32,
    /// ONNX Runtime's library or its folder (default: search the usual places).
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,
    /// Execution providers of an ONNX model, in order of preference (default: cpu).
    #[cfg(feature = "onnx")]
    #[arg(long = "provider", value_name = "NAME", value_delimiter = ',')]
    providers: Vec<crate::engines::onnx::ExecutionProvider>,
    /// If a provider fails, try the next one, and finally the processor.
    #[arg(long)]
    fallback: bool,
    /// Number of conversations whose cache an ONNX model keeps.
    #[arg(long, default_value_t = 1)]
    prefixes: u32,
    /// Correction of the label bias in classification.
    #[cfg(feature = "engine")]
    #[arg(long, default_value = "running")]
    calibration: crate::engines::worker::Calibration,
    /// Parallel requests of a scripted model.
    #[arg(long, default_value_t = 4)]
    slots: u32,
}

impl EngineArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        end_with_parent()?;
        set_oom_score_adj();
        // after the out-of-memory score: a process that is not dumpable may not set it
        super::start::disable_core_dumps()?;
        let generate: Arc<dyn Generate> = match (&self.scripted, &self.onnx) {
            (Some(name), _) => Arc::new(Scripted::new(name, self.slots, Crash::Abort)),
            (None, Some(_)) => self.open_onnx().await?,
            (None, None) => self.open_gguf().await?,
        };
        on_stdio(Arc::new(SingleModel(generate))).await
    }

    #[cfg(feature = "onnx")]
    async fn open_onnx(self) -> anyhow::Result<Arc<dyn Generate>> {
        let options = crate::engines::onnx::OnnxOptions {
            path: self.onnx.context("--onnx is needed")?,
            name: self.name,
            context_tokens: self.context,
            threads: self.threads,
            runtime: self.runtime,
            prefixes: self.prefixes,
            providers: self.providers,
            fallback: self.fallback,
            calibration: self.calibration,
        };
        Ok(Arc::new(crate::engines::onnx::open(options).await?))
    }

    #[cfg(not(feature = "onnx"))]
    #[expect(clippy::unused_async, reason = "its twin loads a model")]
    async fn open_onnx(self) -> anyhow::Result<Arc<dyn Generate>> {
        let _ = (self.runtime, self.prefixes, self.fallback);
        Err(anyhow::anyhow!("this build has no ONNX engine")).context("engine --onnx")
    }

    #[cfg(feature = "gguf")]
    async fn open_gguf(self) -> anyhow::Result<Arc<dyn Generate>> {
        let options = crate::engines::gguf::GgufOptions {
            path: self.gguf.context("--gguf is needed")?,
            name: self.name,
            context_tokens: self.context,
            threads: self.threads,
            decode_threads: self.decode_threads,
            gpu_layers: self.gpu_layers,
            calibration: self.calibration,
        };
        Ok(Arc::new(crate::engines::gguf::open(options).await?))
    }

    #[cfg(not(feature = "gguf"))]
    #[expect(clippy::unused_async, reason = "its twin loads a model")]
    async fn open_gguf(self) -> anyhow::Result<Arc<dyn Generate>> {
        let _ = (self.name, self.context, self.threads, self.decode_threads, self.gpu_layers);
        Err(anyhow::anyhow!("this build has no GGUF engine")).context("engine --gguf")
    }
}

/// Serves the whole service on standard input and output.
pub(super) async fn serve_service(config: Config) -> anyhow::Result<()> {
    let core = Core::start(&config.catalog, calm(), LearnedStore::default(), None);
    let service = Service::new(core.dispatch.clone(), Arc::new(config.catalog));
    let served = on_stdio(Arc::new(service)).await;
    core.stop().await;
    served
}

async fn on_stdio(host: Arc<dyn ModelHost>) -> anyhow::Result<()> {
    let (input, output) = rmcp::transport::stdio_pipes();
    let transport =
        AsyncRwTransport::new_server(input, output).with_max_line_length(LINE_BYTES_MAX);
    let service = serve(host, transport).await?;
    service.waiting().await.context("the MCP server failed")?;
    Ok(())
}

/// Ends this process with its parent: an engine without its service would only occupy memory.
fn end_with_parent() -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot set the parent-death signal")
}

/// Lets the kernel kill the engine first when memory runs out, not the service, which can restart
/// it.
fn set_oom_score_adj() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "700") {
        tracing::debug!(%error, "the out-of-memory score cannot be set");
    }
}
