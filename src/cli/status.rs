//! `status`: the state of the running service, read from its HTTP interface.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::{DONE, NOT_READY};
use crate::config::Config;
use crate::model::context::{ModelContext, Runtime};
use crate::model::health::Health;
use crate::pressure::level::PressureStage;
use crate::status::{BrokerStatus, DeviceStatus, ServiceStatus};

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(http) = &config.http else {
        bail!("status needs the HTTP interface, which is off; set PILOTLIGHT_HTTP");
    };
    let addr = http.listen;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    let answer = client.get(format!("http://{addr}/readyz")).send().await;
    let Ok(answer) = answer else {
        eprintln!("no service answers at {addr}");
        return Ok(NOT_READY);
    };
    let body: Value = answer.json().await?;
    if json {
        say!("{body:#}");
    }
    let status: ServiceStatus = serde_json::from_value(body)
        .with_context(|| format!("{addr} answers, but not as this version of pilotlight"))?;
    if !json {
        print(&status, &addr.to_string())?;
    }
    Ok(if status.ready { DONE } else { NOT_READY })
}

fn print(status: &ServiceStatus, addr: &str) -> std::io::Result<()> {
    let ready = if status.ready { "ready" } else { "not ready" };
    say!("pilotlight {} at {addr}: {ready}", status.version);
    say!("jobs: {} waiting, {} running", status.waiting, status.running);
    let spent = status.spent_usd;
    if spent.month > 0.0 {
        let (hour, day, month) = (spent.hour, spent.day, spent.month);
        say!("spent: {hour} USD this hour, {day} today, {month} this month");
    }
    say!("device: {}", device(&status.device));
    match &status.mqtt {
        Some(BrokerStatus::Up) => say!("broker: up"),
        Some(BrokerStatus::Down { reason }) => say!("broker: down {reason}"),
        None => {}
    }
    for server in &status.servers {
        let (name, place) = (&server.server, server.locality.name());
        match &server.health {
            Health::Starting => say!("{name} ({place}): starting"),
            Health::Ready => say!("{name} ({place}): ready"),
            Health::Resting { reason } => say!("{name} ({place}): resting {reason}"),
        }
        if let Some(ModelContext { identification, runtime, .. }) = &server.context {
            say!(
                "  {} {} on {} {}, {} MiB, {}loaded in {} ms",
                identification.name,
                runtime.quantization,
                runtime.backend,
                runtime.version,
                runtime.memory_bytes >> 20,
                rates(runtime),
                runtime.load_ms,
            );
            if let Some(why) = &runtime.fallback {
                say!("  the configured accelerator is not used: {why}");
            }
        }
    }
    Ok(())
}

/// Temperature, memory and pressure of the device in one line.
fn device(device: &DeviceStatus) -> String {
    let heat = device.temperature_c;
    let heat = heat.map_or("no temperature".to_owned(), |celsius| format!("{celsius:.1} °C"));
    let memory = device.memory_available_mb;
    let memory = memory.map_or(String::new(), |mb| format!(", {mb} MiB of memory left"));
    let percent = device.duty * 100.0;
    let stage = device.stage.name();
    let cause = match device.stage {
        PressureStage::Calm => String::new(),
        PressureStage::Paced
        | PressureStage::Shed
        | PressureStage::Closed
        | PressureStage::Unload => format!(" by {}", device.cause.name()),
    };
    format!("{heat}{memory}; {stage}{cause}, engines compute {percent:.0} % of the time")
}

/// The rates that were measured at start; an encoder has no decode rate.
fn rates(runtime: &Runtime) -> String {
    let rate = |name: &str, rate: Option<f64>| {
        rate.map_or(String::new(), |rate| format!("{name} {rate} tokens/s, "))
    };
    rate("prefill", runtime.prefill_tokens_per_s) + &rate("decode", runtime.decode_tokens_per_s)
}
