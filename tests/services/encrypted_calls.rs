//! Calls over MQTT with keys: strangers at the broker read nothing, and what they send counts nothing.

use std::time::{Duration, Instant};

use crate::support::cloud::{Act, Cloud, ending, entry, head, piece};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::pace::stretched;
use crate::support::service::{Service, catalog, signal};
use crate::support::stranger::{Stranger, send, topic};
use pilotlight::catalog::public_key::{CallerPublicKey, SecretKind, ServicePublicKey};
use pilotlight::catalog::secret::Secret;
use pilotlight::mcp::over_mqtt::keys::{CallerPair, ServicePair};
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

const TOPIC: &str = "pilotlight/mcp/big";
/// The keys of the service and of the device `dev`, and those of others.
const SERVICE: u8 = 1;
const DEVICE: u8 = 2;
const OTHER: u8 = 3;

fn at(port: u16) -> String {
    format!("mqtt://127.0.0.1:{port}")
}

fn service_key(seed: u8) -> ServicePublicKey {
    ServicePair::new(&Secret([seed; 32])).unwrap().public()
}

fn caller_key(seed: u8) -> CallerPublicKey {
    CallerPair::new(&Secret([seed; 32])).unwrap().public()
}

/// A device that calls a service with this key, if any; its own key is `caller`.
fn device(port: u16, service: Option<u8>, caller: u8) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["far"] = json!({"type": "mqtt", "topic": TOPIC});
    catalog["pilotlight"]["mqtt"] = json!({"caller_secret": "${CALLER}"});
    if let Some(seed) = service {
        catalog["pilotlight"]["servers"] = json!({"far": {"service_key": service_key(seed)}});
    }
    let secret = SecretKind::Caller.text(&[caller; 32]);
    Service::launch(&catalog, &at(port), &[("CALLER", &secret)])
}

/// What a worker is configured with: the name and key of its one caller, or that calls are in plain text.
fn serving(name: &str, callers: Option<Value>) -> Value {
    let mut ours = json!({
        "device": {"name": name}, "mqtt": {"serve": TOPIC, "service_secret": "${SERVICE}"},
    });
    if let Some(callers) = callers {
        ours["mqtt"]["callers"] = callers;
    } else {
        ours["mqtt"].as_object_mut().unwrap().remove("service_secret");
    }
    ours
}

fn known() -> Value {
    json!({"dev": caller_key(DEVICE)})
}

/// A worker with the key of this service that relays to a cloud.
fn relay_of(
    port: u16,
    name: &str,
    (service, callers): (u8, Option<Value>),
    cloud: &Cloud,
) -> Service {
    let mut catalog = json!({"pilotlight": serving(name, callers)});
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["providers"]["big"]["slots"] = json!(64);
    catalog["pilotlight"]["providers"]["big"]["context_tokens"] = json!(100_000);
    let secret = SecretKind::Service.text(&[service; 32]);
    Service::launch(&catalog, &at(port), &[("SERVICE", &secret)])
}

fn relay(port: u16, name: &str, cloud: &Cloud) -> Service {
    relay_of(port, name, (SERVICE, Some(known())), cloud)
}

/// Says what it was asked, in several parts, so that there is time to disturb.
fn repeated(body: &Value) -> Vec<Vec<u8>> {
    let said = body["messages"][0]["content"].as_str().unwrap();
    let (one, two) = said.split_at(said.len() / 2);
    let parts = [head("200 OK", "text/event-stream", ""), piece(one), piece(two), ending("stop")];
    parts.map(String::into_bytes).to_vec()
}

async fn slow_cloud() -> Cloud {
    Cloud::start([Act::Slow(Duration::from_millis(100), repeated)]).await
}

fn far(prompt: &str, deadline_ms: u64) -> String {
    json!({"prompt": prompt, "mode": "cloud-only", "deadline_ms": deadline_ms}).to_string()
}

/// Waits until the service has a reason for a model's absence with this text, and returns it.
async fn reason(service: &Service, text: &str) -> String {
    let of = |state: &Value| {
        let servers = state["servers"].as_array().unwrap().clone();
        let found = servers.iter().find(|server| server.to_string().contains(text));
        found.map(Value::to_string)
    };
    let state = service.until(text, |state| of(state).is_some()).await;
    of(&state).unwrap()
}

