//! `ready`: waits until the running service is ready, or until its own models have answered a prompt.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::running::RunningService;
use super::{DONE, NOT_ANSWERED, NOT_READY};
use crate::clock::now;
use crate::ingress::probe::{ModelProbe, ProbeReport};
use crate::limits::DEADLINE_GRACE;
use crate::limits::golden::PROBE_ANSWER_MAX;
use crate::time::millis;

/// Pause between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// Wait until the running service is ready.
#[derive(Debug, clap::Args)]
pub(super) struct ReadyArgs {
    /// Let each model of this device answer a short prompt, and succeed only if all do.
    #[arg(long)]
    probe: bool,
    /// Longest time to wait, in seconds; 0 asks once.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(..=86_400))]
    wait: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ReadyArgs {
    pub(super) async fn run(self, path: Option<&Path>) -> anyhow::Result<u8> {
        let until = now() + Duration::from_secs(self.wait);
        // ends when the service is ready, or at the end of the time
        loop {
            let most = if self.probe { PROBE_ANSWER_MAX } else { PAUSE * 5 };
            let left = until.saturating_duration_since(now()).max(PAUSE);
            let most = if self.wait == 0 { most } else { most.min(left) };
            // the service may have started with another configuration since the last question
            let service = RunningService::find(path, most + DEADLINE_GRACE)?;
            let asked = if self.probe {
                let path = format!("/probe?deadline_ms={}", millis(most));
                service.ask_quietly(Method::POST, &path).await
            } else {
                service.ask_quietly(Method::GET, "/readyz").await
            };
            let is_done = asked.as_ref().is_some_and(|(code, _)| *code == StatusCode::OK);
            // a service of another version, or one that wants a token: waiting does not help
            let is_final = asked.as_ref().is_some_and(|(code, _)| {
                code.is_client_error() && *code != StatusCode::TOO_MANY_REQUESTS
            });
            if is_done || is_final || now() >= until {
                return self.print(asked, &service.addr.to_string());
            }
            tokio::time::sleep(PAUSE.min(until.saturating_duration_since(now()))).await;
        }
    }

    fn print(&self, asked: Option<(StatusCode, Value)>, addr: &str) -> anyhow::Result<u8> {
        let Some((code, body)) = asked else {
            print_error!("no service has answered at {addr}");
            return Ok(NOT_READY);
        };
        if self.json {
            print_line!("{body:#}");
        }
        if !self.probe {
            let is_ready = code == StatusCode::OK;
            if !self.json {
                print_line!("{}", if is_ready { "ready" } else { "not ready" });
            }
            if code.is_client_error() {
                print_error!("{addr} answers {code}");
            }
            return Ok(if is_ready { DONE } else { NOT_READY });
        }
        match serde_json::from_value::<ProbeReport>(body.clone()) {
            Ok(report) if !self.json => print_report(&report)?,
            Ok(_) => {}
            Err(_) => {
                let message = &body["error"]["message"];
                print_error!("{addr} can't be probed: {code}: {message}");
                return Ok(NOT_READY);
            }
        }
        Ok(if code == StatusCode::OK { DONE } else { NOT_ANSWERED })
    }
}

fn print_report(report: &ProbeReport) -> std::io::Result<()> {
    if report.models.is_empty() {
        print_error!("no model of this device is configured");
    }
    for ModelProbe { server, ms, tokens, reason, .. } in &report.models {
        match (reason, ms) {
            (Some(reason), _) => print_error!("{server}: {reason}"),
            (None, Some(ms)) => {
                print_line!("{server}: answered in {ms} ms, {} tokens", tokens.unwrap_or_default());
            }
            (None, None) => print_line!("{server}: answered"),
        }
    }
    Ok(())
}
