//! `engine` and `mcp`: one model, or the whole service, as an MCP server on standard input and
//! output.

#[cfg(feature = "engine")]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl;
use nix::sys::signal::Signal;
#[cfg(feature = "engine")]
use rmcp::model::ErrorCode;
use rmcp::transport::async_rw::AsyncRwTransport;
#[cfg(feature = "engine")]
use serde_json::{Value, json};
#[cfg(feature = "engine")]
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::backends::scripted::{Crash, Scripted};
#[cfg(feature = "engine")]
use crate::catalog::server::PREFIXES;
use crate::config::Config;
use crate::daemon::{Core, calm};
use crate::dispatch::LearnedStore;
#[cfg(feature = "engine")]
use crate::engines::worker::OnThread;
use crate::ingress::mcp::Service;
use crate::limits::LINE_BYTES_MAX;
#[cfg(feature = "engine")]
use crate::limits::REASON_BYTES_MAX;
#[cfg(feature = "engine")]
use crate::limits::liveness::REASON_WAIT_MAX;
use crate::mcp::server::{ModelHost, SingleModel, serve};
#[cfg(feature = "engine")]
use crate::model::generate::Generate;
#[cfg(feature = "engine")]
use crate::request::refusal::one_line;
#[cfg(feature = "engine")]
use crate::sandbox::memory::{EngineBounds, MemoryBound};
#[cfg(feature = "engine")]
use crate::sandbox::{self, SandboxPaths};

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
    /// Threads for decode; 0 means as many as are of use, measured at start.
    #[arg(long, default_value_t = 0)]
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
    /// SHA-256 that the model must have, as `sha256:HEX`.
    #[cfg(feature = "engine")]
    #[arg(long, value_name = "SHA256")]
    digest: Option<String>,
    /// Memory that the process may allocate, in MiB (default: derived from the model).
    #[cfg(feature = "engine")]
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u64>,
    /// Whether the process is restricted to its model's files and has no network.
    #[cfg(feature = "engine")]
    #[arg(long, env = "PILOTLIGHT_ENGINE_SANDBOX", default_value = "on", value_name = "on|off")]
    sandbox: SandboxSwitch,
    /// Folder in which the beginnings that prompts have in common, and what was measured, are kept for the next start
    /// (GGUF), or off.
    #[cfg(feature = "engine")]
    #[arg(long, env = PREFIXES, default_value = "off", value_name = "FOLDER")]
    prefix_cache: PathBuf,
    /// Print what the sandbox of these options denies, and end.
    #[cfg(feature = "engine")]
    #[arg(long, hide = true)]
    probe_sandbox: bool,
}

/// Whether an engine enters its sandbox.
#[cfg(feature = "engine")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SandboxSwitch {
    On,
    Off,
}

