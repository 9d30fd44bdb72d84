//! `status`: the state of the running service, read from its HTTP interface.

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

use super::{DONE, NOT_READY};
use crate::config::Config;

pub(super) async fn run(config: &Config, json: bool) -> anyhow::Result<u8> {
    let Some(http) = &config.http else {
        bail!("the HTTP interface is off, and status needs it; set PILOTLIGHT_HTTP");
    };
    let addr = http.listen;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    let answer = client.get(format!("http://{addr}/readyz")).send().await;
    let Ok(answer) = answer else {
        eprintln!("no service is reachable at {addr}");
        return Ok(NOT_READY);
    };
    let state: Value = answer.json().await?;
    if json {
        print_line!("{state:#}");
    } else {
        print(&state, &addr.to_string())?;
    }
    Ok(if state["ready"] == true { DONE } else { NOT_READY })
}

fn print(state: &Value, addr: &str) -> std::io::Result<()> {
    let ready = if state["ready"] == true { "ready" } else { "not ready" };
    print_line!("pilotlight {} at {addr}: {ready}", text(&state["version"]));
    print_line!("jobs: {} waiting, {} running", state["waiting"], state["running"]);
    let spent = |span: &str| state["spent_usd"][span].as_f64().unwrap_or(0.0);
    if spent("month") > 0.0 {
        let (hour, day, month) = (spent("hour"), spent("day"), spent("month"));
        print_line!("spent: {hour} USD this hour, {day} USD today, {month} USD this month");
    }
    if state["device"].is_object() {
        print_line!("device: {}", device(&state["device"]));
    }
    if state["mqtt"].is_object() {
        print_line!("broker: {}", joined(&[&state["mqtt"]["state"], &state["mqtt"]["reason"]]));
    }
    for server in state["servers"].as_array().into_iter().flatten() {
        let health = &server["health"];
        let (name, place) = (text(&server["server"]), text(&server["where"]));
        print_line!("{name} ({place}): {}", joined(&[&health["state"], &health["reason"]]));
        let runtime = &server["model"]["runtime"];
        if runtime.is_object() {
            print_line!("  {}", model(&server["model"]["identification"]["name"], runtime));
            if let Some(why) = runtime["fallback"].as_str() {
                print_line!("  requested accelerator not used: {why}");
            }
        }
    }
    Ok(())
}

/// The device's temperature, memory and pressure level in one line.
fn device(device: &Value) -> String {
    let heat = device["temperature_c"].as_f64();
    let heat = heat.map_or("temperature unknown".to_owned(), |celsius| format!("{celsius:.1} °C"));
    let memory = device["memory_available_mb"].as_u64();
    let memory = memory.map_or(String::new(), |mb| format!(", {mb} MiB of memory available"));
    let percent = device["duty"].as_f64().unwrap_or(1.0) * 100.0;
    let stage = text(&device["stage"]);
    let cause =
        if stage == "calm" { String::new() } else { format!(" by {}", text(&device["cause"])) };
    format!("{heat}{memory}; pressure level {stage}{cause}, duty cycle {percent:.0} %")
}

/// One line about a loaded model, without the figures that it does not have: a provider has no
/// quantization, memory or load time, an encoder no rates.
fn model(name: &Value, runtime: &Value) -> String {
    let known = |key: &str| runtime[key].as_u64().filter(|number| *number > 0);
    let rate = |name: &str, key: &str| {
        let rate = runtime[key].as_f64();
        rate.map(|rate| format!("{name} {rate} tokens/s"))
    };
    let place = joined(&[&runtime["backend"], &runtime["version"]]);
    let parts = [
        Some(format!("{} on {place}", joined(&[name, &runtime["quantization"]]))),
        known("memory_bytes").map(|bytes| format!("{} MiB", bytes >> 20)),
        rate("prefill", "prefill_tokens_per_s"),
        rate("decode", "decode_tokens_per_s"),
        known("load_ms").map(|ms| format!("loaded in {ms} ms")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Texts with a blank between them, without those that are absent or empty.
fn joined(texts: &[&Value]) -> String {
    let texts = texts.iter().map(|value| text(value)).filter(|text| !text.is_empty());
    texts.collect::<Vec<_>>().join(" ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
