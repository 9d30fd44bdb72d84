//! A manager with a key, a broker, and the program itself as its devices.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog, free_port, program};
use crate::support::signing::{keygen, sha256, sign};
use crate::support::{PROGRAM, SOON};

/// A manager with a key, a broker, and devices that trust the key.
pub struct Plant {
    pub folder: tempfile::TempDir,
    pub broker: Mosquitto,
    pub devices: Vec<Service>,
    pub version: u64,
}

pub fn labels() -> Value {
    json!({"cold": [], "hot": []})
}

/// A remote configuration whose task has a golden set of ten: with another template half of it is wrong.
pub fn remote(template: &str) -> Value {
    let cases = (0..10).map(|n| if n % 2 == 0 { "hot" } else { "cold" });
    let cases: Vec<Value> =
        cases.map(|word| json!({"input": {"word": word}, "answer": word})).collect();
    let task = json!({"template": template, "labels": labels(), "golden": {"cases": cases, "loss_percent": 10}});
    json!({
        "mcpServers": {"local": {"command": "better"}},
        "pilotlight": {"tasks": {"state": task}},
    })
}

pub const GOOD: &str = "reading {{word}}";
pub const WORSE: &str = "cold {{word}}";

impl Plant {
    /// The devices `d0`, `d1` and so on; their trials end after this time, or one good request.
    pub async fn with(count: usize, trial_seconds: u64) -> Plant {
        let port = free_port();
        let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
        let broker = Mosquitto::with(port, &config).await;
        let folder = tempfile::tempdir().unwrap();
        let mut plant = Plant { folder, broker, devices: Vec::new(), version: 0 };
        let public = keygen(plant.folder.path()).await;
        let args = ["engine", "--scripted", "better", "--slots", "4"];
        let trust = json!({
            "fleet": "plant",
            "keys": {"ops": {
                "public_key": public, "targets": ["device", "fleet"],
                "operations": ["config"], "longest_days": 30,
            }},
            "commands": {"better": {"path": PROGRAM, "sha256": sha256(PROGRAM), "args": args}},
            "trial": {"good_jobs": 1, "seconds": trial_seconds},
        });
        std::fs::write(plant.path("trust.json"), trust.to_string()).unwrap();
        for n in 0..count {
            let device = plant.device(&format!("d{n}"), tempfile::tempdir().unwrap());
            plant.devices.push(device);
        }
        for device in &plant.devices {
            device.ready().await;
        }
        plant
    }

    pub fn device(&self, name: &str, folder: tempfile::TempDir) -> Service {
        let mut file = catalog(&["--scripted", "old", "--slots", "4"]);
        file["pilotlight"]["device"]["name"] = json!(name);
        file["pilotlight"]["tasks"] = json!({"state": {"template": GOOD, "labels": labels()}});
        let trust = self.path("trust.json").display().to_string();
        let env = [("PILOTLIGHT_TRUST", trust.as_str()), ("PILOTLIGHT_LOG", "warn")];
        Service::launch_in(folder, &file, &self.url(), &env)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.broker.port)
    }

    pub async fn run(&self, args: &[&str]) -> (i32, String, String) {
        program(self.folder.path(), args, &[("PILOTLIGHT_MQTT", &self.url())]).await
    }

    /// Signs a configuration for this target with the next version.
    pub async fn sign(&mut self, config: &Value, target: [&str; 2]) -> u64 {
        self.version += 1;
        sign(self.folder.path(), config, target, self.version).await;
        self.version
    }

    /// Pushes what was signed last, with a JSON line for each change; the exit code, the lines and the
    /// summary.
    pub async fn push(&self, more: &[&str]) -> (i32, Vec<Value>, Value) {
        let args = ["config", "push", "update.signed", "--json"];
        let (code, out, errors) = self.run(&[args.as_slice(), more].concat()).await;
        let mut lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let last = lines.pop().unwrap_or_else(|| panic!("{code}: {errors}"));
        (code, lines, last["summary"].clone())
    }

    /// What the broker retains below this filter.
    pub async fn retained(&self, filter: &str) -> BTreeMap<String, Vec<u8>> {
        let name = format!("looks-{}", free_port());
        let marker = format!("marker/{name}");
        let mut app = App::log_in(self.broker.port, &name, &[&marker, filter], None).await;
        // mosquitto sends what it retains before what is published later
        app.client
            .publish(marker.as_str(), "end", PublishOptions::new(QoS::AtLeastOnce))
            .await
            .unwrap();
        let mut found = BTreeMap::new();
        loop {
            let publish = app.next().await;
            let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
            if topic == marker {
                return found;
            }
            found.insert(topic, publish.payload.to_vec());
        }
    }

    /// The report of each device.
    pub async fn reports(&self) -> BTreeMap<String, Value> {
        let all = self.retained("pilotlight/+/config/reported").await;
        let parts = all.into_iter();
        parts
            .map(|(topic, bytes)| {
                let name = topic.split('/').nth(1).unwrap().to_owned();
                (name, serde_json::from_slice(&bytes).unwrap_or_default())
            })
            .collect()
    }

    /// Publishes the retained report of a device that is not there.
    pub async fn report(&self, name: &str, report: &[u8]) {
        self.retain(&format!("pilotlight/{name}/config/reported"), report).await;
    }

    /// Publishes a retained message, and waits until the broker has it.
    pub async fn retain(&self, topic: &str, payload: &[u8]) {
        let id = format!("fake-{}", free_port());
        let app = App::log_in(self.broker.port, &id, &[], None).await;
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
        app.client.publish(topic, payload.to_vec(), options).await.unwrap();
        let present = async || self.retained(topic).await.remove(topic).unwrap_or_default();
        while present().await != payload {}
    }
}

/// The report of a device that runs its own file.
pub fn idle() -> Value {
    json!({"state": "kept", "source": "file", "version": 0, "digest": "", "since": 0, "fleet": "plant"})
}

impl Plant {
    /// What the program writes to a terminal.
    pub async fn on_terminal(&self, args: &[&str]) -> String {
        let command = format!("exec {PROGRAM} {}", args.join(" "));
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).current_dir(self.folder.path());
        script.env("PILOTLIGHT_MQTT", self.url()).stdin(Stdio::null());
        let out = tokio::time::timeout(SOON, script.output()).await.unwrap().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}
