//! A fleet: many devices, each the program itself with a scripted model, on one mosquitto. A manager pushes
//! signed configurations; times until the devices report their end, and what they run afterwards.
//!
//! `DEVICES=500` sets their number (100 by default); a device has about 25 MiB.
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

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGTERM;
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};
use support::PROGRAM;
use support::mqtt::{App, Mosquitto};
use support::service::{free_port, signal};
use support::signing::{keygen, sha256, sign};
use support::{print_head, print_machine, print_row, quantile};
use tokio::process::{Child, Command};

const REPORTED: &str = "pilotlight/+/config/reported";
const TOPIC: &str = "pilotlight/fleet/plant/config/desired";
/// Longest time for all devices to end a trial.
const PATIENCE: Duration = Duration::from_secs(600);
/// Devices that start at a time: the machine has two processors.
const AT_ONCE: usize = 8;

struct Device {
    name: String,
    child: Child,
}

struct Fleet {
    folder: tempfile::TempDir,
    broker: Mosquitto,
    /// The broker's configuration file.
    settings: String,
    devices: Vec<Device>,
    app: App,
    /// The last report of each device, and when it came.
    reports: BTreeMap<String, (Value, Instant)>,
    version: u64,
}

fn labels() -> Value {
    json!({"cold": [], "hot": []})
}

fn engine(name: &str) -> Value {
    json!(["engine", "--scripted", name, "--slots", "2"])
}

/// A remote configuration with this command and this template of a task with a golden set of 20.
fn remote(command: &str, template: &str) -> Value {
    let cases = (0..20).map(|n| {
        let word = if n % 2 == 0 { "hot" } else { "cold" };
        json!({"input": {"word": word}, "answer": word})
    });
    let cases: Vec<Value> = cases.collect();
    let golden = json!({"cases": cases, "loss_percent": 5});
    json!({
        "mcpServers": {"local": {"command": command}},
        "pilotlight": {"tasks": {"state": {"template": template, "labels": labels(), "golden": golden}}},
    })
}

