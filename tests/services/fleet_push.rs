//! Signed configurations pushed over a real broker to a running service: tried, kept or rolled back.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal::SIGKILL;
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::support::PROGRAM;
use crate::support::cloud::{Cloud, answer, entry};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::network::{NameServer, Naming, in_own_network, ip};
use crate::support::service::{Service, catalog, signal};
use crate::support::signing::{keygen, sha256, sign};

/// A manager with a key, and a broker.
pub(super) struct Manager {
    pub(super) folder: tempfile::TempDir,
    broker: Mosquitto,
    app: App,
    pub(super) version: u64,
}

/// A golden set whose right answer is the word of the input.
pub(super) fn golden(loss_percent: u8) -> Value {
    let cases = (0..20).map(|n| {
        let word = if n % 2 == 0 { "hot" } else { "cold" };
        json!({"input": {"word": word}, "answer": word})
    });
    json!({"cases": cases.collect::<Vec<_>>(), "loss_percent": loss_percent})
}

/// A remote configuration with this command and this template of the task with a golden set.
pub(super) fn remote(command: &str, template: &str) -> Value {
    let labels = json!({"cold": [], "hot": []});
    let task = json!({"template": template, "labels": labels, "golden": golden(10)});
    json!({
        "mcpServers": {"local": {"command": command}},
        "pilotlight": {"tasks": {"state": task, "echo": {"template": "say {{word}}"}}},
    })
}

impl Manager {
    pub(super) async fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let broker = Mosquitto::start().await;
        let topics = ["pilotlight/dev/config/reported", "pilotlight/dev/reply/app"];
        let app = App::log_in(broker.port, "manager", &topics, None).await;
        let manager = Manager { folder, broker, app, version: 0 };
        let public = keygen(manager.folder.path()).await;
        let program = sha256(PROGRAM);
        let command = |path: &str, sha256: &str, args: &[&str]| json!({"path": path, "sha256": sha256, "args": args});
        let better = ["engine", "--scripted", "better", "--slots", "4"];
        let trust = json!({
            "fleet": "plant-a",
            "keys": {"ops": {
                "public_key": public, "targets": ["device", "fleet"],
                "operations": ["config"], "longest_days": 30,
            }},
            "commands": {
                "better": command(PROGRAM, &program, &better),
                "broken": command("/bin/false", &sha256("/bin/false"), &[]),
            },
            "trial": {"good_jobs": 3, "seconds": 3600},
        });
        std::fs::write(manager.path("trust.json"), trust.to_string()).unwrap();
        manager
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A device that trusts the manager.
    pub(super) fn device(&self) -> Service {
        self.device_in(tempfile::tempdir().unwrap())
    }

    fn device_in(&self, folder: tempfile::TempDir) -> Service {
        let mut file = catalog(&["--scripted", "old", "--slots", "4"]);
        let labels = json!({"cold": [], "hot": []});
        file["pilotlight"]["tasks"] =
            json!({"state": {"template": "reading {{word}}", "labels": labels}});
        self.launch(folder, &file, &[])
    }

    pub(super) fn launch(
        &self,
        folder: tempfile::TempDir,
        file: &Value,
        more: &[(&str, &str)],
    ) -> Service {
        let url = format!("mqtt://127.0.0.1:{}", self.broker.port);
        let trust = self.path("trust.json").display().to_string();
        let env = [&[("PILOTLIGHT_TRUST", trust.as_str())], more].concat();
        Service::launch_in(folder, file, &url, &env)
    }

    /// Lets the devices of this manager have this neighbour.
    fn permit(&self, neighbour: &str) {
        let path = self.path("trust.json");
        let mut trust: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        trust["neighbours"] = json!([neighbour]);
        std::fs::write(path, trust.to_string()).unwrap();
    }

    /// Signs a configuration for the fleet.
    pub(super) async fn sign(&mut self, config: &Value) -> Vec<u8> {
        self.version += 1;
        sign(self.folder.path(), config, ["--fleet", "plant-a"], self.version).await
    }

    pub(super) async fn publish(&self, signed: Vec<u8>) {
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
        let topic = "pilotlight/fleet/plant-a/config/desired";
        self.app.client.publish(topic, signed, options).await.unwrap();
    }

    pub(super) async fn push(&mut self, config: &Value) -> u64 {
        let signed = self.sign(config).await;
        self.publish(signed).await;
        self.version
    }

    /// Waits until the device reports this state of this version.
    pub(super) async fn until(&mut self, state: &str, version: u64) -> Value {
        loop {
            let publish = self.app.next().await;
            if !publish.topic.ends_with(b"config/reported") {
                continue;
            }
            let report: Value = serde_json::from_slice(&publish.payload).unwrap();
            if (&report["state"], &report["offered"]) == (&json!(state), &json!(version)) {
                return report;
            }
        }
    }

