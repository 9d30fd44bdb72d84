//! `simulate`: runs the scheduler over a day of a board model with generated requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::json;

use super::DONE;
use super::live::live;
use crate::catalog::file_text;
use crate::config::Config;
use crate::model::batch::BatchRates;
use crate::pressure::SensorSample;
use crate::simulate::board::{BOARDS, SimulatedBoard};
use crate::simulate::draw;
use crate::simulate::load::Demand;
use crate::simulate::policy::{POLICIES, Policy};
use crate::simulate::table::{over, table};
use crate::simulate::world::{DayResult, DaySetup};

/// Longest simulated day in hours.
const HOURS_MAX: f64 = 24.0 * 14.0;
/// Jobs of an engine beside those that it computes: they are paused.
const PAUSED_JOBS: u32 = 2;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub(super) struct SimulateArgs {
    /// Board model: pi4, pi5, orin or study.
    #[arg(long, default_value = "pi5")]
    board: String,
    /// Offered load relative to unthrottled capacity.
    #[arg(long, default_value_t = 1.0)]
    load: f64,
    /// Factor by which one minute in ten has more prompts.
    #[arg(long, default_value_t = 1.0)]
    burst: f64,
    /// Simulated hours.
    #[arg(long, default_value_t = 6.0)]
    hours: f64,
    /// Number of simulated days, each with the next seed.
    #[arg(long, default_value_t = 1)]
    days: u64,
    /// Seed of the first day; equal seeds give equal days.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Jobs that the engine holds; it computes the most urgent ones. By default two more than its batch.
    #[arg(long)]
    slots: Option<u32>,
    /// Speeds of the engine's batches, as its ModelContext states them, as pairs of answers and tokens a second, such as 1:20,2:34,4:50.
    #[arg(long, value_name = "SPEEDS", value_parser = batch_rates)]
    batch: Option<BatchRates>,
    /// Do not simulate memory pressure by another program.
    #[arg(long)]
    memory_plenty: bool,
    /// Replay recorded samples (`doctor --samples`) instead of the board's heat model.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Ask the configured models in real time; only the heat is simulated.
    #[arg(long, conflicts_with_all = ["compare", "trace", "days", "slots", "batch", "memory_plenty"])]
    engine: bool,
    /// Compare the scheduler with simple policies.
    #[arg(long)]
    compare: bool,
    /// Write a chart of the last day to this SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl SimulateArgs {
    /// Whether the configured models are asked, which needs the configuration.
    pub(super) fn is_live(&self) -> bool {
        self.engine
    }

    /// Runs the simulation; `config` is given for the configured models.
    pub(super) async fn run(&self, config: Option<Config>) -> anyhow::Result<u8> {
        let board = BOARDS.iter().find(|board| board.name == self.board).with_context(|| {
            let known: Vec<&str> = BOARDS.iter().map(|board| board.name).collect();
            format!("unknown board {:?}; known: {}", self.board, known.join(", "))
        })?;
        for (name, value, most) in [
            ("--load", self.load, 10.0),
            ("--burst", self.burst, 100.0),
            ("--hours", self.hours, HOURS_MAX),
        ] {
            if !(value > 0.0 && value <= most) {
                bail!("{name} is {value}; it must be above 0 and at most {most}");
            }
        }
        let batch = self.batch.clone().unwrap_or_default();
        let slots = self.slots.unwrap_or(batch.width() + PAUSED_JOBS);
        if !(1..=64).contains(&slots) || !(1..=100).contains(&self.days) {
            bail!("--slots must be 1 to 64 and --days 1 to 100");
        }
        let length = Duration::from_secs_f64(self.hours * 3600.0);
        let demand = Demand { load: self.load, burst: self.burst, length };
        if let Some(config) = config {
            let outcome = live(board, demand, self.seed, config).await?;
            self.print_live(board, &outcome)?;
            self.draw(board, &outcome)?;
            return Ok(DONE);
        }
        let given = DaySetup {
            seed: self.seed,
            slots,
            batch,
            memory_runs_short: !self.memory_plenty,
            trace: self.trace.as_deref().map(read_trace).transpose()?.map(Arc::new),
        };
        let policies = if self.compare { POLICIES.to_vec() } else { vec![Policy::Ours] };
        let outcome = |policy| (policy, over(board, demand, self.days, policy, &given));
        let outcomes: Vec<(Policy, DayResult)> = policies.into_iter().map(outcome).collect();
        self.print(board, &outcomes)?;
        if let Some((_, ours)) = outcomes.last() {
            self.draw(board, ours)?;
        }
        Ok(DONE)
    }

    fn draw(&self, board: &SimulatedBoard, outcome: &DayResult) -> anyhow::Result<()> {
        if let Some(file) = &self.svg {
            let title = format!(
                "{}: load {}, burst factor {}, seed {}",
                board.name,
                self.load,
                self.burst,
                self.seed + self.days - 1
            );
            fs::write(file, draw(board, outcome, &title))
                .with_context(|| format!("{} cannot be written", file.display()))?;
            eprintln!("chart written to {}", file.display());
        }
        Ok(())
    }

    /// Prints a day of the configured models, for which needless offloads are unknown.
    fn print_live(&self, board: &SimulatedBoard, outcome: &DayResult) -> std::io::Result<()> {
        if self.json {
            let mut record = record(Policy::Ours, outcome);
            record["needless"] = serde_json::Value::Null;
            print_line!("{:#}", json!({"board": board.name, "policies": [record]}));
            return Ok(());
        }
        let DayResult { jobs, away, missed, peak_c, hot_s, .. } = outcome;
        print_line!(
            "{jobs} prompts: {away} offloaded {:?}, {missed} deadlines missed; peak {peak_c:.1} \
             °C, {hot_s:.0} s above the trip point",
            outcome.reasons
        );
        Ok(())
    }

    fn print(
        &self,
        board: &SimulatedBoard,
        outcomes: &[(Policy, DayResult)],
    ) -> std::io::Result<()> {
        if self.json {
            let all: Vec<_> = outcomes.iter().map(|(policy, o)| record(*policy, o)).collect();
            print_line!("{:#}", json!({"board": board.name, "policies": all}));
            return Ok(());
        }
        print_line!("{}", table(outcomes));
        if let Some((_, ours)) = outcomes.last() {
            let reasons: Vec<String> =
                ours.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            print_line!(
                "{} prompts; offloaded by the scheduler, by reason: {}",
                ours.jobs,
                reasons.join(", ")
            );
        }
        Ok(())
    }
}