/// Everything works, pieces and large texts too, and a listener at the broker reads none of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_reads_a_call() {
    let broker = Mosquitto::start().await;
    let ear = Stranger::listen(broker.port, TOPIC).await;
    let cloud = slow_cloud().await;
    let _workers = [relay(broker.port, "w1", &cloud), relay(broker.port, "w2", &cloud)];
    let device = device(broker.port, Some(SERVICE), DEVICE);
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    let reply = app.ask("app", far("the lamp of the lighthouse", 20_000)).await;
    assert_eq!(reply["text"], "the lamp of the lighthouse", "{reply}");
    let long = "lamp ".repeat(12_000);
    let reply = app.ask("app", far(&long, 30_000)).await;
    assert_eq!(reply["text"], long.as_str(), "{}", reply["error"]);
    for n in 0..8 {
        let reply = app.ask("app", far(&format!("question {n}"), 20_000)).await;
        assert_eq!(reply["text"], format!("question {n}"), "{reply}");
    }
    assert_eq!(cloud.asked().len(), 10, "each call is made once");
    let heard = &ear.heard;
    let topics = heard.topics();
    for topic in ["call/w1", "call/w2", "answer/dev", "worker/w1", "worker/w2"] {
        assert!(topics.contains(&format!("{TOPIC}/{topic}")), "{topics:?}");
    }
    assert!(!topics.contains(&format!("{TOPIC}/call")), "a call in plain text");
    for text in ["lamp", "lighthouse", "question", "jsonrpc", "generate"] {
        assert!(!heard.has(text), "{text} can be read");
    }
    // the marks are as long as they should be, and no two are alike
    let marks = heard.all().into_iter().filter(|publish| topic(publish).contains("/call/"));
    let marks = marks.map(|publish| publish.properties.unwrap().correlation_data.unwrap());
    let marks: std::collections::BTreeSet<_> = marks.collect();
    assert!(marks.len() >= 10 && marks.iter().all(|mark| mark.len() == 16), "{marks:?}");
}

/// A client that takes a worker's share, forges answers, presence and cancellations, and repeats, changes
/// and moves messages: every request has its true answer, and no call is made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_changes_nothing() {
    let broker = Mosquitto::start().await;
    let stranger = Stranger::attack(broker.port, TOPIC, None).await;
    let cloud = slow_cloud().await;
    let _workers = [relay(broker.port, "w1", &cloud), relay(broker.port, "w2", &cloud)];
    let device = device(broker.port, Some(SERVICE), DEVICE);
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    for n in 0..6 {
        let prompt = format!("question {n} {}", "about the lamp ".repeat(n * 400));
        let reply = app.ask("app", far(&prompt, 30_000)).await;
        let attempts = &reply["decision"]["attempts"];
        assert_eq!(reply["text"], prompt.as_str(), "{attempts} {}", reply["error"]);
        assert_eq!(attempts.as_array().unwrap().len(), 1, "{attempts}");
    }
    assert_eq!(cloud.asked().len(), 6, "each call is made once");
    assert!(!stranger.heard.has("lamp"), "a text can be read");
    let heard = stranger.heard.topics();
    assert!(!heard.contains(&format!("{TOPIC}/call")), "{heard:?}");
    // what was wrong is told
    let told = device.until("told", |state| {
        let problems = state["mqtt"]["problems"].to_string();
        problems.contains("not from the worker of its call") && problems.contains("stranger")
    });
    told.await;
}

/// Recorded calls and presence, after a restart of the worker too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recorded_is_of_no_use() {
    let broker = Mosquitto::start().await;
    let ear = Stranger::listen(broker.port, TOPIC).await;
    let cloud = slow_cloud().await;
    let mut worker = relay(broker.port, "w1", &cloud);
    let device = device(broker.port, Some(SERVICE), DEVICE);
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    assert_eq!(app.ask("app", far("first", 20_000)).await["text"], "first");
    let recorder = App::connect(broker.port, "recorder", &[]).await;
    // the end of the worker, and its next start
    let folder = std::mem::replace(&mut worker.folder, tempfile::tempdir().unwrap());
    worker.child.kill().await.unwrap();
    let gone = |state: &Value| state["servers"].to_string().contains("no worker online");
    device.until("it is gone", gone).await;
    let mut catalog = json!({"pilotlight": serving("w1", Some(known()))});
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let secret = SecretKind::Service.text(&[SERVICE; 32]);
    let second = Service::launch_in(folder, &catalog, &at(broker.port), &[("SERVICE", &secret)]);
    device.ready_all().await;
    assert_eq!(app.ask("app", far("second", 20_000)).await["text"], "second");
    let mut replayed = 0;
    for publish in ear.heard.all() {
        let (topic, retain) = (topic(&publish), topic(&publish).contains("/worker/"));
        let properties = publish.properties.clone().unwrap_or_default();
        if topic.contains("/call/") || retain {
            let payload = publish.payload.to_vec();
            send(&recorder.client, &topic, payload, properties, retain).await;
            replayed += 1;
        }
    }
    assert!(replayed >= 5, "{replayed}: online, call, offline, online, call");
    // the second start has refused the first one's call: it is heard, and signed
    let refusals = |ear: &Stranger| {
        let all = ear.heard.all();
        let signed = all.iter().filter(|publish| publish.payload.starts_with(b"eyJ"));
        signed.filter(|publish| topic(publish).contains("/answer/")).count()
    };
    let end = Instant::now() + stretched(Duration::from_secs(20));
    while refusals(&ear) == 0 {
        assert!(Instant::now() < end, "no refusal");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reply = app.ask("app", far("third", 20_000)).await;
    assert_eq!(reply["text"], "third", "{reply}");
    let prompts: Vec<Value> =
        cloud.asked().iter().map(|asked| asked.body["messages"][0]["content"].clone()).collect();
    assert_eq!(prompts, ["first", "second", "third"], "each call is made once");
    drop(second);
}