    pub(super) async fn ask(&mut self, body: Value) -> Value {
        let topic = "pilotlight/dev/request/app";
        self.app.send(topic, body.to_string(), PublishProperties::default()).await;
        loop {
            let publish = self.app.next().await;
            if publish.topic.ends_with(b"/reply/app") {
                return serde_json::from_slice(&publish.payload).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_configuration_is_tried_and_kept_over_a_restart() {
    let mut manager = Manager::new().await;
    let device = manager.device();
    device.ready().await;
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "old");
    let version = manager.push(&remote("better", "the reading is {{word}}")).await;
    let report = manager.until("trial", version).await;
    assert_eq!((&report["source"], &report["version"]), (&json!("file"), &json!(0)), "{report}");
    // the trial needs three good jobs, which the new model answers
    let state = device.until("adopted", |state| state["config"]["source"] == "update").await;
    assert_eq!(state["config"]["state"], "trial");
    for n in 0..3 {
        let reply = manager.ask(json!({"id": n.to_string(), "prompt": "a"})).await;
        assert_eq!(reply["source"]["model"], "better", "{reply}");
    }
    let state = device.until("kept", |state| state["config"]["state"] == "kept").await;
    assert_eq!(
        (&state["config"]["version"], &state["config"]["fleet"]),
        (&json!(1), &json!("plant-a"))
    );
    until_one_engine(&device).await;
    // the retained update is delivered again, and changes nothing
    let Service { folder, mut child, .. } = device;
    child.kill().await.unwrap();
    let device = manager.device_in(folder);
    device.ready().await;
    let reply = manager.ask(json!({"task": "echo", "input": {"word": "hi"}})).await;
    assert_eq!((&reply["text"], &reply["source"]["model"]), (&json!("say hi"), &json!("better")));
    let state = device.state().await.unwrap();
    assert_eq!(
        (&state["config"]["source"], &state["config"]["version"]),
        (&json!("update"), &json!(1))
    );
}

pub(super) async fn until_one_engine(device: &Service) {
    let end = tokio::time::Instant::now() + crate::support::SOON;
    while device.engines().len() != 1 {
        assert!(tokio::time::Instant::now() < end, "{:?}", device.engines());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_its_trial_is_rolled_back_and_says_why() {
    let mut manager = Manager::new().await;
    let device = manager.device();
    device.ready().await;
    let engine = device.engine();
    let before = device.state().await.unwrap()["config"]["digest"].clone();
    // the model does not start
    let version = manager.push(&remote("broken", "reading {{word}}")).await;
    let report = manager.until("rolled-back", version).await;
    assert!(report["reason"].as_str().unwrap().contains("local"), "{report}");
    // half of the golden set is wrong
    let version = manager.push(&remote("better", "cold {{word}}")).await;
    let report = manager.until("rolled-back", version).await;
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("10 of 20") && reason.contains("20 before"), "{report}");
    // no application has met it
    until_one_engine(&device).await;
    assert_eq!(device.engines(), [engine]);
    assert_eq!((&report["digest"], &report["source"]), (&before, &json!("file")));
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "old");
    // a changed model that dies while applications use it
    let version = manager.push(&remote("better", "reading {{word}}")).await;
    device.until("adopted", |state| state["config"]["source"] == "update").await;
    let reply = manager.ask(json!({"prompt": "x /fail-better=crash"})).await;
    assert_ne!(reply["source"]["model"], "better", "{reply}");
    let state = device
        .until("rolled back", |state| {
            let config = &state["config"];
            config["state"] == "rolled-back" && config["offered"] == version
        })
        .await;
    let report = &state["config"];
    assert_eq!((&report["digest"], &report["source"]), (&before, &json!("file")), "{report}");
    assert_eq!(manager.ask(json!({"prompt": "b"})).await["source"]["model"], "old");
    until_one_engine(&device).await;
    assert_eq!(device.engines(), [engine]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_and_changes_nothing() {
    let mut manager = Manager::new().await;
    let device = manager.device();
    device.ready().await;
    let good = manager.sign(&remote("better", "reading {{word}}")).await;
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    manager.publish(forged).await;
    let wrong = |code: &'static str| move |state: &Value| state["config"]["code"] == code;
    let state = device.until("refused", wrong("wrong-signature")).await;
    assert_eq!(
        (&state["config"]["state"], &state["config"]["source"]),
        (&json!("refused"), &json!("file"))
    );
    let mut commands = remote("better", "reading {{word}}");
    commands["mcpServers"]["local"] = json!({"command": "/bin/sh", "args": ["-c", "true"]});
    manager.push(&commands).await;
    device.until("refused", wrong("forbidden-config")).await;
    manager.publish(b"no update".to_vec()).await;
    device.until("refused", wrong("malformed-signature")).await;
    manager.publish(vec![b'x'; 2 << 20]).await;
    device.until("refused", wrong("too-large")).await;
    // the good one is still taken, and after it an older one is not
    manager.publish(good.clone()).await;
    device.until("adopted", |state| state["config"]["source"] == "update").await;
    for n in 0..3 {
        manager.ask(json!({"id": n.to_string(), "prompt": "a"})).await;
    }
    device.until("kept", |state| state["config"]["state"] == "kept").await;
    manager.version = 0;
    let old = manager.sign(&remote("better", "other {{word}}")).await;
    manager.publish(old).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(device.state().await.unwrap()["config"]["version"], 1);
}

/// The power fails during a trial: the next start goes on with it, and the one after the last try does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_that_ends_with_the_service_is_tried_once_more() {
    let mut manager = Manager::new().await;
    let mut device = manager.device();
    device.ready().await;
    manager.push(&remote("better", "reading {{word}}")).await;
    for start in 0..2 {
        device.until("adopted", |state| state["config"]["source"] == "update").await;
        signal(device.child.id().unwrap().cast_signed(), SIGKILL);
        let Service { folder, mut child, .. } = device;
        child.wait().await.unwrap();
        device = manager.device_in(folder);
        println!("start {start}");
    }
    let state = device.until("rolled back", |s| s["config"]["state"] == "rolled-back").await;
    assert!(state["config"]["reason"].as_str().unwrap().contains("trials"), "{state}");
    assert_eq!(state["config"]["source"], "file");
    device.ready().await;
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "old");
}

/// A name of a remote configuration gets an address of the local network after it was accepted, and is not
/// connected to: not by the running service, nor by one that starts with the configuration. The name of
/// the local file is.
#[test]
fn a_name_with_another_address_is_not_connected_to() {
    in_own_network("fleet_push::a_name_with_another_address_is_not_connected_to", async {
        ip("addr add 11.0.0.1/32 dev lo");
        let names = NameServer::start(Naming::With([11, 0, 0, 1].into())).await;
        let (far, certificate) = Cloud::start_named("far.example", [answer(&["far"])]).await;
        let (own, other) = Cloud::start_named("own.example", [answer(&["own"])]).await;
        // it would look the names up itself
        let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", proxy.local_addr().unwrap());
        let env = [("HTTPS_PROXY", at.as_str()), ("NO_PROXY", "own.example")];
        let mut manager = Manager::new().await;
        let ca = manager.path("ca.pem");
        std::fs::write(&ca, certificate + &other).unwrap();
        let provider = |url: &str| {
            let mut provider = entry(url);
            (provider["ca"], provider["silence_ms"]) = (json!(ca), json!(20_000));
            provider
        };
        let mut file = catalog(&["--scripted", "old", "--slots", "4"]);
        file["pilotlight"]["providers"] = json!({"own": provider(&own.url)});
        let device = manager.launch(tempfile::tempdir().unwrap(), &file, &env);
        device.ready().await;
        let config = json!({
            "mcpServers": {"local": {"command": "better"}},
            "pilotlight": {"providers": {"own": provider(&own.url), "far": provider(&far.url)}},
        });
        manager.push(&config).await;
        device.until("adopted", |state| state["config"]["source"] == "update").await;
        let ask = async |device: &Service, model: &str| {
            let messages = json!([{"role": "user", "content": "x"}]);
            device.chat(json!({"model": model, "messages": messages})).await
        };
        for n in 0..3 {
            assert_eq!(ask(&device, "far").await.0, 200, "{n}");
        }
        device.until("kept", |state| state["config"]["state"] == "kept").await;
        let opened = far.opened();
        names.now(Naming::With([127, 0, 0, 1].into()));
        let (status, said) = ask(&device, "far").await;
        assert!(status >= 500, "{said}");
        let why = said.to_string();
        assert!(why.contains("far.example has the address 127.0.0.1"), "{said}");
        assert!(why.contains("neighbours of the trust policy"), "{said}");
        assert_eq!(ask(&device, "own").await.0, 200);
        let Service { folder, mut child, .. } = device;
        child.kill().await.unwrap();
        let device = manager.launch(folder, &file, &env);
        device.until("started", |state| state["config"]["source"] == "update").await;
        device.ready().await;
        let (status, said) = ask(&device, "far").await;
        assert!(status >= 500 && said.to_string().contains("127.0.0.1"), "{said}");
        assert_eq!(ask(&device, "own").await.0, 200);
        assert_eq!(far.opened(), opened, "a connection was made");
        let Service { folder, mut child, .. } = device;
        child.kill().await.unwrap();
        manager.permit(far.url.trim_end_matches("/v1"));
        let env = [("HTTPS_PROXY", at.as_str()), ("NO_PROXY", "own.example,far.example")];
        let device = manager.launch(folder, &file, &env);
        device.until("started", |state| state["config"]["source"] == "update").await;
        device.ready().await;
        assert_eq!(ask(&device, "far").await.0, 200);
        assert!(futures::FutureExt::now_or_never(proxy.accept()).is_none(), "the proxy was used");
    });
}
