//! `explain`: prints a decision record, and replays the decision from its figures.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::{BROKE, DONE};
use crate::scheduler::decision::{Attempt, Decision, Figures, Predicted, Reason};
use crate::scheduler::explain;

/// Maximum size of a record in bytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Reply or decision record as JSON: the text itself, a file, or - for standard input.
    record: String,
}

impl ExplainArgs {
    pub(super) fn run(&self) -> anyhow::Result<u8> {
        let decision = self.read()?;
        print(&decision)?;
        match explain(&decision) {
            Ok((route, reason)) if route == decision.route && reason == decision.reason => {
                print_line!("replayed: same decision");
                Ok(DONE)
            }
            Ok((route, reason)) => {
                print_line!("replayed: other decision: {}, {}", route.name(), reason.name());
                Ok(BROKE)
            }
            Err(why) => bail!("the decision cannot be replayed: {why}"),
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
                format!("{:?} is neither a decision record nor a readable file", self.record)
            })?
        };
        let mut value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .context("the record is not JSON")?;
        // a whole reply, or a response of the HTTP interface
        for key in ["pilotlight", "decision"] {
            if let Some(inner) = value.get_mut(key) {
                value = inner.take();
            }
        }
        serde_json::from_value(value).context("not a decision record")
    }
}

fn print(decision: &Decision) -> std::io::Result<()> {
    let Decision { route, reason, .. } = decision;
    print_line!("Route: {}. Reason: {} ({}).", route.name(), meaning(*reason), reason.name());
    for attempt in &decision.attempts {
        let Attempt { server, outcome, ms, .. } = attempt;
        print_line!("Attempt: {server}: {} after {ms} ms", outcome.name());
    }
    if let Some(predicted) = decision.predicted_ms.filter(Predicted::is_plausible) {
        print_line!(
            "Predicted at arrival: {:.0} ms (median), {:.0} ms (95 %)",
            predicted.p50,
            predicted.p95
        );
    }
    if let Some(figures) = &decision.figures {
        print_figures(figures)?;
    }
    Ok(())
}

/// Meaning of a reason, as in `docs/configuration.md`.
fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::Feasible => "the preferred side can answer in time",
        Reason::Rule => "a rule of the task gave the answer",
        Reason::Mode => "the request named or forbade a locality",
        Reason::Context => "the prompt exceeds the context length of the preferred model",
        Reason::Schema => "the preferred model does not support JSON Schema",
        Reason::Tools => "the preferred model does not support tool calls",
        Reason::Skill => "the preferred model lacks a required capability",
        Reason::Model => "no model has the requested name",
        Reason::Confidence => "the confidence of the preferred model was too low",
        Reason::Shape => "the first answer did not fit its format",
        Reason::CutOff => "the first answer was cut off",
        Reason::Strategy => "models cooperated as requested",
        Reason::Policy => "the usage policy of the preferred model forbids the answer",
        Reason::Redaction => "a value that cannot be redacted keeps the request on this device",
        Reason::Budget => "a spending cap leaves nothing for the preferred model",
        Reason::Unhealthy => "the preferred model failed or is unavailable",
        Reason::Deadline => "the preferred model would have been late, or was late",
        Reason::Hot => "the device would have answered in time without heat",
        Reason::Memory => "the device would have answered in time with more memory",
        Reason::Disk => "the device would have answered in time with more disk space",
        Reason::Queue => "the queue is full",
        Reason::Draining => "the service is stopping",
        Reason::Hops => "the request passed too many services, or came from a peer already",
        Reason::Cancelled => "the client disconnected",
    }
}

fn print_figures(figures: &Figures) -> std::io::Result<()> {
    let Figures { duty, stage, cause, ahead, line, own, away, servers, .. } = figures;
    print_line!(
        "Pressure level: {}, cause: {}, duty cycle {:.0} %",
        stage.name(),
        cause.name(),
        duty * 100.0
    );
    for server in servers {
        let state = match server.lacks {
            Some(lack) => format!("not available: {}", lack.name()),
            None if server.full => "busy (all slots taken)".to_owned(),
            None => "available".to_owned(),
        };
        print_line!("{} ({}): {state}", server.server, server.locality.name());
    }
    if ahead.worst > 0.0 {
        print_line!(
            "Queued before: {:.0} ms (median), {:.0} (95 %), {:.0} (worst case)",
            ahead.p50,
            ahead.p95,
            ahead.worst
        );
    }
    for (at, case) in line.iter().enumerate() {
        print_line!(
            "{} {:.0} ms (median), {:.0} (95 %), {:.0} (worst case); deadline in {:.0} ms{}",
            if at == *own { "This request:" } else { "Queued request:" },
            case.work.p50,
            case.work.p95,
            case.work.worst,
            case.left,
            if case.offload_deadline.is_some() { "" } else { "; no other model may answer" },
        );
    }
    if let Some(away) = away {
        print_line!("Remote answer: {:.0} ms (median), {:.0} (95 %)", away.p50, away.p95);
    }
    Ok(())
}
