//! `model prepare`: quantizes a GGUF model in several ways, measures each on this machine, and writes the best.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use serde_json::json;

use crate::benchmark::choice::{MeasuredWeights, WeightsLimits, choose, near_best};
use crate::benchmark::loss::{WeightsLoss, tokens_max};
use crate::benchmark::{BenchmarkPlan, measure};
use crate::catalog::file_text;
use crate::cli::bench::progress;
use crate::cli::{DONE, NOT_ANSWERED};
use crate::device::memory;
use crate::engines::gguf::quantize::{GgufWeights, quantize};
use crate::engines::gguf::{GgufOptions, open};
use crate::engines::worker::{Calibration, OnThread, PromptProgress};
use crate::limits::REASON_BYTES_MAX;
use crate::limits::benchmark::{BENCHMARK_ROUNDS, BENCHMARK_ROUNDS_MAX, LOSS_TEXT_BYTES_MAX};
use crate::model::generate::Generate;
use crate::request::refusal::one_line;
use crate::store::files;

/// Text with which weights are compared if no other is given: requests and answers of several kinds.
const SAMPLE: &str = include_str!("../../benchmark/sample.txt");
/// Bytes of a token in a text: two for [`SAMPLE`], and one at least.
const TOKEN_BYTES: [usize; 2] = [2, 1];

#[derive(Debug, Args)]
pub(in crate::cli) struct PrepareArgs {
    /// GGUF file.
    from: PathBuf,
    /// File to write, unless the model is best as it is; on an error no partial file remains.
    to: PathBuf,
    /// Most mean Kullback-Leibler divergence of the predictions from those of FROM, in nats.
    #[arg(long, value_name = "NATS", default_value_t = 0.05)]
    loss_max: f64,
    /// Most memory of the engine, in MiB (default: what is available).
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u64>,
    /// Text with which the predictions are compared, best one like the prompts and answers of the application.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a usual prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    prompt: u32,
    /// Tokens of a usual answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    answer: u32,
    /// Usual number of requests at once.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    at_once: u32,
    /// Context length, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    context: u32,
    /// Rounds of each measurement, besides one that warms up.
    #[arg(long, value_name = "COUNT", default_value_t = BENCHMARK_ROUNDS)]
    rounds: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Measured weights with their file and their loss.
struct PreparedWeights {
    measured: MeasuredWeights,
    loss: Option<WeightsLoss>,
    /// None for the original.
    file: Option<tempfile::TempPath>,
}

impl PrepareArgs {
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        self.check()?;
        let text = self.text()?;
        let memory_max = self.memory_mb.map_or_else(
            || memory::read().map_or(u64::MAX, |memory| memory.available),
            |mib| mib.saturating_mul(1 << 20),
        );
        let limits = WeightsLimits { divergence_max: self.loss_max, memory_max };
        let (original, reading) = self.original(&text).await?;
        self.print_head()?;
        self.print(&original, limits)?;
        let own = original.measured.weights.clone();
        let mut all = vec![original];
        for weights in GgufWeights::ALL.into_iter().filter(|weights| weights.name() != own) {
            let candidate = self.candidate(weights, &reading, limits).await;
            let candidate = candidate.unwrap_or_else(|error| without_measurement(weights, &error));
            self.print(&candidate, limits)?;
            all.push(candidate);
            drop_files(&mut all, limits);
        }
        self.finish(all, limits)
    }

    fn check(&self) -> anyhow::Result<()> {
        let rounds = BENCHMARK_ROUNDS_MAX;
        ensure!((1..=rounds).contains(&self.rounds), "--rounds is from 1 to {rounds}");
        ensure!(self.loss_max >= 0.0, "--loss-max is a number of nats, 0 or more");
        ensure!(self.prompt > 0 && self.answer > 0, "--prompt and --answer are at least 1");
        ensure!(self.at_once > 0, "--at-once is at least 1");
        let shown = self.to.display();
        ensure!(!self.to.exists(), "{shown} is there already; remove it, or name another file");
        Ok(())
    }

