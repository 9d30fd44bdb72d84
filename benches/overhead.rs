//! Overhead of the service on a model that answers at once: per call, per token, per MQTT round trip,
//! and the memory of the service. Medians; every row of a table comes from the same run. `PREVIOUS` may
//! name an earlier version of the program, which is measured beside this one.
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
use support::figures::{Memory, memory};
use support::mqtt::{App, Mosquitto};
use support::service::{Service, catalog};
use support::{PROGRAM, child, over_channels, over_http, print_machine, quantile, scripted};

const CALLS: usize = 400;
const ROUNDS: usize = 2000;
/// Requests to one version before the other's turn.
const TURN: usize = 100;
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

/// Round trips of an application over MQTT: one request at a time.
struct RoundTrips {
    name: &'static str,
    app: App,
    asked: usize,
    times: Vec<f64>,
}

impl RoundTrips {
    async fn new(name: &'static str, port: u16) -> RoundTrips {
        let app = App::of(port, "app").await;
        let mut trips = RoundTrips { name, app, asked: 0, times: Vec::new() };
        trips.run(50).await;
        trips.times.clear();
        trips
    }

    async fn run(&mut self, count: usize) {
        for _ in 0..count {
            self.asked += 1;
            let asked = json!({"id": self.asked.to_string(), "prompt": "x"}).to_string();
            let start = Instant::now();
            let reply = self.app.ask("app", asked).await;
            assert_eq!(reply["status"], "ok");
            self.times.push(microseconds(start.elapsed()));
        }
    }

    fn print(&mut self) {
        let (p50, p99) = (quantile(&mut self.times, 0.5), quantile(&mut self.times, 0.99));
        println!("{:24} {p50:10.0} {p99:12.0}", self.name);
    }
}

/// A service at a mosquitto of its own.
struct AtBroker {
    service: Service,
    trips: RoundTrips,
    fresh: Memory,
    _broker: Mosquitto,
}

impl AtBroker {
    async fn start(name: &'static str, program: &str) -> AtBroker {
        let broker = Mosquitto::start().await;
        let url = format!("mqtt://127.0.0.1:{}", broker.port);
        let service = Service::launch_program(program, &catalog(&DRY), &url);
        service.ready().await;
        let fresh = memory(service.child.id().unwrap());
        let trips = RoundTrips::new(name, broker.port).await;
        AtBroker { service, trips, fresh, _broker: broker }
    }

    fn print_memory(&self) {
        let row = |what: &str, used: &Memory| {
            println!(
                "{:24} {what:20} {:6.1} ({:.1})",
                self.trips.name, used.resident, used.anonymous
            );
        };
        row("after start", &self.fresh);
        row(&format!("after {ROUNDS} requests"), &memory(self.service.child.id().unwrap()));
        if let Ok(engine) = u32::try_from(self.service.engine()) {
            row("scripted engine", &memory(engine));
        }
    }
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
    let mut embedded = RoundTrips::new("embedded", service.mqtt).await;
    embedded.run(ROUNDS).await;
    embedded.print();
    drop(service);
    let mut all = vec![AtBroker::start("mosquitto", PROGRAM).await];
    if let Ok(program) = std::env::var("PREVIOUS") {
        all.push(AtBroker::start("mosquitto, previous", &program).await);
    }
    for _ in 0..ROUNDS / TURN {
        for one in &mut all {
            one.trips.run(TURN).await;
        }
    }
    for one in &mut all {
        one.trips.print();
    }
    println!("\nMemory of the service without a model, MiB resident (of it anonymous)");
    for one in &all {
        one.print_memory();
    }
}
