//! The configuration changes while the service runs: by its file, by SIGHUP, by `pilotlight reload`.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal::SIGHUP;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog, program, signal};

/// Replaces the file as editors do, and waits until it is in force.
async fn change(service: &Service, catalog: &Value) -> Value {
    let text = catalog.to_string();
    let digest = pilotlight::config::source::digest(text.as_bytes());
    write(service.folder.path(), "mcp.json", &text);
    service.until("in force", |state| state["config"]["digest"] == digest.as_str()).await
}

pub(super) fn write(folder: &Path, name: &str, text: &str) {
    let part = folder.join(format!("{name}.new"));
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, folder.join(name)).unwrap();
}

pub(super) fn scripted(name: &str) -> Value {
    json!({"command": "pilotlight", "args": ["engine", "--scripted", name]})
}

pub(super) fn chat(prompt: &str) -> Value {
    json!({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_come_change_and_go() {
    let mut file = catalog(&["--scripted", "near"]);
    let service = Service::start(&file).await;
    let first = service.engine();
    let mut app = App::of(service.mqtt, "app").await;

    // a task and the terms of an entry: no process notices
    file["pilotlight"]["version"] = json!(7);
    file["pilotlight"]["tasks"]["shout"] = json!({"template": "SAY {{word}}"});
    file["pilotlight"]["servers"] = json!({"local": {"talents": ["poems"]}});
    let state = change(&service, &file).await;
    assert_eq!(state["config"]["version"], 7);
    assert_eq!(state["config"]["state"], "kept");
    assert_eq!(service.engines(), [first]);
    let reply = app.ask("app", r#"{"task": "shout", "input": {"word": "hi"}}"#).await;
    assert_eq!(reply["text"], "SAY hi", "{reply}");
    let reply = app.ask("app", r#"{"prompt": "a", "talent": "poems"}"#).await;
    assert_eq!(reply["status"], "ok", "{reply}");

    // a further entry
    file["mcpServers"]["other"] = scripted("other");
    change(&service, &file).await;
    service.ready_all().await;
    let reply = app.ask("app", r#"{"prompt": "a", "model": "other"}"#).await;
    assert_eq!(reply["source"]["server"], "other", "{reply}");
    assert_eq!(service.engines().len(), 2);
    assert!(service.engines().contains(&first));

    // another model under the same name, and one that goes
    file["mcpServers"]["local"] = scripted("better");
    file["mcpServers"].as_object_mut().unwrap().remove("other");
    change(&service, &file).await;
    service
        .until("the new model answers", |state| {
            state["servers"][0]["model"]["identification"]["name"] == "better"
        })
        .await;
    let reply = app.ask("app", r#"{"prompt": "a"}"#).await;
    assert_eq!(reply["source"]["model"], "better", "{reply}");
    let reply = app.ask("app", r#"{"prompt": "a", "model": "other"}"#).await;
    assert_eq!(reply["status"], "refused", "{reply}");
    until("the old engines have ended", || {
        service.engines().len() == 1 && !service.engines().contains(&first)
    })
    .await;
}

pub(super) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + crate::support::SOON;
    while !is_so() {
        assert!(tokio::time::Instant::now() < end, "not {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_started_job_ends_on_the_old_entry_and_a_waiting_one_is_decided_anew() {
    let mut file = catalog(&["--scripted", "near", "--slots", "1"]);
    let service = Service::start(&file).await;
    let mut app = App::of(service.mqtt, "app").await;
    let topic = "pilotlight/dev/request/app";
    let ask = async |id: &str, prompt: &str| {
        let payload = json!({"id": id, "prompt": prompt}).to_string();
        app.client
            .publish(
                topic,
                payload.into_bytes(),
                rumqttc::PublishOptions::new(rumqttc::mqttbytes::QoS::AtLeastOnce),
            )
            .await
            .unwrap();
    };
    ask("started", "one two /delay-us=2000000").await;
    ask("waiting", "three").await;
    service.until("one runs and one waits", |s| s["running"] == 1 && s["waiting"] == 1).await;
    file["mcpServers"] = json!({"fresh": scripted("fresh")});
    change(&service, &file).await;
    let first = app.reply().await;
    assert_eq!((&first["id"], &first["source"]["server"]), (&json!("waiting"), &json!("fresh")));
    let second = app.reply().await;
    assert_eq!((&second["id"], &second["source"]["server"]), (&json!("started"), &json!("local")));
    assert_eq!((&second["status"], &second["text"]), (&json!("ok"), &json!("one two")), "{second}");
    until("the removed engine has ended", || service.engines().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_job_obeys_the_new_policy() {
    let mut file = catalog(&["--scripted", "near", "--slots", "1"]);
    file["mcpServers"]["far"] = scripted("far");
    file["pilotlight"]["servers"] = json!({"far": {"reach": "cloud"}});
    let service = Service::start(&file).await;
    service.ready_all().await;
    let mut app = App::of(service.mqtt, "app").await;
    let busy = json!({"id": "busy", "prompt": "x /delay-us=3000000", "mode": "cloud-only"});
    let slots = (0..4).map(|_| busy.clone());
    for (n, mut body) in slots.enumerate() {
        body["id"] = json!(format!("busy-{n}"));
        app.send("pilotlight/dev/request/app", body.to_string(), PublishProperties::default())
            .await;
    }
    let waits = json!({"id": "waits", "prompt": "y", "mode": "cloud-only"}).to_string();
    app.send("pilotlight/dev/request/app", waits, PublishProperties::default()).await;
    service.until("one waits", |s| s["running"] == 4 && s["waiting"] == 1).await;
    file["pilotlight"]["policy"] = json!({"reach": "device"});
    change(&service, &file).await;
    let reply = app.reply().await;
    assert_eq!((&reply["id"], &reply["status"]), (&json!("waits"), &json!("refused")), "{reply}");
    for _ in 0..4 {
        let reply = app.reply().await;
        assert_eq!(reply["status"], "ok", "a started job ends on the old entry: {reply}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_changes_nothing_and_says_why() {
    let file = catalog(&["--scripted", "near"]);
    let service = Service::launch_with_log(&file, "embedded", &[]);
    service.ready().await;
    let engine = service.engine();
    let before = service.state().await.unwrap()["config"]["digest"].clone();
    let mut reported =
        App::connect(service.mqtt, "watch", &["pilotlight/dev/config/reported"]).await;
    let first: Value = serde_json::from_slice(&reported.next().await.payload).unwrap();
    assert_eq!((&first["state"], &first["digest"]), (&json!("kept"), &before));
    let mut bad = file.clone();
    bad["pilotlight"]["tasks"]["echo"]["max_token"] = json!(5);
    bad["mcpServers"]["local"]["comand"] = json!("x");
    write(service.folder.path(), "mcp.json", &bad.to_string());
    let state = service.until("refused", |state| state["config"]["state"] == "refused").await;
    let config = &state["config"];
    assert_eq!((&config["digest"], &state["ready"]), (&before, &json!(true)));
    let mistakes = config["mistakes"].to_string();
    for part in ["mcpServers.local.comand", "pilotlight.tasks.echo.max_token"] {
        assert!(mistakes.contains(part), "{mistakes}");
    }
    let told: Value = serde_json::from_slice(&reported.next().await.payload).unwrap();
    assert_eq!(&told, config, "the broker and the status say the same");
    assert!(service.log().contains("pilotlight.tasks.echo.max_token"), "{}", service.log());
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "still here").await["text"], "still here");
    assert_eq!(service.engines(), [engine]);
    // the command finds the service although the file is wrong
    let http = format!("127.0.0.1:{}", service.http);
    let env = [("PILOTLIGHT_HTTP", http.as_str())];
    let (code, out, err) = program(service.folder.path(), &["reload"], &env).await;
    assert_eq!(code, 2, "{out}{err}");
    assert!(out.contains("refused") && out.contains("max_token"), "{out}{err}");
    let (code, out, _) = program(service.folder.path(), &["status"], &env).await;
    assert!(code == 0 && out.contains("max_token"), "{out}");
    // and mended
    write(service.folder.path(), "mcp.json", &file.to_string());
    let state = service.until("kept", |state| state["config"]["state"] == "kept").await;
    assert!(state["config"]["mistakes"].is_null(), "{state}");
    let (code, out, err) = program(service.folder.path(), &["reload", "--json"], &env).await;
    assert_eq!(code, 0, "{err}");
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&out["state"], &out["digest"]), (&json!("kept"), &before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reads_variables_again_and_files_that_are_missing_change_nothing() {
    let mut file = catalog(&["--scripted", "${MODEL}"]);
    file["pilotlight"]["http"] = json!({"token": "${TOKEN}"});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "MODEL=one\nTOKEN=first\n").unwrap();
    let service = Service::launch_in(folder, &file, "off", &[]);
    let client = crate::support::service::client();
    let model = async |token: &str| {
        let answer = client.get(service.url("/readyz")).bearer_auth(token).send().await.ok()?;
        let state: Value = answer.json().await.ok()?;
        state["servers"][0]["model"]["identification"]["name"].as_str().map(str::to_owned)
    };
    let is = async |token: &str, name: Option<&str>| {
        let end = tokio::time::Instant::now() + crate::support::SOON;
        while model(token).await.as_deref() != name {
            assert!(tokio::time::Instant::now() < end, "{token}: not {name:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    is("first", Some("one")).await;
    // without the file of variables the configuration has mistakes
    std::fs::remove_file(service.folder.path().join(".env")).unwrap();
    signal(service.child.id().unwrap().cast_signed(), SIGHUP);
    is("first", Some("one")).await;
    write(service.folder.path(), ".env", "MODEL=two\nTOKEN=second\n");
    signal(service.child.id().unwrap().cast_signed(), SIGHUP);
    is("second", Some("two")).await;
    is("first", None).await;
    let answer = client.post(service.url("/v1/chat/completions")).bearer_auth("first");
    assert_eq!(answer.json(&chat("a")).send().await.unwrap().status(), 401);
    let answer = client.post(service.url("/v1/chat/completions")).bearer_auth("second");
    assert_eq!(answer.json(&chat("a")).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_prices_redaction_and_thresholds_change() {
    let board = tempfile::tempdir().unwrap();
    let zone = board.path().join("sys/class/thermal/thermal_zone0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("type"), "cpu-thermal\n").unwrap();
    std::fs::write(zone.join("temp"), "55000\n").unwrap();
    let mut file = catalog(&["--scripted", "near"]);
    file["mcpServers"]["far"] = scripted("far");
    file["pilotlight"]["servers"] = json!({"far": {"reach": "cloud"}});
    let sensors = board.path().display().to_string();
    let env = [("PILOTLIGHT_SENSORS", sensors.as_str())];
    let service = Service::launch(&file, "embedded", &env);
    service.ready_all().await;
    service.until("measured", |s| s["device"]["temperature_c"] == 55.0).await;
    let mut app = App::of(service.mqtt, "app").await;
    let far = r#"{"prompt": "call me@example.org", "mode": "cloud-only"}"#;
    let reply = app.ask("app", far).await;
    assert_eq!(reply["usage"]["cost_usd"], 0.0, "{reply}");
    assert!(reply["decision"]["attempts"][0]["redacted"].is_null(), "{reply}");

    file["pilotlight"]["servers"]["far"]["price"] = json!({"input": 1000, "output": 1000});
    file["pilotlight"]["policy"] = json!({"redact": ["email"]});
    let state = change(&service, &file).await;
    assert_eq!(state["device"]["stage"], "calm");
    let reply = app
        .ask("app", r#"{"prompt": "call me@example.org", "mode": "cloud-only", "max_tokens": 9}"#)
        .await;
    assert!(reply["usage"]["cost_usd"].as_f64().unwrap() > 0.0, "{reply}");
    assert_eq!(reply["decision"]["attempts"][0]["redacted"], 1, "{reply}");

    file["pilotlight"]["policy"]["budget"] = json!({"usd_per_day": 0.001});
    file["pilotlight"]["device_limits"] = json!({"heat_c": [40, 50]});
    change(&service, &file).await;
    let reply =
        app.ask("app", r#"{"prompt": "more", "mode": "cloud-only", "max_tokens": 9}"#).await;
    assert_eq!(reply["decision"]["reason"], "budget", "{reply}");
    service.until("hot", |s| s["device"]["stage"] == "closed").await;

    for part in ["budget", "redact"] {
        file["pilotlight"]["policy"].as_object_mut().unwrap().remove(part);
    }
    file["pilotlight"]["device_limits"] = json!({});
    change(&service, &file).await;
    let reply =
        app.ask("app", r#"{"prompt": "more", "mode": "cloud-only", "max_tokens": 9}"#).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    service.until("calm", |s| s["device"]["stage"] == "calm").await;
}

/// A file behind a symbolic link, as orchestrators and packages place it, and one whose folder is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_replaced_folders_are_followed() {
    let mut file = catalog(&["--scripted", "near"]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let place = |name: &str, file: &Value| {
        std::fs::create_dir_all(at(name)).unwrap();
        std::fs::write(at(name).join("mcp.json"), file.to_string()).unwrap();
    };
    place("v1", &file);
    std::os::unix::fs::symlink("v1", at("current")).unwrap();
    let path = at("current/mcp.json").display().to_string();
    let own = tempfile::tempdir().unwrap();
    let service =
        Service::launch_in(own, &json!({}), "off", &[("PILOTLIGHT_CONFIG", path.as_str())]);
    service.ready().await;
    let version = async |version: u64| {
        service.until("in force", |s| s["config"]["version"] == version).await;
    };
    file["pilotlight"]["version"] = json!(2);
    place("v2", &file);
    std::os::unix::fs::symlink("v2", at("next")).unwrap();
    std::fs::rename(at("next"), at("current")).unwrap();
    version(2).await;
    file["pilotlight"]["version"] = json!(3);
    place("v2", &file);
    version(3).await;
    std::fs::remove_dir_all(at("v2")).unwrap();
    service.until("refused", |s| s["config"]["state"] == "refused").await;
    file["pilotlight"]["version"] = json!(4);
    place("v2", &file);
    version(4).await;
    file["pilotlight"]["version"] = json!(5);
    place("v2", &file);
    version(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_is_named() {
    let mut file = catalog(&["--scripted", "near"]);
    let service = Service::start(&file).await;
    file["pilotlight"]["device"] = json!({"name": "other", "group": "line-3"});
    file["pilotlight"]["mqtt"] = json!({"prefix": "plant"});
    let state = change(&service, &file).await;
    let named = ["pilotlight.device.name", "pilotlight.device.group", "pilotlight.mqtt.prefix"];
    assert_eq!(state["config"]["restart_required"], json!(named));
    // the old topics are served
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "hello").await["text"], "hello");
    file["pilotlight"]["device"] = json!({"name": "dev"});
    file["pilotlight"].as_object_mut().unwrap().remove("mqtt");
    let state = change(&service, &file).await;
    assert!(state["config"]["restart_required"].is_null(), "{state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_at_the_broker_is_used_without_a_restart() {
    let port = crate::support::service::free_port();
    let passwords = tempfile::NamedTempFile::new().unwrap();
    let set = |password: &str| {
        let status = std::process::Command::new("mosquitto_passwd")
            .args(["-b", passwords.path().to_str().unwrap(), "dev", password])
            .status();
        assert!(status.unwrap().success());
    };
    set("first");
    let config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npassword_file {}\n",
        passwords.path().display()
    );
    let broker = Mosquitto::with(port, &config).await;
    let mut file = catalog(&["--scripted", "near"]);
    file["pilotlight"]["mqtt"] = json!({"username": "dev", "password": "${PASSWORD}"});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "PASSWORD=first\n").unwrap();
    let url = format!("mqtt://127.0.0.1:{port}");
    let service = Service::launch_in(folder, &file, &url, &[]);
    service.ready().await;
    // the operator changes it at the broker, and then on the device
    set("second");
    signal(broker.child.id().unwrap().cast_signed(), SIGHUP);
    write(service.folder.path(), ".env", "PASSWORD=second\n");
    let up = |state: &Value| state["mqtt"]["state"] == "up";
    let mut app = App::log_in(port, "app", &["pilotlight/dev/reply/app"], None).await;
    // messages of the time between are not lost
    for n in 0..20 {
        let reply = app.ask("app", json!({"id": n.to_string(), "prompt": "hi"}).to_string()).await;
        assert_eq!(reply["status"], "ok", "{reply}");
    }
    service.until("connected", up).await;
    // a wrong password is told, and the right one mends it
    write(service.folder.path(), ".env", "PASSWORD=wrong\n");
    service.until("refused", |state| state["mqtt"]["state"] == "down").await;
    write(service.folder.path(), ".env", "PASSWORD=second\n");
    service.until("connected again", up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_over_mqtt_comes_and_goes() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut host = catalog(&["--scripted", "big"]);
    host["pilotlight"]["device"] = json!({"name": "host"});
    host["pilotlight"]["mqtt"] = json!({"serve": "plant/big"});
    let worker = Service::launch(&host, &url, &[]);
    worker.ready().await;
    let file = catalog(&["--scripted", "near"]);
    let service = Service::launch(&file, &url, &[]);
    service.ready().await;
    let mut app = App::log_in(broker.port, "app", &["pilotlight/dev/reply/app"], None).await;
    let mut with = file.clone();
    with["mcpServers"]["big"] = json!({"type": "mqtt", "topic": "plant/big"});
    let far = r#"{"prompt": "far away", "mode": "cloud-only"}"#;
    for _ in 0..2 {
        change(&service, &with).await;
        service.ready_all().await;
        let reply = app.ask("app", far).await;
        assert_eq!(
            (&reply["text"], &reply["source"]["server"]),
            (&json!("far away"), &json!("big"))
        );
        change(&service, &file).await;
        let reply = app.ask("app", far).await;
        assert_eq!(reply["status"], "refused", "{reply}");
    }
}