impl EngineArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        end_with_parent()?;
        set_oom_score_adj();
        // after the out-of-memory score: a process that is not dumpable may not set it
        super::start::disable_core_dumps()?;
        if let Some(name) = &self.scripted {
            let scripted = Scripted::new(name, self.slots, Crash::Abort);
            return on_stdio(Arc::new(SingleModel(Arc::new(scripted)))).await;
        }
        self.serve_model().await
    }

    #[cfg(not(feature = "engine"))]
    #[expect(clippy::unused_async, reason = "its twin loads a model")]
    async fn serve_model(self) -> anyhow::Result<()> {
        Err(anyhow::anyhow!("this build has no engine"))
    }

    /// Loads the model within the sandbox and serves it.
    #[cfg(feature = "engine")]
    async fn serve_model(self) -> anyhow::Result<()> {
        #[cfg(feature = "gguf")]
        if self.gguf.is_some() {
            crate::engines::gguf::cpu_variant();
        }
        let prefixes = self.prefix_folder();
        // before any other thread starts: a thread is restricted by what its creator was
        if self.sandbox == SandboxSwitch::On {
            let entered = sandbox::enter(&self.sandbox_paths(prefixes.as_deref()));
            tracing::info!(files = %entered.files, calls = %entered.calls, "sandbox of the engine");
        } else {
            tracing::warn!("the engine runs without its sandbox (PILOTLIGHT_ENGINE_SANDBOX=off)");
        }
        if self.probe_sandbox {
            return super::sandbox_probe::print();
        }
        let opened = if self.onnx.is_some() {
            self.open_onnx().await
        } else {
            self.open_gguf(prefixes).await
        };
        let model = match opened {
            Ok(model) => Arc::new(model),
            Err(error) => {
                tell(&error).await;
                return Err(error);
            }
        };
        let host = Arc::new(SingleModel(Arc::clone(&model) as Arc<dyn Generate>));
        tokio::select! {
            served = on_stdio(host) => served,
            () = model.stuck() => {
                tracing::error!("the engine does not react to a cancelled request and is ended");
                // the end of this function would wait for the thread
                std::process::abort()
            }
        }
    }

    #[cfg(feature = "engine")]
    fn sandbox_paths(&self, prefixes: Option<&Path>) -> SandboxPaths {
        let mut read = sandbox::library_folders();
        read.extend(self.gguf.clone());
        read.extend(self.onnx.clone());
        read.extend(self.onnx.iter().flat_map(|folder| sandbox::links_of(folder)));
        // a library is loaded with others beside it
        read.extend(self.runtime.as_deref().and_then(|path| {
            if path.is_dir() { Some(path.to_owned()) } else { path.parent().map(Path::to_owned) }
        }));
        // prepacked weights are written beside the model; a pinned folder is not written to
        let converted = self.onnx.as_deref().filter(|_| self.digest.is_none());
        let write = converted.into_iter().chain(prefixes).map(Path::to_owned).collect();
        #[cfg(feature = "onnx")]
        let on_gpu = self.providers.iter().any(|one| one.is_accelerator());
        #[cfg(not(feature = "onnx"))]
        let on_gpu = false;
        SandboxPaths { read, write, gpu: on_gpu || self.gpu_layers > 0 }
    }

    /// Creates the folder of the saved prefixes of this model. Without the folder the engine works as well.
    #[cfg(feature = "gguf")]
    fn prefix_folder(&self) -> Option<PathBuf> {
        let model = self.gguf.as_ref().filter(|_| self.prefix_cache != Path::new("off"))?;
        crate::engines::gguf::create_prefix_folder(&self.prefix_cache, model)
            .inspect_err(|error| {
                let folder = self.prefix_cache.display();
                tracing::warn!(%folder, %error, "beginnings of prompts are not kept on disk");
            })
            .ok()
    }

    #[cfg(all(feature = "engine", not(feature = "gguf")))]
    fn prefix_folder(&self) -> Option<PathBuf> {
        let _ = &self.prefix_cache;
        None
    }

    #[cfg(feature = "engine")]
    fn bounds(&self) -> EngineBounds {
        let digest = self.digest.as_deref();
        let digest = digest.map(|digest| digest.trim_start_matches("sha256:").to_owned());
        let memory = self.memory_mb.map_or(MemoryBound::Derived, MemoryBound::Mib);
        EngineBounds { digest, memory }
    }

    #[cfg(feature = "onnx")]
    async fn open_onnx(self) -> anyhow::Result<OnThread> {
        let bounds = self.bounds();
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
        Ok(crate::engines::onnx::open_within(options, bounds).await?)
    }

    #[cfg(all(feature = "engine", not(feature = "onnx")))]
    #[expect(clippy::unused_async, reason = "its twin loads a model")]
    async fn open_onnx(self) -> anyhow::Result<OnThread> {
        let _ = (self.runtime, self.prefixes, self.fallback);
        Err(anyhow::anyhow!("this build has no ONNX engine")).context("engine --onnx")
    }

    #[cfg(feature = "gguf")]
    async fn open_gguf(self, prefixes: Option<PathBuf>) -> anyhow::Result<OnThread> {
        let bounds = self.bounds();
        let options = crate::engines::gguf::GgufOptions {
            path: self.gguf.context("--gguf is needed")?,
            name: self.name,
            context_tokens: self.context,
            threads: self.threads,
            decode_threads: self.decode_threads,
            gpu_layers: self.gpu_layers,
            calibration: self.calibration,
            prefixes,
        };
        Ok(crate::engines::gguf::open_within(options, bounds).await?)
    }

    #[cfg(all(feature = "engine", not(feature = "gguf")))]
    #[expect(clippy::unused_async, reason = "its twin loads a model")]
    async fn open_gguf(self, _prefixes: Option<PathBuf>) -> anyhow::Result<OnThread> {
        let _ = (self.name, self.context, self.threads, self.decode_threads, self.gpu_layers);
        Err(anyhow::anyhow!("this build has no GGUF engine")).context("engine --gguf")
    }
}

/// Serves the whole service on standard input and output.
pub(super) async fn serve_service(config: &Config) -> anyhow::Result<()> {
    let core = Core::start(config, calm(), LearnedStore::default(), None);
    let service = Service::new(core.dispatch.clone());
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

/// Answers the first request with the reason why the model can't be loaded, so that the service knows it.
#[cfg(feature = "engine")]
async fn tell(error: &anyhow::Error) {
    if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return;
    }
    let (input, mut output) = rmcp::transport::stdio_pipes();
    let mut line = String::new();
    let mut input = BufReader::new(input).take(LINE_BYTES_MAX as u64);
    let read = tokio::time::timeout(REASON_WAIT_MAX, input.read_line(&mut line)).await;
    let request: Value = serde_json::from_str(&line).unwrap_or_default();
    if !matches!(read, Ok(Ok(_))) || request["id"].is_null() {
        return;
    }
    let message = one_line(&format!("{error:#}"), REASON_BYTES_MAX);
    let code = ErrorCode::INTERNAL_ERROR.0;
    let answer = json!({
        "jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message},
    });
    // the service may have gone; the reason is in the log too
    let _ = output.write_all(format!("{answer}\n").as_bytes()).await;
    let _ = output.flush().await;
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
