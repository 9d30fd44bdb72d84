//! Requests that cost far more than they weigh: refused quickly, and others do not notice.

use std::time::Duration;

use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::mqtt::{App, Mosquitto};
use crate::support::pace;
use crate::support::service::{Service, catalog};

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];
/// Without bounds these requests took 40 s and 4 GB.
const QUICK: Duration = Duration::from_secs(2);
const MEMORY_MB: u64 = 32;

/// A tool whose arguments have `n` properties, each with its own pattern.
fn tool(n: usize, pattern: impl Fn(usize) -> String) -> Value {
    let property = |i| (format!("p{i}"), json!({"type": "string", "pattern": pattern(i)}));
    let properties: Value = (0..n).map(property).collect();
    json!({"name": "t", "input_schema": {"type": "object", "properties": properties}})
}

/// Resident memory of the service, MiB.
fn resident_mb(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.child.id().unwrap()));
    let status = status.unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Tools that no request may offer, each with the field of the mistake.
fn costly() -> Vec<(Value, &'static str)> {
    let large = |i| format!("^\\pL{{200}}{i}$");
    vec![
        (tool(300, large), "tools[0].input_schema"),
        (tool(60, large), "tools[0].input_schema"),
        (tool(1, |_| "(((a{100}){100}){100})".to_owned()), "tools[0].input_schema"),
        (tool(1, |_| "(?=\\pL{300})a".to_owned()), "tools[0].input_schema"),
        (tool(1, |_| "a".repeat(100_000)), "tools[0].input_schema"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_costly_schema_is_refused_before_others_notice() {
    let service = Service::start(&catalog(&DRY)).await;
    let mut app = App::of(service.mqtt, "app").await;
    app.ask("app", "warm up").await;
    let before = resident_mb(&service);
    for (tool, field) in costly() {
        let began = Instant::now();
        let ask = json!({"id": "x", "prompt": "hi", "tools": [tool]}).to_string();
        let (reply, other) = tokio::join!(
            app.ask("app", ask.clone()),
            service
                .chat(json!({"model": "auto", "messages": [{"role": "user", "content": "a b"}]})),
        );
        assert_eq!((&reply["id"], &reply["status"]), (&json!("x"), &json!("refused")), "{reply}");
        assert_eq!(reply["error"]["field"], field, "{reply}");
        assert_eq!(other.0, 200, "{other:?}");
        let most = pace::stretched(QUICK);
        assert!(began.elapsed() < most, "{:?}: {reply}", began.elapsed());
    }
    let after = resident_mb(&service);
    assert!(after < before + MEMORY_MB, "{before} MiB, then {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_with_an_unusable_schema_is_a_mistake_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let check = async |schema: Value| {
        let mut catalog = catalog(&DRY);
        catalog["pilotlight"]["tasks"]["label"]["schema"] = schema;
        std::fs::write(folder.path().join("mcp.json"), catalog.to_string()).unwrap();
        crate::support::service::program(folder.path(), &["check"], &[]).await
    };
    assert_eq!(check(json!({"type": "object"})).await.0, 0);
    for schema in [json!({"pattern": "\\pL{200}"}), json!({"type": "nothing"}), json!([])] {
        let (status, _, said) = check(schema).await;
        assert_ne!(status, 0);
        assert!(said.contains("pilotlight.tasks.label.schema"), "{said}");
    }
}

/// Requests of one application that take long fill the receive maximum, and more of them follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_take_long_keep_nobody_at_the_broker() {
    for broker in ["embedded", "mosquitto"] {
        let mosquitto = if broker == "mosquitto" { Some(Mosquitto::start().await) } else { None };
        let mut catalog = catalog(&["--scripted", "dry", "--slots", "1"]);
        catalog["mcpServers"]["quick"] =
            json!({"command": "pilotlight", "args": ["engine", "--scripted", "quick"]});
        let service = match &mosquitto {
            None => Service::start(&catalog).await,
            Some(mosquitto) => {
                let url = format!("mqtt://127.0.0.1:{}", mosquitto.port);
                let service = Service::launch(&catalog, &url, &[]);
                service.ready().await;
                service
            }
        };
        service.ready_all().await;
        let port = mosquitto.as_ref().map_or(service.mqtt, |mosquitto| mosquitto.port);
        let slow = App::of(port, "slow").await;
        let topic = "pilotlight/dev/request/slow";
        for n in 0..48 {
            let ask = json!({"id": format!("s{n}"), "prompt": "/delay-us=60000000 a b", "model": "dry",
                             "deadline_ms": 600_000});
            slow.send(topic, ask.to_string(), PublishProperties::default()).await;
        }
        let mut other = App::of(port, "other").await;
        let began = Instant::now();
        let ask = json!({"prompt": "a b", "model": "quick", "deadline_ms": 10_000}).to_string();
        let reply =
            tokio::time::timeout(pace::stretched(Duration::from_secs(10)), other.ask("other", ask));
        let reply = reply.await.unwrap_or_else(|_| panic!("{broker}: no reply"));
        assert_eq!(reply["status"], "ok", "{broker}, {:?}: {reply}", began.elapsed());
        // what was acknowledged is on disk
        let folder = service.folder.path().join("state/spool");
        let spooled = || std::fs::read_dir(&folder).unwrap().count();
        service.until("the oldest are on disk", |_| spooled() >= 16).await;
    }
}

/// What was acknowledged before its answer is answered after a kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_disk_are_answered_after_a_kill() {
    let mosquitto = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", mosquitto.port);
    let catalog = catalog(&["--scripted", "dry", "--slots", "1"]);
    let mut service = Service::launch(&catalog, &url, &[]);
    service.ready().await;
    let mut app = App::of(mosquitto.port, "app").await;
    let ids: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    for id in &ids {
        let ask = json!({"id": id, "prompt": "/delay-us=300000 a b", "deadline_ms": 600_000});
        let topic = "pilotlight/dev/request/app";
        app.send(topic, ask.to_string(), PublishProperties::default()).await;
    }
    service.until("all are taken", |state| state["waiting"].as_u64() >= Some(39)).await;
    service.child.kill().await.unwrap();
    let folder = std::mem::replace(&mut service.folder, tempfile::tempdir().unwrap());
    let _service = Service::launch_in(folder, &catalog, &url, &[]);
    let mut answered = std::collections::BTreeMap::new();
    while answered.len() < ids.len() {
        let reply = app.reply().await;
        assert_eq!(reply["status"], "ok", "{reply}");
        *answered.entry(reply["id"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    assert!(answered.values().all(|count| *count == 1), "{answered:?}");
}
