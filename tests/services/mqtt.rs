//! The MQTT door, with real bytes at a real broker: the embedded one, and mosquitto.

use std::collections::BTreeSet;

use crate::support::mqtt::{App, Gate, Mosquitto};
use crate::support::service::{Service, catalog, signal};
use nix::sys::signal::Signal;
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

pub(super) fn with(response: &str, correlation: &str) -> PublishProperties {
    PublishProperties {
        response_topic: Some(response.to_owned()).filter(|t| !t.is_empty()),
        correlation_data: Some(correlation.to_owned().into())
            .filter(|c: &bytes::Bytes| !c.is_empty()),
        ..PublishProperties::default()
    }
}

/// Everything that an application sees, at whichever broker.
async fn the_door(service: &Service, port: u16) {
    let mut app = App::of(port, "app").await;
    let reply = app.ask("app", "hello there world").await;
    assert_eq!(reply["status"], "ok", "{reply}");
    assert_eq!(reply["text"], "hello there world");
    assert_eq!(reply["source"], json!({"server": "local", "model": "dry", "where": "device"}));
    assert_eq!(reply["decision"]["route"], "local");
    assert_eq!(reply["decision"]["reason"], "feasible");
    assert_eq!(reply["decision"]["attempts"][0]["outcome"], "ok");
    assert_eq!(reply["usage"]["completion_tokens"], 3);

    let ask = json!({"id": "r-1", "prompt": "a b c", "max_tokens": 2}).to_string();
    let reply = app.ask("app", ask).await;
    assert_eq!(
        (&reply["id"], &reply["text"], &reply["finish"]),
        (&json!("r-1"), &json!("a b"), &json!("length"))
    );

    let topic = "pilotlight/dev/request/app/echo";
    let ask = json!({"id": "t-1", "input": {"word": "hi"}}).to_string();
    app.send(topic, ask, PublishProperties::default()).await;
    assert_eq!(app.reply().await["text"], "say hi");

    pieces(&mut app).await;
    response_topics(&mut app).await;
    keys(&mut app).await;
    bad_input(&mut app).await;
    super::odd_topics::have_one_reply(port).await;
    let reply = app.ask("app", "and the next is unharmed").await;
    assert_eq!(reply["status"], "ok");
    assert_eq!(service.state().await.unwrap()["ready"], true);
}

async fn pieces(app: &mut App) {
    let ask = json!({"id": "s-1", "prompt": "/tokens=50 x y", "stream": true}).to_string();
    app.send("pilotlight/dev/request/app", ask, PublishProperties::default()).await;
    // two topics: a broker may hand out the reply before the last pieces
    let (mut text, mut count, mut done, mut reply) = (String::new(), 0, None, Value::Null);
    while done.is_none() || reply.is_null() {
        let publish = app.next().await;
        let value: Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!(value["id"], "s-1");
        if publish.topic == "pilotlight/dev/reply/app".as_bytes() {
            reply = value;
        } else if value["done"] == true {
            done = value["count"].as_u64();
        } else {
            assert_eq!(value["n"], count);
            count += 1;
            text.push_str(value["text"].as_str().unwrap());
        }
    }
    assert_eq!((count, done), (50, Some(50)));
    assert_eq!(reply["text"], text);
}

async fn response_topics(app: &mut App) {
    let request = "pilotlight/dev/request/app";
    let own = "pilotlight/dev/reply/app/7";
    app.send(request, "mine", with(own, "c-7")).await;
    let publish = app.next().await;
    assert_eq!(publish.topic, own.as_bytes());
    assert_eq!(publish.properties.unwrap().correlation_data.unwrap(), "c-7".as_bytes());

    for forged in ["pilotlight/dev/reply/other", "pilotlight/dev/status", "a/b"] {
        app.send(request, "forged", with(forged, forged)).await;
        let publish = app.next().await;
        assert_eq!(publish.topic, "pilotlight/dev/reply/app".as_bytes(), "{forged}");
        let reply: Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!(reply["status"], "refused");
        assert_eq!(reply["error"]["field"], "response_topic");
    }
}

