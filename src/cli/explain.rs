//! `explain`: says a decision record in words, and decides again from its figures.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::{BROKE, DONE};
use crate::scheduler::decision::{Attempt, Decision, Figures};
use crate::scheduler::explain;

/// Largest record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A reply or a decision record as JSON: the text itself, a file, or - for standard input.
    record: String,
}

impl ExplainArgs {
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let decision = self.read()?;
        print(&decision)?;
        match explain(&decision) {
            Ok((route, reason)) if route == decision.route && reason == decision.reason => {
                say!("decided again from these figures: the same");
                Ok(DONE)
            }
            Ok((route, reason)) => {
                say!("decided again from these figures: {}, {}", route.name(), reason.word());
                Ok(BROKE)
            }
            Err(why) => bail!("it can't be decided again: {why}"),
        }
    }

    fn read(&self) -> anyhow::Result<Decision> {
        let text = if self.record == "-" {
            let mut text = String::new();
            std::io::stdin().take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
            text
        } else if self.record.trim_start().starts_with('{') {
            self.record.clone()
        } else {
            let path = PathBuf::from(&self.record);
            std::fs::read_to_string(&path).with_context(|| {
                format!("{:?} is no record and no file that can be read", self.record)
            })?
        };
        let mut value: Value = serde_json::from_str(&text).context("the record is not JSON")?;
        // a whole reply, or an answer of the HTTP door
        for key in ["pilotlight", "decision"] {
            if let Some(inner) = value.get_mut(key) {
                value = inner.take();
            }
        }
        serde_json::from_value(value).context("this is no decision record")
    }
}

fn print(decision: &Decision) -> std::io::Result<()> {
    say!("went: {} because of {}", decision.route.name(), decision.reason.word());
    for attempt in &decision.attempts {
        let Attempt { server, outcome, ms, .. } = attempt;
        say!("tried: {server}, {} after {ms} ms", outcome.name());
    }
    if let Some(predicted) = decision.predicted_ms {
        say!(
            "expected when it came: {:.0} ms in one of two cases, {:.0} ms in 19 of 20",
            predicted.p50,
            predicted.p95
        );
    }
    if let Some(figures) = &decision.figures {
        print_figures(figures)?;
    }
    Ok(())
}

fn print_figures(figures: &Figures) -> std::io::Result<()> {
    let Figures { duty, stage, cause, ahead, line, own, away, servers, .. } = figures;
    say!(
        "the device: {} by {}, engines compute {:.0} % of the time",
        stage.name(),
        cause.name(),
        duty * 100.0
    );
    for server in servers {
        let state = match server.lacks {
            Some(lack) => format!("not: {}", lack.word()),
            None if server.full => "had no room".to_owned(),
            None => "could be asked".to_owned(),
        };
        say!("{} ({}): {state}", server.server, server.locality.name());
    }
    if ahead.worst > 0.0 {
        say!(
            "before its group: {:.0} ms likely, {:.0} careful, {:.0} at worst",
            ahead.p50,
            ahead.p95,
            ahead.worst
        );
    }
    for (at, case) in line.iter().enumerate() {
        say!(
            "{} {:.0} ms likely, {:.0} careful, {:.0} at worst; {:.0} ms to its deadline{}",
            if at == *own { "this one:" } else { "in line: " },
            case.work.p50,
            case.work.p95,
            case.work.worst,
            case.left,
            if case.offload_deadline.is_some() { "" } else { ", must stay" },
        );
    }
    if let Some(away) = away {
        say!("an answer from elsewhere: {:.0} ms likely, {:.0} careful", away.p50, away.p95);
    }
    Ok(())
}