    fn text(&self) -> anyhow::Result<String> {
        let Some(path) = &self.text else { return Ok(SAMPLE.to_owned()) };
        let shown = path.display();
        let bytes = files::read(path, LOSS_TEXT_BYTES_MAX)
            .with_context(|| format!("{shown} cannot be read"))?;
        let text = file_text::decode(&bytes).map_err(|why| anyhow!("{shown} {why}"))?;
        ensure!(!text.trim().is_empty(), "{shown} is empty");
        Ok(text.to_owned())
    }

    /// The model as it is, and its predictions for the text.
    async fn original(&self, text: &str) -> anyhow::Result<(PreparedWeights, TextReading)> {
        let model = self.open(&self.from).await?;
        let context = model.context().clone();
        let (vocabulary, length) =
            (context.tokenizer.vocab_size, context.capabilities.context_tokens);
        let bytes = TOKEN_BYTES[usize::from(self.text.is_some())];
        let text = beginning(text, bytes * tokens_max(vocabulary, length) as usize);
        let predictions = model.read(&text).await?;
        ensure!(predictions.tokens.len() > 1, "the text to compare has less than two tokens");
        let measured = self.measured(&model, &self.from, Some(0.0)).await?;
        let candidate = PreparedWeights { measured, loss: Some(WeightsLoss::NONE), file: None };
        Ok((candidate, TextReading { text, predictions }))
    }

