//! `bench`: measures models on this machine, beside what its memory allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, ensure};
use clap::Args;
use serde::Serialize;

use super::{DONE, NOT_ANSWERED, WRONG};
use crate::backends::process::LOG;
use crate::backends::set::{NextBackends, RunningBackends};
use crate::benchmark::{AnswersAtOnce, BenchmarkPlan, ModelSpeeds, bandwidth, measure};
use crate::catalog::server::{Endpoint, EngineStart, ServerEntry};
use crate::clock::now;
use crate::config::Config;
use crate::device::energy::EnergyMeter;
use crate::device::identity::board_names;
use crate::device::{Sensors, bounds, hottest_c, memory};
use crate::limits::SAMPLE_EVERY;
use crate::limits::benchmark::{BENCHMARK_ROUNDS, BENCHMARK_ROUNDS_MAX};
use crate::model::context::{Locality, ModelContext};
use crate::model::generate::Generate;
use crate::model::health::Health;
use crate::model::link::{BackendHandle, BackendState};
use crate::pressure::Gauge;
use crate::request::skill::GENERATE;
use crate::store::tool_pins::ToolPins;
use crate::time::{Time, millis};

/// Share of the processors' time that other programs may use; with more the figures are too low.
const BUSY_MAX: f64 = 0.2;
/// Share of the available memory that the measurement of its speed takes.
const MEMORY_SHARE: u64 = 8;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// GGUF file, or ONNX model folder (default: the models of mcp.json that run on this device).
    model: Option<PathBuf>,
    /// Measure this server of mcp.json only.
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    server: Option<String>,
    /// Context length of MODEL, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    context: u32,
    /// Rounds of the measurement, besides one that warms up; medians are printed.
    #[arg(long, value_name = "COUNT", default_value_t = BENCHMARK_ROUNDS)]
    rounds: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct BenchReport {
    /// The board, or the architecture.
    machine: String,
    processors: usize,
    /// Bytes that are read from memory a second.
    memory_bytes_per_s: f64,
    /// Share of the processors' time that was in use before, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    busy_before: Option<f64>,
    models: Vec<ModelReport>,
}

#[derive(Debug, Serialize)]
struct ModelReport {
    server: String,
    model: String,
    backend: String,
    quantization: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_variant: Option<String>,
    threads: u32,
    context_tokens: u32,
    /// Milliseconds from the start of its process until it takes requests.
    start_ms: u64,
    /// Bytes of weights, key-value cache and work space.
    memory_bytes: u64,
    #[serde(flatten)]
    speeds: ModelSpeeds,
    /// The most tokens a second of one answer that the memory allows: it is read once for each token.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bound_tokens_per_s: Option<f64>,
    /// What the joules are those of.
    #[serde(skip_serializing_if = "Option::is_none")]
    energy_of: Option<&'static str>,
    /// Degrees Celsius before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    celsius: Option<[f64; 2]>,
    /// Whether the firmware limited the clock at the end.
    is_throttled: bool,
}

impl BenchArgs {
    /// Measures MODEL, or the models of the configuration.
    pub(super) async fn run(self, path: Option<&Path>) -> anyhow::Result<u8> {
        let most = BENCHMARK_ROUNDS_MAX;
        ensure!((1..=most).contains(&self.rounds), "--rounds is from 1 to {most}");
        let (entries, engines, root) = if let Some(model) = &self.model {
            (vec![entry_of(model, self.context)?], EngineStart::default(), PathBuf::from("/"))
        } else {
            let Some(config) = super::loaded_to_start(path)? else { return Ok(WRONG) };
            let engines = EngineStart { socket: None, prefixes: None, ..config.engines.clone() };
            (self.entries(&config)?, engines, config.sensors)
        };
        let mut heat = HeatReader::new(&root);
        let (bytes_per_s, processors) = memory_speed()?;
        let busy_before = heat.busy().await;
        if busy_before.is_some_and(|busy| busy > BUSY_MAX) {
            let percent = busy_before.unwrap_or(0.0) * 100.0;
            print_error!(
                "other programs use {percent:.0} % of the processors: the figures are too low"
            );
        }
        let mut report = BenchReport {
            machine: board_names(&root)
                .into_iter()
                .nth(2)
                .unwrap_or(std::env::consts::ARCH.to_owned()),
            processors,
            memory_bytes_per_s: bytes_per_s.round(),
            busy_before,
            models: Vec::new(),
        };
        if !self.json {
            print_machine(&report)?;
        }
        let mut is_complete = true;
        for entry in &entries {
            match self.model_report(entry, &engines, &root, &mut heat, bytes_per_s).await {
                Ok(model) => {
                    if !self.json {
                        print_model(&model)?;
                    }
                    report.models.push(model);
                }
                Err(error) => {
                    is_complete = false;
                    print_error!("{}: {error:#}", entry.name);
                }
            }
        }
        if self.json {
            print_line!("{}", serde_json::to_string_pretty(&report)?);
        }
        Ok(if is_complete { DONE } else { NOT_ANSWERED })
    }