/// A caller that the worker does not know is told so at once, with what is to be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_another_key_is_refused() {
    let broker = Mosquitto::start().await;
    let cloud = slow_cloud().await;
    let worker = relay(broker.port, "w1", &cloud);
    let device = device(broker.port, Some(SERVICE), OTHER);
    let remedy = format!("add \\\"dev\\\": \\\"{}\\\"", caller_key(OTHER));
    let why = reason(&device, "does not know this caller").await;
    assert!(why.contains(&remedy) && why.contains("pilotlight.mqtt.callers there"), "{why}");
    // nobody at all
    drop(worker);
    let _worker = relay_of(broker.port, "w2", (SERVICE, Some(json!({}))), &cloud);
    let why = reason(&device, "the worker w2 does not know this caller").await;
    assert!(why.contains(&remedy), "{why}");
    assert!(cloud.asked().is_empty());
}

/// With a key nothing is sent or accepted in plain text, on either side; each says what is expected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_way_back_to_plain_text() {
    let broker = Mosquitto::start().await;
    let ear = Stranger::listen(broker.port, TOPIC).await;
    let cloud = slow_cloud().await;
    let pinned = device(broker.port, Some(SERVICE), DEVICE);
    pinned.ready().await;
    // a worker in plain text, and one with another key
    let plain = relay_of(broker.port, "w1", (SERVICE, None), &cloud);
    let expected = format!("is not signed, expected is the key {}", service_key(SERVICE));
    let why = reason(&pinned, &expected).await;
    assert!(why.contains("pilotlight.mqtt.callers"), "{why}");
    drop(plain);
    let other = relay_of(broker.port, "w2", (OTHER, Some(known())), &cloud);
    let expected = format!("not signed with the expected key {}", service_key(SERVICE));
    let why = reason(&pinned, &expected).await;
    assert!(why.contains("service_key"), "{why}");
    drop(other);
    // a caller in plain text of a worker with a key
    let _worker = relay(broker.port, "w3", &cloud);
    pinned.ready_all().await;
    let open = {
        let mut catalog = catalog(&["--scripted", "small"]);
        catalog["mcpServers"]["far"] = json!({"type": "mqtt", "topic": TOPIC});
        catalog["pilotlight"]["device"]["name"] = json!("open");
        Service::launch(&catalog, &at(broker.port), &[])
    };
    let why = reason(&open, "accepts encrypted calls only").await;
    assert!(why.contains("service_key"), "{why}");
    // and one that does not care
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "generate", "arguments": {"prompt": "in plain text"},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    let answers = format!("{TOPIC}/answer/dev");
    let mut app = App::connect(broker.port, "plain", &[&answers]).await;
    for to in ["call/w3", "call"] {
        let properties = PublishProperties {
            response_topic: Some(answers.clone()),
            correlation_data: Some("mark".into()),
            ..PublishProperties::default()
        };
        app.send(&format!("{TOPIC}/{to}"), call.to_string(), properties).await;
    }
    // it is refused, and by nobody else
    // the device reads its answers on this topic too
    while !app.next().await.payload.starts_with(b"eyJ") {}
    let mut asking = App::of(broker.port, "app").await;
    assert_eq!(asking.ask("app", far("with a key", 20_000)).await["text"], "with a key");
    assert_eq!(cloud.asked().len(), 1, "{:?}", cloud.asked());
    assert!(!ear.heard.has("with a key"));
}

