//! `calibrate`: runs labelled examples on the device's model and saves the cascade threshold of a
//! task.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, NOT_ANSWERED};
use crate::calibrate::{Aim, CalibratedThreshold, LabelledAnswer, Row, calibrate, least};
use crate::catalog::edit::set_in_task;
use crate::catalog::file_text;
use crate::catalog::golden::is_same;
use crate::config::Config;
use crate::daemon::{Core, calm};
use crate::dispatch::{Dispatch, LearnedStore};
use crate::limits::{CALIBRATION_BYTES_MAX, CALIBRATION_LINES_MAX, ENGINE_LOAD_MAX};
use crate::request::client::Client;
use crate::request::job::{Mode, Priority, Strategy};
use crate::scheduler::Verdict;
use crate::scheduler::strategy::{lacks, mean_logprob};
use crate::store::files;
use crate::strategy;
use crate::wire;
use crate::wire::Ask;

#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// The task of mcp.json.
    task: String,
    /// JSON lines: {"input": TEXT or {NAME: VALUE}, "answer": the right answer}, or "answers": a
    /// list of right answers. Comparison of texts ignores case, surrounding blanks and a final full
    /// stop.
    data: PathBuf,
    /// Maximum share of wrong answers among those kept on the device.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    wrong: f64,
    /// Confidence level of that share.
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, value_parser = share)]
    confidence: f64,
    /// Do not change mcp.json.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One labelled example of the data file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelledLine {
    input: Value,
    answer: Option<Value>,
    #[serde(default)]
    answers: Vec<Value>,
}

impl CalibrateArgs {
    pub(super) async fn run(self, config: Config) -> anyhow::Result<u8> {
        let aim = Aim { wrong_max: self.wrong, confidence: self.confidence };
        let lines = self.lines()?;
        let asks = lines.iter().enumerate().map(|(n, line)| {
            let ask = self.ask(&line.input);
            ask.check(&Client::known("calibrate"), &config.catalog)
                .with_context(|| format!("line {}", n + 1))
        });
        let jobs: Vec<_> = asks.collect::<Result<_, _>>()?;
        let needed = least(aim);
        ensure!(
            lines.len() >= needed,
            "{} samples are too few: a share of at most {} wrong answers with confidence {} needs \
             at least {needed}",
            lines.len(),
            self.wrong,
            self.confidence
        );
        // nothing is learned from it: the examples are not the device's usual load
        let core = Core::start(&config, calm(), LearnedStore::default(), None);
        if tokio::time::timeout(ENGINE_LOAD_MAX, core.dispatch.ready()).await.is_err() {
            bail!("no model was ready after {ENGINE_LOAD_MAX:?}");
        }
        let mut samples = Vec::with_capacity(jobs.len());
        for (n, (job, line)) in jobs.into_iter().zip(&lines).enumerate() {
            let sample = answer(&core.dispatch, job, line).await;
            samples.push(sample.with_context(|| format!("line {}", n + 1))?);
            progress(n + 1, lines.len());
        }
        core.stop().await;
        let found = match calibrate(&samples, aim) {
            Ok(found) => found,
            Err(few) => bail!(
                "only {} of {} answers are complete and fit their format; {} are needed",
                few.usable,
                samples.len(),
                few.least
            ),
        };
        self.print(&samples, &found)?;
        let Some(best) = found.best else {
            return Ok(NOT_ANSWERED);
        };
        if !self.dry_run {
            self.save(&config.path, best.threshold)?;
        }
        Ok(DONE)
    }

    fn lines(&self) -> anyhow::Result<Vec<LabelledLine>> {
        let shown = self.data.display();
        let bytes = files::read(&self.data, CALIBRATION_BYTES_MAX)
            .with_context(|| format!("{shown} cannot be read"))?;
        let text = file_text::decode(&bytes).map_err(|why| anyhow!("{shown} {why}"))?;
        let full = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let lines: Vec<LabelledLine> = full
            .map(|(n, text)| {
                let line: LabelledLine = wire::read(text.as_bytes())
                    .with_context(|| format!("{shown}, line {}", n + 1))?;
                let is_known = line.answer.is_some() == line.answers.is_empty();
                ensure!(is_known, "{shown}, line {}: give either answer or answers", n + 1);
                Ok(line)
            })
            .collect::<Result<_, _>>()?;
        ensure!(
            lines.len() <= CALIBRATION_LINES_MAX,
            "{shown} has {} samples, at most {CALIBRATION_LINES_MAX}",
            lines.len()
        );
        Ok(lines)
    }