    /// The servers of the configuration that are measured.
    fn entries(&self, config: &Config) -> anyhow::Result<Vec<ServerEntry>> {
        let shown = config.path.display();
        let own = config.catalog.servers.iter().filter(|entry| {
            matches!(entry.endpoint, Endpoint::Child { .. }) && entry.locality == Locality::Device
        });
        let own: Vec<_> = own.cloned().collect();
        let Some(name) = &self.server else {
            ensure!(!own.is_empty(), "{shown} has no model that runs on this device");
            return Ok(own);
        };
        let found: Vec<_> = own.iter().filter(|entry| entry.name == *name).cloned().collect();
        if found.is_empty() {
            let names: Vec<_> = own.iter().map(|entry| entry.name.as_str()).collect();
            bail!("{shown} has no model {name} on this device, but {}", names.join(", "));
        }
        Ok(found)
    }

    /// Starts a model as the service does, alone, and measures it.
    async fn model_report(
        &self,
        entry: &ServerEntry,
        engines: &EngineStart,
        root: &Path,
        heat: &mut HeatReader,
        bytes_per_s: f64,
    ) -> anyhow::Result<ModelReport> {
        let started = now();
        let mut models = RunningBackends::new(None, Arc::new(ToolPins::new(None)), engines.clone());
        let set = models.prepare(std::slice::from_ref(entry), |_| BTreeMap::new(), None);
        let measured = async {
            let model = up(&set).await?;
            let start_ms = millis(started.elapsed());
            let context = model.context().clone();
            ensure!(context.capabilities.has(GENERATE), "the model writes no text");
            let before = heat.celsius();
            let meter = EnergyMeter::find(root);
            let energy_of = meter.as_ref().map(EnergyMeter::source);
            let plan = BenchmarkPlan::of(&context, self.rounds);
            let speeds = measure(model.as_ref(), &plan, meter, progress).await?;
            let (after, is_throttled) = (heat.celsius(), heat.is_throttled());
            let bound = weights_bytes(entry).map(|bytes| bytes_per_s / bytes);
            anyhow::Ok(ModelReport {
                start_ms,
                memory_bound_tokens_per_s: bound,
                energy_of,
                celsius: before.zip(after).map(|(before, after)| [before, after]),
                is_throttled,
                ..stated(&entry.name, context, speeds)
            })
        };
        let measured = measured.await;
        drop(set);
        models.stop().await;
        measured
    }
}

/// The report of what a model states, with its speeds.
fn stated(server: &str, context: ModelContext, speeds: ModelSpeeds) -> ModelReport {
    let runtime = context.runtime;
    ModelReport {
        server: server.to_owned(),
        model: context.identification.name,
        backend: runtime.backend,
        quantization: runtime.quantization,
        cpu_variant: runtime.cpu_variant,
        threads: runtime.threads,
        context_tokens: context.capabilities.context_tokens,
        start_ms: 0,
        memory_bytes: runtime.memory_bytes,
        speeds,
        memory_bound_tokens_per_s: None,
        energy_of: None,
        celsius: None,
        is_throttled: false,
    }
}

/// An entry that starts the engine of this program with a model.
fn entry_of(model: &Path, context: u32) -> anyhow::Result<ServerEntry> {
    let path = fs::canonicalize(model)
        .map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", model.display()))?;
    let kind = if path.is_dir() { "--onnx" } else { "--gguf" };
    let Some(text) = path.to_str() else { bail!("{} is not UTF-8", path.display()) };
    let args = ["engine", kind, text, "--context", &context.to_string()].map(str::to_owned);
    let name =
        path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    // the figures are what is printed
    let log = std::env::var(LOG).unwrap_or_else(|_| "warn".to_owned());
    let env = BTreeMap::from([(LOG.to_owned(), log)]);
    Ok(ServerEntry::of_engine(name, args.to_vec(), env))
}

/// The model of a set of one, once it is up.
async fn up(set: &NextBackends) -> anyhow::Result<Arc<dyn Generate>> {
    set.started().await;
    let handles: Vec<BackendHandle> = set.handles();
    let state = handles.first().map(|handle| handle.link.borrow().clone());
    match state {
        Some(BackendState::Up(model)) => Ok(model),
        Some(BackendState::Down(
            Health::Unavailable { reason }
            | Health::Failed { reason }
            | Health::Quarantined { reason },
        )) => {
            bail!("{reason}")
        }
        Some(BackendState::Down(Health::Starting | Health::Ready)) | None => {
            bail!("the model did not start in time")
        }
    }
}