async fn keys(app: &mut App) {
    let ask = |word: &str| json!({"id": "k-1", "prompt": word}).to_string();
    let first = app.ask("app", ask("same")).await;
    let again = app.ask("app", ask("same")).await;
    assert_eq!(first, again, "the same key gives the same stored answer");
    // asked again at the very moment at which the answer came
    for n in 0..40 {
        let ask = json!({"id": format!("k-{n}-again"), "prompt": "same"}).to_string();
        let first = app.ask("app", ask.clone()).await;
        assert_eq!(first, app.ask("app", ask).await);
    }
    let other = app.ask("app", ask("other")).await;
    assert_eq!((&other["status"], &other["error"]["field"]), (&json!("conflict"), &json!("id")));
}

#[expect(clippy::too_many_lines, reason = "a table, one line a case")]
async fn bad_input(app: &mut App) {
    let big = "x".repeat(10 * 1024 * 1024);
    let long = json!({"prompt": "y".repeat(600 * 1024)}).to_string();
    let cases: Vec<(&str, Vec<u8>, &str, &str, &str)> = vec![
        ("broken JSON", b"{\"prompt\": ".to_vec(), "refused", "malformed", ""),
        (
            "unknown field",
            br#"{"prompt": "x", "promt": 1}"#.to_vec(),
            "refused",
            "invalid",
            "promt",
        ),
        (
            "wrong type",
            br#"{"prompt": "x", "max_tokens": "many"}"#.to_vec(),
            "refused",
            "invalid",
            "max_tokens",
        ),
        ("10 MB", big.into_bytes(), "refused", "too_large", ""),
        ("too long a prompt", long.into_bytes(), "refused", "too_large", "prompt"),
        ("not UTF-8", vec![b'a', 0xFF, 0xFE], "refused", "malformed", ""),
        ("empty", Vec::new(), "refused", "invalid", "prompt"),
        ("blank", b"  \n ".to_vec(), "refused", "invalid", "prompt"),
        (
            "two prompts",
            br#"{"prompt": "x", "messages": []}"#.to_vec(),
            "refused",
            "invalid",
            "prompt",
        ),
        (
            "hot",
            br#"{"prompt": "x", "temperature": 99}"#.to_vec(),
            "refused",
            "invalid",
            "temperature",
        ),
        (
            "no tokens",
            br#"{"prompt": "x", "max_tokens": 0}"#.to_vec(),
            "refused",
            "invalid",
            "max_tokens",
        ),
        ("negative", br#"{"prompt": "x", "top_k": -1}"#.to_vec(), "refused", "invalid", "top_k"),
        (
            "no time",
            br#"{"prompt": "x", "deadline_ms": 0}"#.to_vec(),
            "refused",
            "invalid",
            "deadline_ms",
        ),
        (
            "bad stop",
            br#"{"prompt": "x", "stop": ["a", ""]}"#.to_vec(),
            "refused",
            "invalid",
            "stop[1]",
        ),
        (
            "unknown task",
            br#"{"task": "nope", "input": {}}"#.to_vec(),
            "refused",
            "unknown",
            "task",
        ),
        (
            "missing input",
            br#"{"task": "echo", "input": {}}"#.to_vec(),
            "refused",
            "invalid",
            "input.word",
        ),
        (
            "extra input",
            br#"{"task": "echo", "input": {"word": "a", "x": 1}}"#.to_vec(),
            "refused",
            "invalid",
            "input.x",
        ),
        (
            "unknown model",
            br#"{"prompt": "x", "model": "gpt-9"}"#.to_vec(),
            "refused",
            "unknown",
            "model",
        ),
        (
            "no cloud",
            br#"{"prompt": "x", "mode": "cloud-only"}"#.to_vec(),
            "refused",
            "incapable",
            "mode",
        ),
        (
            "schema it can't keep",
            br#"{"prompt": "x", "schema": {"type": "object"}}"#.to_vec(),
            "refused",
            "incapable",
            "schema",
        ),
        (
            "schema is no object",
            br#"{"prompt": "x", "schema": 7}"#.to_vec(),
            "refused",
            "invalid",
            "schema",
        ),
        (
            "deep JSON",
            [b"{\"schema\":".to_vec(), b"[".repeat(5000)].concat(),
            "refused",
            "malformed",
            "",
        ),
        (
            "late",
            br#"{"prompt": "/delay-us=400000 x y z", "deadline_ms": 50}"#.to_vec(),
            "expired",
            "deadline",
            "",
        ),
        ("away", br#"{"prompt": "/fail=broken@1 x y z"}"#.to_vec(), "failed", "broken", ""),
    ];
    for (name, payload, status, code, field) in cases {
        let reply = app.ask("app", payload).await;
        assert_eq!(reply["status"], status, "{name}: {reply}");
        assert_eq!(reply["error"]["code"], code, "{name}: {reply}");
        assert_eq!(reply["error"]["field"].as_str().unwrap_or(""), field, "{name}: {reply}");
        assert!(!reply["error"]["message"].as_str().unwrap().is_empty(), "{name}");
    }
    // what nobody could be told about, and what is kept by the broker, is passed over
    app.send("pilotlight/dev/request/a b", "x", PublishProperties::default()).await;
    let retained = PublishOptions::new(QoS::AtLeastOnce).retained();
    app.client.publish("pilotlight/dev/request/app", "kept", retained).await.unwrap();
    // to a standing subscription a retained request is new and is answered
    assert_eq!(app.reply().await["text"], "kept");
    app.stays_silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_embedded_broker() {
    let service = Service::start(&catalog(&DRY)).await;
    the_door(&service, service.mqtt).await;
    assert!(service.stop().await, "the service ended badly");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_mosquitto() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    service.ready().await;
    the_door(&service, broker.port).await;
    // a retained request is not answered when the subscription is made anew
    assert!(service.stop().await, "the service ended badly");
    let mut app = App::of(broker.port, "app").await;
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    service.ready().await;
    app.stays_silent().await;
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_who_is_there_and_who_is_gone() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut watcher = App::connect(broker.port, "watcher", &["pilotlight/dev/status"]).await;
    let mut state =
        async || -> Value { serde_json::from_slice(&watcher.next().await.payload).unwrap() };
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    let online = state().await;
    assert_eq!((&online["state"], &online["device"]), (&json!("online"), &json!("dev")));
    assert!(online["version"].is_string() && online["epoch"].as_u64().unwrap() > 0);
    assert!(service.stop().await);
    assert_eq!(state().await["state"], "offline");
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    assert_eq!(state().await["state"], "online");
    service.ready().await;
    signal(i32::try_from(service.child.id().unwrap()).unwrap(), Signal::SIGKILL);
    assert_eq!(state().await["state"], "offline", "the last will");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_survive_the_service() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut app = App::of(broker.port, "app").await;
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    service.ready().await;
    // a request that is being answered when the power fails, and one that comes while it is off
    let slow = json!({"id": "slow", "prompt": "/tokens=40 /delay-us=100000 x"}).to_string();
    app.send("pilotlight/dev/request/app", slow, PublishProperties::default()).await;
    service.until("running", |state| state["running"] == 1).await;
    signal(i32::try_from(service.child.id().unwrap()).unwrap(), Signal::SIGKILL);
    drop(service);
    let quick = json!({"id": "quick", "prompt": "a b"}).to_string();
    app.send("pilotlight/dev/request/app", quick, PublishProperties::default()).await;
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let reply = app.reply().await;
        assert_eq!(reply["status"], "ok", "{reply}");
        ids.push(reply["id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    assert_eq!(ids, ["quick", "slow"]);
    app.stays_silent().await;
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_comes_late_and_goes_in_between() {
    let port = crate::support::service::free_port();
    let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
    let gate = Gate::to(port).await;
    let url = format!("mqtt://127.0.0.1:{}", gate.port);
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    let state = service.until("up without a broker", |state| state["ready"] == true).await;
    assert_eq!(state["mqtt"]["state"], "down");
    let mut broker = Mosquitto::with(port, &config).await;
    service.ready().await;
    let mut app = App::of(port, "app").await;
    assert_eq!(app.ask("app", "one").await["status"], "ok");
    // the broker loses everything while an answer is being made: the answer waits in the outbox
    let slow = json!({"id": "s", "prompt": "/tokens=20 /delay-us=200000 x"}).to_string();
    app.send("pilotlight/dev/request/app", slow, PublishProperties::default()).await;
    service.until("running", |state| state["running"] == 1).await;
    broker.child.kill().await.unwrap();
    gate.shut();
    drop(app);
    drop(broker);
    service.until("idle", |state| state["running"] == 0).await;
    let broker = Mosquitto::with(port, &config).await;
    // the application listens before the service is back: the broker would not keep it a reply
    let mut app = App::of(port, "app").await;
    gate.open();
    let reply = app.reply().await;
    assert_eq!((&reply["id"], &reply["status"]), (&json!("s"), &json!("ok")));
    service.ready().await;
    assert_eq!(app.ask("app", "two").await["status"], "ok");
    drop(broker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_each_have_one_reply() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let service = Service::launch(&catalog(&DRY), &url, &[]);
    service.ready().await;
    let mut app = App::of(broker.port, "app").await;
    let mut seen = std::collections::BTreeSet::new();
    for batch in 0..20 {
        for n in 0..50 {
            let ask = json!({"id": format!("n-{batch}-{n}"), "prompt": "x y"}).to_string();
            app.send("pilotlight/dev/request/app", ask, PublishProperties::default()).await;
        }
        for _ in 0..50 {
            let reply = app.reply().await;
            assert!(seen.insert(reply["id"].as_str().unwrap().to_owned()), "twice: {reply}");
            assert!(reply["status"] == "ok" || reply["status"] == "busy", "{reply}");
        }
    }
    assert_eq!(seen.len(), 1000);
    app.stays_silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    write("ca.pem", ca_cert.pem());
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
    let port = crate::support::service::free_port();
    let plain = crate::support::service::free_port();
    let config = format!(
        "per_listener_settings true\nlistener {plain} 127.0.0.1\nallow_anonymous true\n\
         listener {port} 127.0.0.1\nallow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n\
         require_certificate true\nuser root\n",
        path("ca.pem"),
        path("server.pem"),
        path("server.key")
    );
    let broker = Mosquitto::with(plain, &config).await;
    let mut catalog = catalog(&DRY);
    let url = format!("mqtts://localhost:{port}");
    catalog["pilotlight"]["mqtt"] = json!({"ca": path("ca.pem")});
    // without a certificate of its own it is not let in, and says so
    let service = Service::launch(&catalog, &url, &[]);
    let state =
        service.until("refused", |state| state["mqtt"]["reason"] != "not connected yet").await;
    assert_eq!(state["mqtt"]["state"], "down");
    drop(service);
    catalog["pilotlight"]["mqtt"] =
        json!({"ca": path("ca.pem"), "cert": path("client.pem"), "key": path("client.key")});
    let service = Service::launch(&catalog, &url, &[]);
    service.ready().await;
    let mut app = App::of(broker.port, "app").await;
    assert_eq!(app.ask("app", "secret").await["text"], "secret");
    // a damaged certificate is refused, and the connection stays
    let own = std::fs::read_to_string(path("client.pem")).unwrap();
    write("client.pem", "no certificate".to_owned());
    let state = service.until("refused", |s| s["config"]["state"] == "refused").await;
    assert!(state["config"]["mistakes"].to_string().contains("client.pem"), "{state}");
    assert_eq!(app.ask("app", "still").await["text"], "still");
    write("client.pem", own);
    service.until("kept", |s| s["config"]["state"] == "kept").await;
    // another authority is trusted from the moment at which its file has it
    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&other).unwrap();
    write("ca.pem", other.pem());
    service.until("distrusted", |s| s["mqtt"]["state"] == "down").await;
    write("ca.pem", ca_cert.pem());
    service.until("trusted", |s| s["mqtt"]["state"] == "up").await;
    assert_eq!(app.ask("app", "again").await["text"], "again");
}

/// Devices of a group share the requests to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_shares_its_requests() {
    let broker = Mosquitto::start().await;
    let member = |name: &str| {
        let mut catalog = catalog(&["--scripted", name]);
        catalog["pilotlight"]["device"] = json!({"name": name, "group": "line-3"});
        Service::launch(&catalog, &format!("mqtt://127.0.0.1:{}", broker.port), &[])
    };
    let (one, two) = (member("d1"), member("d2"));
    one.ready_all().await;
    two.ready_all().await;
    one.ready().await;
    two.ready().await;
    let mut app = App::connect(broker.port, "asker", &["pilotlight/group/line-3/reply/app"]).await;
    for n in 0..20 {
        let payload = json!({"id": n.to_string(), "prompt": "hello"}).to_string();
        let topic = "pilotlight/group/line-3/request/app";
        app.send(topic, payload, PublishProperties::default()).await;
    }
    let (mut who, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..20 {
        let reply = app.reply().await;
        assert_eq!(reply["status"], "ok", "{reply}");
        who.insert(reply["source"]["model"].as_str().unwrap().to_owned());
        assert!(ids.insert(reply["id"].as_str().unwrap().to_owned()), "{reply}");
    }
    app.stays_silent().await;
    assert_eq!(who.len(), 2, "{who:?}");
}
