//! `status`: the state of the running service, read from its HTTP interface.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use reqwest::Method;

use super::running::RunningService;
use super::{DONE, NOT_READY};
use crate::model::context::{ModelContext, Runtime};
use crate::model::health::Health;
use crate::pressure::level::PressureStage;
use crate::status::{
    BrokerState, BrokerStatus, ConfigOrigin, ConfigStatus, DeviceStatus, ServiceStatus,
};

/// Longest time for which the service's answer is waited for.
const STATUS_MAX: Duration = Duration::from_secs(5);

pub(super) async fn run(path: Option<&Path>, json: bool) -> anyhow::Result<u8> {
    let service = RunningService::find(path, STATUS_MAX)?;
    let addr = service.addr;
    let Some((_, body)) = service.ask(Method::GET, "/readyz").await? else {
        return Ok(NOT_READY);
    };
    if json {
        print_line!("{body:#}");
    }
    let code = if body["ready"] == true { DONE } else { NOT_READY };
    if body["ready"].is_boolean() && body["version"].is_null() {
        let ready = if code == DONE { "ready" } else { "not ready" };
        print_error!(
            "pilotlight at {addr}: {ready}; its details need the token of the service: set \
             PILOTLIGHT_HTTP_TOKEN"
        );
        return Ok(code);
    }
    let status: ServiceStatus = serde_json::from_value(body)
        .with_context(|| format!("{addr} answers, but not as this version of pilotlight"))?;
    if !json {
        print(&status, &addr.to_string())?;
    }
    Ok(code)
}

fn print(status: &ServiceStatus, addr: &str) -> std::io::Result<()> {
    let ready = if status.ready { "ready" } else { "not ready" };
    print_line!("pilotlight {} at {addr}: {ready}", status.version);
    print_line!("jobs: {} waiting, {} running", status.waiting, status.running);
    let spent = status.spent_usd;
    if spent.month > 0.0 {
        let (hour, day, month) = (spent.hour, spent.day, spent.month);
        print_line!("spent: {hour} USD this hour, {day} USD today, {month} USD this month");
    }
    if let Some(clock) = &status.clock {
        print_line!("clock: {clock}");
    }
    print_config(&status.config)?;
    print_line!("device: {}", device(&status.device));
    if let Some(BrokerStatus { state, problems, undelivered }) = &status.mqtt {
        match state {
            BrokerState::Up => print_line!("broker: up"),
            BrokerState::Down { reason } => print_line!("broker: down {reason}"),
        }
        for problem in problems {
            print_line!("  {problem}");
        }
        for (kind, count) in undelivered {
            print_line!("  {count} message(s) not delivered: {kind}");
        }
    }
    for server in &status.servers {
        let (name, place) = (&server.server, server.locality.name());
        match &server.health {
            Health::Starting => print_line!("{name} ({place}): starting"),
            Health::Ready => print_line!("{name} ({place}): ready"),
            Health::Unavailable { reason } => {
                print_line!("{name} ({place}): unavailable: {reason}");
            }
            Health::Failed { reason } => {
                print_line!("{name} ({place}): can't be started: {reason}");
            }
            Health::Quarantined { reason } => {
                print_line!("{name} ({place}): quarantined: {reason}");
            }
        }
        if let Some(ModelContext { identification, runtime, .. }) = &server.context {
            print_line!("  {}", model(&identification.name, runtime));
            if let Some(why) = &runtime.fallback {
                print_line!("  requested accelerator not used: {why}");
            }
        }
    }
    Ok(())
}

/// The configuration in force, and what is wrong with the one that was offered after it.
pub(super) fn print_config(config: &ConfigStatus) -> std::io::Result<()> {
    let (version, digest) = (config.version, &config.digest);
    let source = match config.source {
        ConfigOrigin::File => "the local file",
        ConfigOrigin::Update => "a signed update",
    };
    print_line!("configuration: version {version} of {source}, {digest}");
    if let Some(offered) = config.offered {
        let reason = config.reason.as_ref().map(|reason| format!(": {reason}"));
        let state = config.state.name();
        print_line!("  update {offered}: {state}{}", reason.unwrap_or_default());
    }
    if !config.restart_required.is_empty() {
        print_line!("  needs a restart: {}", config.restart_required.join(", "));
    }
    if config.is_refused() {
        print_line!("  the changed configuration is refused; the one above stays in force:");
        for mistake in &config.mistakes {
            print_line!("  {mistake}");
        }
    }
    Ok(())
}

/// Temperature, memory and pressure of the device in one line.
fn device(device: &DeviceStatus) -> String {
    let heat = device.temperature_c;
    let heat = heat.map_or("temperature unknown".to_owned(), |celsius| format!("{celsius:.1} °C"));
    let memory = device.memory_available_mb;
    let memory = memory.map_or(String::new(), |mb| format!(", {mb} MiB of memory available"));
    let percent = device.duty * 100.0;
    let stage = device.stage.name();
    let cause = match device.stage {
        PressureStage::Calm => String::new(),
        PressureStage::Paced
        | PressureStage::Shed
        | PressureStage::Closed
        | PressureStage::Unload => format!(" by {}", device.cause.name()),
    };
    format!("{heat}{memory}; pressure level {stage}{cause}, duty cycle {percent:.0} %")
}

/// One line about a loaded model, without the figures that it does not have: a provider has no
/// quantization, memory or load time, an encoder no decode rate.
fn model(name: &str, runtime: &Runtime) -> String {
    let rate = |name: &str, rate: Option<f64>| rate.map(|rate| format!("{name} {rate} tokens/s"));
    let known = |number: u64| Some(number).filter(|number| *number > 0);
    let title = joined(&[name, &runtime.quantization]);
    let place = joined(&[&runtime.backend, &runtime.version]);
    let parts = [
        Some(format!("{title} on {place}")),
        runtime.cpu_variant.as_ref().map(|variant| format!("code for {variant}")),
        known(runtime.memory_bytes).map(|bytes| format!("{} MiB", bytes >> 20)),
        rate("prefill", runtime.prefill_tokens_per_s),
        rate("decode", runtime.decode_tokens_per_s),
        known(runtime.load_ms).map(|ms| format!("loaded in {ms} ms")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Texts with a blank between them, without those that are empty.
fn joined(texts: &[&str]) -> String {
    let texts = texts.iter().copied().filter(|text| !text.is_empty());
    texts.collect::<Vec<_>>().join(" ")
}