    /// A request to the device's model alone, with the log-probabilities of its tokens.
    fn ask(&self, input: &Value) -> Ask {
        let (prompt, input) = match input.as_object() {
            Some(values) => (None, Some(values.clone())),
            None => (Some(input.as_str().map_or_else(|| input.to_string(), str::to_owned)), None),
        };
        Ask {
            task: Some(self.task.clone()),
            prompt,
            input,
            logprobs: Some(true),
            priority: Some(Priority::Batch),
            mode: Some(Mode::LocalOnly),
            strategy: Some(Strategy::Single),
            ..Ask::default()
        }
    }

    fn print(
        &self,
        samples: &[LabelledAnswer],
        found: &CalibratedThreshold,
    ) -> std::io::Result<()> {
        let right = samples.iter().filter(|sample| sample.right).count();
        if self.json {
            let row = |row: &Row| {
                json!({"threshold": shown(row.threshold), "kept": row.kept, "wrong": row.wrong,
                       "bound": row.bound})
            };
            let tried: Vec<Value> = found.tried.iter().map(row).collect();
            let best = found.best.as_ref().map(row);
            let all = samples.len();
            print_line!(
                "{}",
                json!({"samples": all, "right": right, "tried": tried, "best": best})
            );
            return Ok(());
        }
        print_line!("{} samples, {right} answered correctly by the device", samples.len());
        print_line!("threshold     kept    wrong   upper bound");
        for row in &found.tried {
            let Row { threshold, kept, wrong, bound } = row;
            print_line!("{threshold:9.4} {kept:8} {wrong:8} {:14.1} %", 100.0 * bound);
        }
        let (aim, sure) = (100.0 * self.wrong, 100.0 * self.confidence);
        match &found.best {
            Some(best) => print_line!(
                "threshold {}: {} of {} answers stay on the device; at most {aim} % of them are \
                 wrong (confidence {sure} %)",
                best.threshold,
                best.kept,
                samples.len()
            ),
            None => {
                let more = if right > 0 { ", or more samples" } else { "" };
                print_line!(
                    "no threshold keeps the wrong share at or below {aim} %; mcp.json is \
                     unchanged. Use another model or template{more}"
                );
            }
        }
        Ok(())
    }

    /// Writes the threshold into the configuration, atomically by a rename.
    fn save(&self, path: &Path, threshold: f32) -> anyhow::Result<()> {
        let shown = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
        let threshold = threshold.to_string();
        let values = [("threshold", threshold.as_str()), ("strategy", "\"cascade\"")];
        let text = set_in_task(&text, &self.task, &values)
            .map_err(|why| anyhow::anyhow!("{shown} cannot be changed: {why}"))?;
        // a link is resolved: the file beside which the part is written is the target
        let path = fs::canonicalize(path)?;
        let part = path.with_extension("part");
        let written = || -> std::io::Result<()> {
            let mut file = File::create(&part)?;
            file.set_permissions(fs::metadata(&path)?.permissions())?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        written().with_context(|| format!("{shown} cannot be written"))?;
        if !self.json {
            print_line!(
                "{shown}: threshold of task {} saved; a running service adopts it",
                self.task
            );
        }
        Ok(())
    }
}

/// Shows progress on standard error: in place on a terminal, else a line for every tenth sample.
fn progress(done: usize, all: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{done} of {all} samples{}", if done == all { "\n" } else { "" });
    } else if done.is_multiple_of(10) {
        eprintln!("{done} of {all} samples");
    }
}

/// The threshold with the digits that are written into the configuration.
fn shown(threshold: f32) -> Option<f64> {
    threshold.to_string().parse().ok()
}

async fn answer(
    dispatch: &Dispatch,
    job: crate::request::job::Job,
    line: &LabelledLine,
) -> anyhow::Result<LabelledAnswer> {
    let format = job.format.clone();
    let (text, end) = strategy::submit(dispatch, job).await?.collect().await;
    let usage = match (end.verdict, end.usage) {
        (Verdict::Done, Some(usage)) => usage,
        (Verdict::Refused(refusal), _) => bail!("the device refused the sample: {refusal}"),
        // an answer that failed is not kept on the device
        (_, _) => return Ok(LabelledAnswer { score: None, right: false }),
    };
    let fits = lacks(&format, &text, &usage, None).is_none();
    let score = mean_logprob(&usage).filter(|_| fits);
    let right = line.answer.iter().chain(&line.answers).any(|right| is_same(right, &text));
    Ok(LabelledAnswer { score, right })
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if share > 0.0 && share < 1.0 { Ok(share) } else { Err("must be between 0 and 1".to_owned()) }
}
