//! Overhead of the service on a model that answers at once: per call, per token, per MQTT round trip,
//! and the memory of the service. Medians; every row of a table comes from the same run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::time::{Duration, Instant};

use pilotlight::model::generate::Generate;
use serde_json::json;
use support::contract::{job, run};
use support::figures::memory;
use support::mqtt::{App, Mosquitto};
use support::service::{Service, catalog};
use support::{child, over_channels, over_http, print_machine, quantile, scripted};

const CALLS: usize = 400;
const ROUNDS: usize = 2000;
const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

async fn calls(model: &dyn Generate, tokens: u32) -> f64 {
    let job = job(&format!("a b c /tokens={tokens}"), 8192);
    for _ in 0..20 {
        run(model, &job).await.unwrap();
    }
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        run(model, &job).await.unwrap();
        times.push(microseconds(start.elapsed()));
    }
    quantile(&mut times, 0.5)
}

async fn row(name: &str, model: &dyn Generate) {
    let one = calls(model, 1).await;
    let many = calls(model, 101).await;
    println!("{name:24} {one:10.1} {:12.2}", (many - one) / 100.0);
}

async fn round_trips(name: &str, port: u16) {
    let mut app = App::of(port, "app").await;
    let mut times = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS + 50 {
        let start = Instant::now();
        let reply = app.ask("app", json!({"id": format!("{n}"), "prompt": "x"}).to_string()).await;
        assert_eq!(reply["status"], "ok");
        if n >= 50 {
            times.push(microseconds(start.elapsed()));
        }
    }
    let (p50, p99) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    println!("{name:24} {p50:10.0} {p99:12.0}");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    support::pace::turn_off();
    print_machine();
    println!("A model that answers at once, {CALLS} calls a row, medians in microseconds");
    println!("{:24} {:>10} {:>12}", "transport", "a call", "a token more");
    row("none", scripted().as_ref()).await;
    {
        let (remote, _line) = over_channels(scripted()).await;
        row("MCP, typed channels", &remote).await;
    }
    {
        let (remote, _line, _child) = child(&["engine", "--scripted", "x", "--slots", "8"]).await;
        row("MCP, stdio child", &remote).await;
    }
    {
        let (remote, _line, _stop) = over_http(scripted()).await;
        row("MCP, HTTP on loopback", &remote).await;
    }
    println!("\nMQTT: publish to reply, {ROUNDS} in a row, microseconds");
    println!("{:24} {:>10} {:>12}", "broker", "p50", "p99");
    let service = Service::start(&catalog(&DRY)).await;
    round_trips("embedded", service.mqtt).await;
    drop(service);
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    service.ready().await;
    let fresh = memory(service.child.id().unwrap());
    round_trips("mosquitto", broker.port).await;
    let used = memory(service.child.id().unwrap());
    println!("\nMemory of the service without a model, MiB resident (of it anonymous)");
    println!("after start              {:10.1} ({:.1})", fresh.resident, fresh.anonymous);
    println!("after {ROUNDS} requests      {:10.1} ({:.1})", used.resident, used.anonymous);
    if let Ok(engine) = u32::try_from(service.engine()) {
        let used = memory(engine);
        println!("scripted engine          {:10.1} ({:.1})", used.resident, used.anonymous);
    }
}