fn record(policy: Policy, outcome: &DayResult) -> serde_json::Value {
    json!({
        "policy": policy.name(), "jobs": outcome.jobs, "away": outcome.away,
        "needless": outcome.needless, "missed": outcome.missed, "tokens": outcome.tokens,
        "away_tokens": outcome.away_tokens, "hot_s": outcome.hot_s,
        "mode_changes": outcome.mode_changes, "hours": outcome.hours, "peak_c": outcome.peak_c,
        "reasons": outcome.reasons,
    })
}

fn read_trace(path: &Path) -> anyhow::Result<Vec<SensorSample>> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let text = file_text::decode(&bytes).map_err(|why| anyhow!("{} {why}", path.display()))?;
    let read = |(n, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| {
            format!(
                "{}, line {}: not a sample; record samples with `pilotlight doctor --samples`",
                path.display(),
                n + 1
            )
        })
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let samples: Vec<SensorSample> = lines.map(read).collect::<anyhow::Result<_>>()?;
    if samples.is_empty() {
        bail!("{} contains no samples", path.display());
    }
    Ok(samples)
}

/// Reads the value of `--batch`.
fn batch_rates(text: &str) -> Result<BatchRates, String> {
    let step = |pair: &str| {
        let (answers, rate) = pair.split_once(':')?;
        let (answers, rate): (u32, f64) = (answers.trim().parse().ok()?, rate.trim().parse().ok()?);
        Some((answers, f64::from(answers) / rate * 1e3))
    };
    let steps: Option<Vec<(u32, f64)>> = text.split(',').map(step).collect();
    let rates = BatchRates::of_steps(&steps.unwrap_or_default());
    if rates.is_empty() {
        return Err(
            "expected pairs such as 1:20,2:34,4:50: answers at once from 1 on, and their tokens a \
                    second together"
                .to_owned(),
        );
    }
    Ok(rates)
}