/// Bytes of the weights, if the entry names one file of them.
fn weights_bytes(entry: &ServerEntry) -> Option<f64> {
    let model = entry.model_argument().filter(|model| model.flag == "--gguf")?;
    let bytes = fs::metadata(model.value).ok()?.len();
    #[expect(clippy::cast_precision_loss, reason = "a file")]
    Some(bytes as f64)
}

/// Bytes that all processors read from memory in a second, and their number.
fn memory_speed() -> anyhow::Result<(f64, usize)> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let available = memory::read().map_or(u64::MAX, |memory| memory.available);
    Ok((bandwidth::bytes_per_s(processors, available / MEMORY_SHARE)?, processors))
}

/// Temperature and load.
struct HeatReader {
    sensors: Sensors,
    gauge: Gauge,
    is_throttled: bool,
}

impl HeatReader {
    fn new(root: &Path) -> HeatReader {
        let sensors = Sensors::new(root, Path::new("."));
        HeatReader { sensors, gauge: Gauge::new(bounds()), is_throttled: false }
    }

    /// The share of the processors' time that is in use; takes a second.
    async fn busy(&mut self) -> Option<f64> {
        self.sensors.read(None);
        tokio::time::sleep(SAMPLE_EVERY).await;
        self.sensors.read(None).busy
    }

    fn celsius(&mut self) -> Option<f64> {
        let sample = self.sensors.read(None);
        self.gauge.on(&sample, Time::default());
        self.is_throttled = sample.board.is_some_and(|board| board.capped || board.throttled);
        hottest_c(&sample, self.gauge.roles())
    }

    /// Whether the clock was limited at the last reading of the temperature.
    fn is_throttled(&self) -> bool {
        self.is_throttled
    }
}

/// Shows progress on a terminal.
pub(super) fn progress(done: usize, all: usize) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        eprint!("\rmeasurement {done} of {all}{}", if done == all { "\r\x1b[K" } else { "" });
    }
}

fn print_machine(report: &BenchReport) -> std::io::Result<()> {
    let BenchReport { machine, processors, memory_bytes_per_s, .. } = report;
    print_line!(
        "{machine}, {processors} processors, memory read at {:.1} GB/s",
        memory_bytes_per_s / 1e9
    );
    Ok(())
}

fn print_model(model: &ModelReport) -> std::io::Result<()> {
    let ModelReport { server, backend, quantization, threads, context_tokens, .. } = model;
    let variant = model.cpu_variant.as_ref().map_or_else(String::new, |name| format!(", {name}"));
    print_line!(
        "{server}: {backend} {quantization}{variant}, {threads} threads, context of {context_tokens} tokens"
    );
    let speeds = &model.speeds;
    print_line!("  start                  {:>8} ms", model.start_ms);
    print_line!("  memory                 {:>8} MiB", model.memory_bytes >> 20);
    let ModelSpeeds { prompt_tokens, prefill_tokens_per_s, prompt_ms, .. } = speeds;
    let prompt = format!("prompt of {prompt_tokens} tokens");
    print_line!(
        "  {prompt:<22} {prefill_tokens_per_s:>8.1} tokens/s   first token after {prompt_ms:.0} ms"
    );
    for rate in &speeds.at_once {
        print_rate(rate)?;
    }
    if let Some(bound) = model.memory_bound_tokens_per_s.filter(|bound| *bound > 0.0) {
        let share = speeds.decode_tokens_per_s() / bound * 100.0;
        print_line!(
            "  memory allows          {bound:>8.1} tokens/s   for 1 answer; {share:.0} % of it is reached"
        );
    }
    if let Some(of) = model.energy_of {
        print_line!("  energy is that of {of}");
    }
    if let Some([before, after]) = model.celsius {
        let limited = if model.is_throttled { "; the clock is limited" } else { "" };
        print_line!("  temperature            {before:>8.1} °C, then {after:.1} °C{limited}");
    }
    let pairs =
        speeds.at_once.iter().map(|rate| format!("{}:{:.1}", rate.answers, rate.tokens_per_s));
    let pairs: Vec<_> = pairs.collect();
    print_line!("  for simulate: --batch {}", pairs.join(","));
    Ok(())
}

fn print_rate(rate: &AnswersAtOnce) -> std::io::Result<()> {
    let AnswersAtOnce { answers, tokens_per_s, first_token_ms, joules_per_token } = rate;
    let name =
        if *answers == 1 { "1 answer".to_owned() } else { format!("{answers} answers at once") };
    let energy =
        joules_per_token.map_or_else(String::new, |joules| format!(", {joules:.3} J a token"));
    print_line!(
        "  {name:<22} {tokens_per_s:>8.1} tokens/s   first token after {first_token_ms:.0} ms{energy}"
    );
    Ok(())
}
