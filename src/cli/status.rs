//! `status`: the state of the running service, read from its HTTP interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::header::HOST;
use serde_json::Value;

use super::{DONE, NOT_READY};
use crate::config::Config;
use crate::model::context::{ModelContext, Runtime};
use crate::model::health::Health;
use crate::pressure::level::PressureStage;
use crate::status::{BrokerState, BrokerStatus, DeviceStatus, ServiceStatus};

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(http) = &config.http else {
        bail!("status needs the HTTP interface, which is off; set PILOTLIGHT_HTTP");
    };
    let addr = local(http.listen);
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    let mut request = client.get(format!("http://{addr}/readyz")).header(HOST, "localhost");
    if let Some(token) = &http.guard.token {
        request = request.bearer_auth(&token.0);
    }
    let Ok(answer) = request.send().await else {
        print_error!("no service is reachable at {addr}");
        return Ok(NOT_READY);
    };
    let body: Value = answer.json().await?;
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

/// The address by which this machine reaches a service that listens at `addr`.
fn local(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(ip, addr.port())
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