    /// The model with other weights; not loaded if they have no room.
    async fn candidate(
        &self,
        weights: GgufWeights,
        reading: &TextReading,
        limits: WeightsLimits,
    ) -> anyhow::Result<PreparedWeights> {
        let folder = self.to.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".prepare-").suffix(".gguf").tempfile_in(folder);
        let file =
            file.with_context(|| format!("no file can be written to {}", folder.display()))?;
        let file = file.into_temp_path();
        quantize(&self.from, &file, weights)?;
        let file_bytes = fs::metadata(&file)?.len();
        if file_bytes > limits.memory_max {
            let measured = MeasuredWeights::unmeasured(weights.name(), file_bytes);
            return Ok(PreparedWeights { measured, loss: None, file: None });
        }
        let model = self.open(&file).await?;
        let predictions = model.read(&reading.text).await?;
        let loss = WeightsLoss::of(&reading.predictions, &predictions);
        drop(predictions);
        let Some(loss) = loss else { bail!("its tokens differ from those of the original") };
        let measured = self.measured(&model, &file, Some(loss.divergence)).await?;
        let measured = MeasuredWeights { weights: weights.name().to_owned(), ..measured };
        Ok(PreparedWeights { measured, loss: Some(loss), file: Some(file) })
    }

    async fn measured(
        &self,
        model: &OnThread,
        file: &Path,
        divergence: Option<f64>,
    ) -> anyhow::Result<MeasuredWeights> {
        let context = model.context();
        let mut plan = BenchmarkPlan::of(context, self.rounds);
        plan.at_once.retain(|answers| *answers == 1 || *answers <= self.at_once);
        let speeds = measure(model, &plan, None, progress).await?;
        Ok(MeasuredWeights {
            weights: context.runtime.quantization.clone(),
            file_bytes: fs::metadata(file)?.len(),
            memory_bytes: context.runtime.memory_bytes,
            divergence,
            request_s: Some(speeds.request_s(self.prompt, self.answer, self.at_once)),
            speeds: Some(speeds),
            problem: None,
        })
    }

    async fn open(&self, path: &Path) -> anyhow::Result<OnThread> {
        let options = GgufOptions {
            path: path.to_owned(),
            name: None,
            context_tokens: self.context,
            threads: 0,
            decode_threads: 0,
            gpu_layers: 0,
            calibration: Calibration::default(),
            prefixes: None,
        };
        Ok(open(options).await?)
    }

    /// Keeps the best file under its name.
    fn finish(&self, mut all: Vec<PreparedWeights>, limits: WeightsLimits) -> anyhow::Result<u8> {
        let rows = measured(&all);
        let best = choose(&rows, limits);
        let written = match best.and_then(|at| all[at].file.take()) {
            Some(file) => {
                let shown = self.to.display();
                fs::File::open(&file)?.sync_all()?;
                file.persist_noclobber(&self.to)
                    .with_context(|| format!("{shown} cannot be written"))?;
                Some(&self.to)
            }
            None => None,
        };
        if self.json {
            let rows = all.iter().map(|one| json!({"measured": one.measured, "loss": one.loss}));
            let rows: Vec<_> = rows.collect();
            let best = best.map(|at| &all[at].measured.weights);
            print_line!("{:#}", json!({"candidates": rows, "best": best, "written": written}));
        } else {
            match (best, written) {
                (Some(at), Some(path)) => {
                    print_line!("best: {}, written to {}", rows[at].weights, path.display());
                }
                (Some(at), None) => {
                    let (name, from) = (&rows[at].weights, self.from.display());
                    print_line!("best: {name} as it is; use {from}, nothing is written");
                }
                (None, _) => print_line!("no weights keep to the limits; nothing is written"),
            }
        }
        Ok(if best.is_some() { DONE } else { NOT_ANSWERED })
    }

    fn print_head(&self) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        let PrepareArgs { prompt, answer, at_once, .. } = self;
        print_line!(
            "time of a request: {at_once} at once with a prompt of {prompt} tokens and an answer of {answer}"
        );
        print_line!(
            "{:8} {:>9} {:>11} {:>9} {:>9} {:>9} {:>10} {:>11} {:>11}",
            "weights",
            "file MiB",
            "memory MiB",
            "prefill",
            "decode",
            "request s",
            "same token",
            "divergence",
            "perplexity"
        );
        Ok(())
    }

    fn print(&self, candidate: &PreparedWeights, limits: WeightsLimits) -> std::io::Result<()> {
        if self.json {
            return Ok(());
        }
        let PreparedWeights { measured, loss, .. } = candidate;
        let (file, memory) = (measured.file_bytes >> 20, measured.memory_bytes >> 20);
        let excluded = measured.excluded(limits).map_or_else(String::new, |why| format!("  {why}"));
        let name = &measured.weights;
        match (&measured.speeds, measured.request_s, loss) {
            (Some(speeds), Some(time), Some(loss)) => print_line!(
                "{name:8} {file:>9} {memory:>11} {:>9.1} {:>9.1} {time:>9.2} {:>9.1}% {:>11.4} {:>11.3}{excluded}",
                speeds.prefill_tokens_per_s,
                speeds.decode_tokens_per_s(),
                loss.same_first * 100.0,
                loss.divergence,
                loss.perplexity
            ),
            (_, _, _) => print_line!("{name:8} {file:>9} {memory:>11}{excluded}"),
        }
        Ok(())
    }
}

/// A text with the predictions of the original.
struct TextReading {
    text: String,
    predictions: PromptProgress,
}

fn measured(all: &[PreparedWeights]) -> Vec<MeasuredWeights> {
    all.iter().map(|candidate| candidate.measured.clone()).collect()
}

/// Weights that could not be measured.
fn without_measurement(weights: GgufWeights, error: &anyhow::Error) -> PreparedWeights {
    let problem = Some(one_line(&format!("{error:#}"), REASON_BYTES_MAX));
    let measured = MeasuredWeights { problem, ..MeasuredWeights::unmeasured(weights.name(), 0) };
    PreparedWeights { measured, loss: None, file: None }
}

/// Removes the files of those that can't become the best, so that the disk holds few.
fn drop_files(all: &mut [PreparedWeights], limits: WeightsLimits) {
    let near = near_best(&measured(all), limits);
    for (at, candidate) in all.iter_mut().enumerate() {
        if !near.contains(&at) {
            candidate.file = None;
        }
    }
}

/// The first bytes of a text, up to a whole character.
fn beginning(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}