/// Who stops waiting stops the work, and nobody else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_caller_cancels() {
    let broker = Mosquitto::start().await;
    let ear = Stranger::listen(broker.port, TOPIC).await;
    let device = device(broker.port, Some(SERVICE), DEVICE);
    let mut catalog = catalog(&["--scripted", "small", "--slots", "8"]);
    catalog["pilotlight"] = serving("w1", Some(known()));
    let secret = SecretKind::Service.text(&[SERVICE; 32]);
    let worker = Service::launch(&catalog, &at(broker.port), &[("SERVICE", &secret)]);
    device.ready_all().await;
    let asking = device.chat(json!({
        "model": "far", "messages": [{"role": "user", "content": "/tokens=2000 /delay-us=20000"}],
        "metadata": {"deadline_ms": 60_000},
    }));
    let disturbed = async {
        worker.until("busy", |state| state["running"] != 0).await;
        let call = ear.heard.all().into_iter().rfind(|p| topic(p).contains("/call/")).unwrap();
        let mark = call.properties.unwrap().correlation_data;
        let stranger = App::connect(broker.port, "cancels", &[&format!("{TOPIC}/tell")]).await;
        for payload in [vec![], vec![0; 32], call.payload[..32].to_vec()] {
            let properties =
                PublishProperties { correlation_data: mark.clone(), ..Default::default() };
            stranger.send(&format!("{TOPIC}/tell"), payload, properties).await;
        }
        let mut stranger = stranger;
        for _ in 0..3 {
            stranger.next().await;
        }
        // the worker has read that before the next call, and the first one goes on
        let body = json!({"model": "far", "messages": [{"role": "user", "content": "and now"}],
                          "metadata": {"deadline_ms": 20_000}});
        assert_eq!(device.chat(body).await.0, 200);
        assert_eq!(worker.state().await.unwrap()["running"], 1);
    };
    tokio::select! {
        ended = asking => panic!("it has ended: {ended:?}"),
        () = disturbed => {}
    }
    worker.until("idle again", |state| state["running"] == 0).await;
}

/// A worker whose presence is overwritten says again that it is there, with keys and without, and not
/// more often than it should.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_said_again() {
    for callers in [Some(known()), None] {
        let broker = Mosquitto::start().await;
        let cloud = slow_cloud().await;
        let _worker = relay_of(broker.port, "w1", (SERVICE, callers.clone()), &cloud);
        let presence = format!("{TOPIC}/worker/w1");
        let mut ear = App::connect(broker.port, "ear", &[&presence]).await;
        let online = ear.next().await.payload;
        let (began, mut again) = (Instant::now(), 0);
        let mut last = online.clone();
        for n in 0..100 {
            let offline = json!({"state": "offline"}).to_string();
            send(&ear.client, &presence, offline.into(), PublishProperties::default(), true).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            while let Ok(publish) = ear.inbox.try_recv() {
                again += u32::from(publish.payload == online);
                last = publish.payload;
            }
            assert!(n < 99 || again <= 2, "{again} times in {:?}", began.elapsed());
        }
        while last != online {
            last = ear.next().await.payload;
        }
        // who subscribes now knows it too
        let mut late = App::connect(broker.port, "late", &[&presence]).await;
        assert_eq!(late.next().await.payload, online, "{callers:?}");
    }
}

/// The service goes on with another worker when one is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_takes_over() {
    let broker = Mosquitto::start().await;
    let cloud = slow_cloud().await;
    let workers = [relay(broker.port, "w1", &cloud), relay(broker.port, "w2", &cloud)];
    let device = device(broker.port, Some(SERVICE), DEVICE);
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    for n in 0..4 {
        assert_eq!(app.ask("app", far("before", 20_000)).await["text"], "before", "{n}");
    }
    signal(workers[0].child.id().unwrap() as i32, nix::sys::signal::Signal::SIGKILL);
    for n in 0..4 {
        let reply = app.ask("app", far("after", 20_000)).await;
        assert_eq!(reply["text"], "after", "{n}: {reply}");
    }
}

/// The policy of the worker for a caller is that of its name in `mqtt.callers`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_an_application_of_the_worker() {
    let broker = Mosquitto::start().await;
    let cloud = slow_cloud().await;
    for (apps, is_refused) in
        [(json!({"dev": {"refuse": true}}), true), (json!({"+": {"refuse": true}}), false)]
    {
        let mut catalog = json!({"pilotlight": serving("w1", Some(known()))});
        catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
        catalog["pilotlight"]["policy"] = json!({"apps": apps});
        let secret = SecretKind::Service.text(&[SERVICE; 32]);
        let worker = Service::launch(&catalog, &at(broker.port), &[("SERVICE", &secret)]);
        let device = device(broker.port, Some(SERVICE), DEVICE);
        device.ready_all().await;
        let mut app = App::of(broker.port, "app").await;
        let reply = app.ask("app", far("hello", 20_000)).await;
        let told = reply.to_string();
        assert_eq!(told.contains("refuses the application"), is_refused, "{reply}");
        assert_eq!(reply["text"] == "hello", !is_refused, "{reply}");
        drop((worker, device));
    }
}