impl Fleet {
    async fn start(count: usize) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().display();
        let port = free_port();
        let settings = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {kept}/\n"
        );
        let broker = Mosquitto::with(port, &settings).await;
        let app = App::log_in(broker.port, "manager", &[], None).await;
        app.client.subscribe(REPORTED, QoS::AtMostOnce).await.unwrap();
        let (devices, reports) = (Vec::new(), BTreeMap::new());
        let mut fleet = Fleet { folder, broker, settings, devices, app, reports, version: 0 };
        let public = keygen(fleet.folder.path()).await;
        let own = sha256(PROGRAM);
        let command = |name: &str| json!({"path": PROGRAM, "sha256": own, "args": engine(name)});
        let trust = json!({
            "fleet": "plant",
            "keys": {"ops": {
                "public_key": public, "targets": ["fleet"],
                "operations": ["config"], "longest_days": 30,
            }},
            "commands": {
                "better": command("better"), "best": command("best"),
                "broken": {"path": "/bin/false", "sha256": sha256("/bin/false"), "args": []},
            },
            "trial": {"good_jobs": 20, "seconds": 2},
        });
        std::fs::write(fleet.path("trust.json"), trust.to_string()).unwrap();
        let file = json!({
            "mcpServers": {"local": {"command": "pilotlight", "args": engine("old")}},
            "pilotlight": {"tasks": {"state": {"template": "reading {{word}}", "labels": labels()}}},
        });
        std::fs::write(fleet.path("mcp.json"), file.to_string()).unwrap();
        for n in 0..count {
            fleet.launch(format!("d{n}"));
            if n % AT_ONCE == AT_ONCE - 1 {
                fleet.until("started", |reports| reports.len() > n.saturating_sub(AT_ONCE)).await;
            }
        }
        fleet.until("started", |reports| reports.len() == count).await;
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn launch(&mut self, name: String) {
        let child = Command::new(PROGRAM)
            .arg("serve")
            .current_dir(self.folder.path())
            .env("PILOTLIGHT_DEVICE", &name)
            .env("PILOTLIGHT_HTTP", "off")
            .env("PILOTLIGHT_MQTT", format!("mqtt://127.0.0.1:{}", self.broker.port))
            .env("PILOTLIGHT_SENSORS", self.path("sensors"))
            .env("PILOTLIGHT_STATE", self.path(&name))
            .env("PILOTLIGHT_TRUST", self.path("trust.json"))
            .env("PILOTLIGHT_LOG", "off")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.devices.push(Device { name, child });
    }

    /// Reads reports until they are as wanted.
    async fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&BTreeMap<String, (Value, Instant)>) -> bool,
    ) {
        let end = Instant::now() + PATIENCE;
        while !wanted(&self.reports) {
            assert!(Instant::now() < end, "not {what}: {} reports", self.reports.len());
            let wait = tokio::time::timeout(Duration::from_secs(1), self.app.inbox.recv());
            let Ok(Some(publish)) = wait.await else {
                // a broker drops messages for a client that is slower than they come, and one that was
                // restarted knows no subscription: the retained states are asked for again
                self.app.client.subscribe(REPORTED, QoS::AtMostOnce).await.unwrap();
                continue;
            };
            let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
            let name = topic.split('/').nth(1).unwrap().to_owned();
            let report: Value = serde_json::from_slice(&publish.payload).unwrap();
            if self.reports.get(&name).is_none_or(|(known, _)| *known != report) {
                self.reports.insert(name, (report, Instant::now()));
            }
        }
    }

    /// Signs and publishes a configuration; returns its version.
    async fn push(&mut self, config: &Value) -> u64 {
        self.version += 1;
        let signed = sign(self.folder.path(), config, ["--fleet", "plant"], self.version).await;
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
        self.app.client.publish(TOPIC, signed, options).await.unwrap();
        self.version
    }

    /// Waits until every device has ended the trial of this version; prints a row.
    async fn ended(&mut self, row: &str, version: u64, began: Instant, expected: &str) {
        let all = self.devices.len();
        let has_ended = move |report: &Value| {
            // a device that was killed after the update was kept no longer knows that it was offered
            let is_kept = report["state"] == "kept" && report["version"] == version;
            let ends = ["kept", "rolled-back", "refused"];
            is_kept
                || report["offered"] == version && ends.iter().any(|end| report["state"] == *end)
        };
        self.until(row, |reports| {
            reports.values().filter(|(report, _)| has_ended(report)).count() == all
        })
        .await;
        let as_expected =
            self.reports.values().filter(|(report, _)| report["state"] == expected).count();
        let mut times: Vec<f64> =
            self.reports.values().map(|(_, at)| at.duration_since(began).as_secs_f64()).collect();
        let running: BTreeMap<String, usize> =
            self.reports.values().fold(BTreeMap::new(), |mut all, (report, _)| {
                *all.entry(report["version"].to_string()).or_default() += 1;
                all
            });
        let seconds = |q: f64, times: &mut [f64]| format!("{:.1}", quantile(times, q));
        print_row(&[
            row.to_owned(),
            format!("{as_expected} of {all} {expected}"),
            seconds(0.5, &mut times),
            seconds(0.99, &mut times),
            seconds(1.0, &mut times),
            format!("{running:?}"),
        ]);
    }

    /// Ends the broker and starts it again with what it has kept.
    async fn restart_broker(&mut self) {
        signal(self.broker.child.id().unwrap().cast_signed(), SIGTERM);
        self.broker.child.wait().await.unwrap();
        self.broker = Mosquitto::with(self.broker.port, &self.settings).await;
    }

    /// Kills every n-th device and starts it again.
    async fn kill_every(&mut self, nth: usize) {
        let mut killed = Vec::new();
        for at in (0..self.devices.len()).rev().filter(|at| at % nth == 0) {
            let mut device = self.devices.swap_remove(at);
            device.child.kill().await.unwrap();
            killed.push(device.name);
        }
        for name in killed {
            self.launch(name);
        }
    }
}

#[tokio::main]
async fn main() {
    let count = std::env::var("DEVICES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    print_machine();
    let began = Instant::now();
    let mut fleet = Fleet::start(count).await;
    println!("{count} devices have started after {:.0} s\n", began.elapsed().as_secs_f64());
    print_head(&["push", "devices", "p50 s", "p99 s", "last s", "devices by version in force"]);

    let (good, better) = (remote("better", "reading {{word}}"), remote("best", "reading {{word}}"));
    let began = Instant::now();
    let version = fleet.push(&good).await;
    fleet.ended("better model", version, began, "kept").await;

    let began = Instant::now();
    let version = fleet.push(&remote("broken", "reading {{word}}")).await;
    fleet.ended("model does not start", version, began, "rolled-back").await;

    let began = Instant::now();
    let version = fleet.push(&remote("best", "cold {{word}}")).await;
    fleet.ended("golden set worse", version, began, "rolled-back").await;

    let began = Instant::now();
    let version = fleet.push(&remote("better", "the reading {{word}}")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.restart_broker().await;
    fleet.ended("broker restarted in the middle", version, began, "kept").await;

    let began = Instant::now();
    let version = fleet.push(&better).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.kill_every(20).await;
    fleet.ended("5 % killed in the middle", version, began, "kept").await;
}
