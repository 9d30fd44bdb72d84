//! A cloud over MQTT: calls go to any worker of a service, and come back whole, once, or fail in time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::cloud::{Act, Cloud, answer, ending, entry, head, piece};
use crate::support::figures::memory;
use crate::support::mqtt::{App, Gate, Mosquitto};
use crate::support::pace::stretched;
use crate::support::service::{Service, catalog, signal};
use crate::support::storm;
use futures::StreamExt;
use pilotlight::limits::REST_MAX;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

const TOPIC: &str = "pilotlight/mcp/big";

fn at(port: u16) -> String {
    format!("mqtt://127.0.0.1:{port}")
}

/// A device with a small model of its own and a service on MQTT.
fn device(port: u16) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["far"] = json!({"type": "mqtt", "topic": TOPIC});
    Service::launch(&catalog, &at(port), &[])
}

/// A worker of that service, whose model has the worker's name.
fn worker(port: u16, name: &str) -> Service {
    let mut catalog = catalog(&["--scripted", name, "--slots", "8"]);
    catalog["pilotlight"]["device"]["name"] = json!(name);
    catalog["pilotlight"]["mqtt"] = json!({"serve": TOPIC});
    Service::launch(&catalog, &at(port), &[])
}

fn far(prompt: &str, deadline_ms: u64) -> String {
    json!({"prompt": prompt, "mode": "cloud-only", "deadline_ms": deadline_ms}).to_string()
}

async fn send(app: &App, payload: String) {
    app.send("pilotlight/dev/request/app", payload, PublishProperties::default()).await;
}

/// Waits until something was called at this worker.
async fn busy(worker: &Service) {
    worker.until("busy", |state| state["running"] != 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_answers_for_the_service() {
    let broker = Mosquitto::start().await;
    let (device, worker) = (device(broker.port), worker(broker.port, "w1"));
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;

    let reply = app.ask("app", far("one two three", 10_000)).await;
    assert_eq!((&reply["status"], &reply["text"]), (&json!("ok"), &json!("one two three")));
    let source = &reply["source"];
    assert_eq!((&source["server"], &source["model"]), (&json!("far"), &json!("w1")), "{reply}");
    assert_eq!(reply["decision"]["route"], "cloud", "{reply}");

    // piece by piece as well
    let streamed = json!({"prompt": "/tokens=40", "mode": "cloud-only", "stream": true});
    send(&app, streamed.to_string()).await;
    let mut pieces = 0;
    let reply: Value = loop {
        let message = app.next().await;
        let value: Value = serde_json::from_slice(&message.payload).unwrap();
        if message.topic.as_ref().ends_with(b"/reply/app") {
            break value;
        }
        pieces += u32::from(value["text"].is_string());
    };
    assert_eq!(reply["status"], "ok", "{reply}");
    assert!(pieces > 20, "{pieces} pieces");

    // what can't be done there is said as it is anywhere
    let long = "x ".repeat(40_000);
    let reply = app.ask("app", far(&long, 10_000)).await;
    assert_eq!(
        (&reply["status"], &reply["error"]["code"]),
        (&json!("refused"), &json!("incapable"))
    );

    // a private prompt never leaves: nobody hears a call
    let mut ear = App::connect(broker.port, "ear", &["pilotlight/mcp/#"]).await;
    while tokio::time::timeout(Duration::from_millis(300), ear.inbox.recv()).await.is_ok() {}
    let private = json!({"prompt": "secret", "mode": "local-only"}).to_string();
    assert_eq!(app.ask("app", private).await["source"]["where"], "device");
    ear.stays_silent().await;
    drop(worker);
}

/// An answer of many messages, and one of JSON that the far side's provider wrote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_comes_in_order() {
    let broker = Mosquitto::start().await;
    let pieces: Vec<String> =
        (0..40).map(|n| format!("{n} {}", "abcdefghij ".repeat(1000))).collect();
    let texts: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let cloud = Cloud::start([answer(&texts)]).await;
    let mut catalog = catalog(&[]);
    catalog["mcpServers"] = json!({});
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["device"]["name"] = json!("w1");
    catalog["pilotlight"]["mqtt"] = json!({"serve": TOPIC});
    let _worker = Service::launch(&catalog, &at(broker.port), &[]);
    let device = device(broker.port);
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    let reply = app.ask("app", far("go on", 20_000)).await;
    assert_eq!(reply["text"], json!(pieces.concat()), "{}", reply["error"]);
    // who answered there has a price, and it is told here
    assert!(reply["usage"]["cost_usd"].as_f64().unwrap() > 0.0, "{}", reply["usage"]);
}

/// The more workers, the more calls at once; each call is answered once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capacity_grows_with_the_workers() {
    let broker = Mosquitto::start().await;
    let device = device(broker.port);
    let mut app = App::of(broker.port, "app").await;
    let mut presence = App::connect(broker.port, "presence", &[&format!("{TOPIC}/worker/+")]).await;
    let mut workers = Vec::new();
    let mut took = BTreeMap::new();
    for count in [1, 2, 4] {
        while workers.len() < count {
            // each answers one at a time
            let name = format!("w{}", workers.len());
            let mut catalog = catalog(&["--scripted", &name, "--slots", "1"]);
            catalog["pilotlight"]["device"]["name"] = json!(name);
            catalog["pilotlight"]["mqtt"] = json!({"serve": TOPIC});
            let worker = Service::launch(&catalog, &at(broker.port), &[]);
            worker.ready().await;
            // it has said that it is there
            let said: Value = serde_json::from_slice(&presence.next().await.payload).unwrap();
            assert_eq!(said["state"], "online");
            workers.push(worker);
        }
        device.ready_all().await;
        // and the device has heard it too
        tokio::time::sleep(stretched(Duration::from_millis(300))).await;
        let began = Instant::now();
        for _ in 0..24 {
            send(&app, far("/tokens=5 /delay-us=20000", 20_000)).await;
        }
        let mut who = BTreeSet::new();
        for _ in 0..24 {
            let reply = app.reply().await;
            assert_eq!(reply["status"], "ok", "{reply}");
            who.insert(reply["source"]["model"].as_str().unwrap().to_owned());
        }
        app.stays_silent().await;
        assert_eq!(who.len(), count, "{who:?}");
        took.insert(count, began.elapsed().as_millis() - 300);
    }
    println!("24 calls of 100 ms by 1, 2 and 4 workers, in ms: {took:?}");
    assert!(took[&4] < took[&1], "{took:?}");
}

/// A worker that is killed in the middle: another answers, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_takes_over() {
    let broker = Mosquitto::start().await;
    let device = device(broker.port);
    let first = worker(broker.port, "w1");
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    // it lasts until the second worker is there
    send(&app, far("/tokens=20 /delay-us=250000", 60_000)).await;
    busy(&first).await;
    let second = worker(broker.port, "w2");
    second.ready().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    signal(first.child.id().unwrap() as i32, nix::sys::signal::Signal::SIGKILL);
    let reply = app.reply().await;
    assert_eq!((&reply["status"], &reply["source"]["model"]), (&json!("ok"), &json!("w2")));
    let attempts = reply["decision"]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(attempts[0]["outcome"], "crashed", "{attempts:?}");
    app.stays_silent().await;
}

/// The last worker is killed, the broker is started anew, the line is cut: the asker hears one thing,
/// in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_is_told_in_time() {
    for what in ["worker", "line of the worker", "line of the device", "broker"] {
        let mut broker = Mosquitto::start().await;
        let (near, wide) = (Gate::to(broker.port).await, Gate::to(broker.port).await);
        // the asker has a way of its own; its broker is the same
        let (device, worker) = (device(near.port), worker(wide.port, "w1"));
        device.ready_all().await;
        let mut app = App::of(broker.port, "app").await;
        let began = Instant::now();
        // what the broker sends again after a cut is told by its id from another request
        let mut ask: Value =
            serde_json::from_str(&far("/tokens=400 /delay-us=20000", 3_000)).unwrap();
        ask["id"] = json!("once");
        send(&app, ask.to_string()).await;
        busy(&worker).await;
        match what {
            "worker" => {
                signal(worker.child.id().unwrap() as i32, nix::sys::signal::Signal::SIGKILL);
            }
            "line of the worker" => wide.shut(),
            "line of the device" => {
                near.shut();
                tokio::time::sleep(Duration::from_millis(300)).await;
                near.open();
            }
            _ => {
                broker.child.kill().await.unwrap();
                near.shut();
                let port = broker.port;
                let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
                broker = Mosquitto::with(port, &config).await;
                // the asker's subscription went with the broker, which keeps no reply for it
                app = App::of(port, "app").await;
                near.open();
            }
        }
        let reply = app.reply().await;
        let took = began.elapsed();
        let most = Duration::from_secs(3) + stretched(Duration::from_millis(1_500));
        assert!(took < most, "{what}: {took:?} {reply}");
        assert_ne!(reply["status"], "ok", "{what}: {reply}");
        println!("{what}");
        app.stays_silent().await;
        // and it goes on when all is well again
        wide.open();
        let again = (what == "worker").then(|| self::worker(broker.port, "w2"));
        device.until("well again", |state| state["mqtt"]["state"] == "up").await;
        device.ready_all().await;
        let reply = app.ask("app", far("well again", 10_000)).await;
        assert_eq!(reply["text"], "well again", "{what}: {reply}");
        drop((again, worker));
    }
}

/// What breaks again and again, and comes back.
#[derive(Debug, Clone, Copy)]
enum Break {
    Worker,
    WorkersLine,
    DevicesLine,
    Broker,
}

/// A worker whose only model is that provider: it is a cloud's way in and no device.
fn relay(port: u16, name: &str, cloud: &Cloud) -> Service {
    let mut catalog = json!({"pilotlight": {"providers": {"big": entry(&cloud.url)}}});
    catalog["pilotlight"]["device"]["name"] = json!(name);
    catalog["pilotlight"]["mqtt"] = json!({"serve": TOPIC});
    catalog["pilotlight"]["providers"]["big"]["slots"] = json!(64);
    Service::launch(&catalog, &at(port), &[("PILOTLIGHT_LOG", "error")])
}

/// Says what it was asked, in three parts.
fn repeated(body: &Value) -> Vec<Vec<u8>> {
    let said = body["messages"][0]["content"].as_str().unwrap();
    let parts = [head("200 OK", "text/event-stream", ""), piece(said), ending("stop")];
    parts.map(String::into_bytes).to_vec()
}

/// All of it.
struct Field {
    broker: Mosquitto,
    near: Gate,
    wide: Gate,
    workers: [Service; 2],
    cloud: Cloud,
}

impl Field {
    /// Breaks it, and mends it a little later.
    async fn strike(&mut self, what: Break, n: usize) {
        let a_while = Duration::from_millis(fastrand::u64(20..400));
        match what {
            Break::Worker => {
                let worker = &mut self.workers[n % 2];
                worker.child.kill().await.unwrap();
                tokio::time::sleep(a_while).await;
                *worker = relay(self.wide.port, &format!("w{n}"), &self.cloud);
            }
            Break::WorkersLine | Break::DevicesLine => {
                let gate = if matches!(what, Break::WorkersLine) { &self.wide } else { &self.near };
                gate.shut();
                tokio::time::sleep(a_while).await;
                gate.open();
            }
            Break::Broker => {
                self.broker.child.kill().await.unwrap();
                tokio::time::sleep(a_while).await;
                let port = self.broker.port;
                let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n");
                self.broker = Mosquitto::with(port, &config).await;
            }
        }
    }
}

/// Requests without a pause while something breaks again and again: each has its one end in time, an
/// answer is the one to what was asked, no attempt is paid for twice, and nothing piles up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_faults_ends_every_request_in_time() {
    for what in [Break::Worker, Break::WorkersLine, Break::DevicesLine, Break::Broker] {
        let cloud = Cloud::start([Act::Slow(Duration::from_millis(50), repeated)]).await;
        let broker = Mosquitto::start().await;
        let (near, wide) = (Gate::to(broker.port).await, Gate::to(broker.port).await);
        let catalog = json!({
            "mcpServers": {"far": {"type": "mqtt", "topic": TOPIC}},
            "pilotlight": {"device": {"name": "dev"}},
        });
        let device = Service::launch(&catalog, &at(near.port), &[("PILOTLIGHT_LOG", "error")]);
        let workers = ["w1", "w2"].map(|name| relay(wide.port, name, &cloud));
        let mut field = Field { broker, near, wide, workers, cloud: cloud.clone() };
        device.ready_all().await;
        let before = memory(device.child.id().unwrap()).resident;

        let over = Arc::new(AtomicBool::new(false));
        let strikes = async {
            let mut strikes = 0;
            while !over.load(Ordering::Relaxed) {
                field.strike(what, strikes).await;
                strikes += 1;
                // a machine that is busy mends more slowly
                let pause = Duration::from_millis(fastrand::u64(100..900));
                tokio::time::sleep(stretched(pause)).await;
            }
            strikes
        };
        let ask = async |n: usize| {
            let (prompt, began) = (format!("request {n}"), Instant::now());
            let body = json!({
                "model": "auto", "messages": [{"role": "user", "content": prompt}],
                "metadata": {"deadline_ms": "1500", "mode": "cloud-only"},
            });
            let (status, reply) = device.chat(body).await;
            (prompt, status, reply, began.elapsed())
        };
        let count = 24 * storm();
        let asks = futures::stream::iter(0..count).map(ask).buffer_unordered(24);
        let asks = async {
            let ends: Vec<_> = asks.collect().await;
            over.store(true, Ordering::Relaxed);
            ends
        };
        let (ends, strikes) = tokio::join!(asks, strikes);

        let mut paid: BTreeMap<String, usize> = BTreeMap::new();
        for asked in cloud.asked() {
            let prompt = asked.body["messages"][0]["content"].as_str().unwrap().to_owned();
            *paid.entry(prompt).or_default() += 1;
        }
        let most = Duration::from_millis(1_500) + stretched(Duration::from_secs(1));
        let mut answered = 0;
        for (prompt, status, reply, took) in ends {
            assert!(took < most, "{what:?}: {took:?} {reply}");
            let attempts =
                reply["pilotlight"]["decision"]["attempts"].as_array().map_or(0, Vec::len);
            let paid = paid.get(&prompt).copied().unwrap_or_default();
            assert!(paid <= attempts, "{what:?}: {paid} calls were paid: {reply}");
            if status == 200 {
                assert_eq!(reply["choices"][0]["message"]["content"], prompt, "{what:?}");
                answered += 1;
            } else {
                assert!(reply["error"]["message"].is_string(), "{what:?}: {status} {reply}");
            }
        }
        let mended = Instant::now();
        device.until("well again", |state| state["mqtt"]["state"] == "up").await;
        device.ready_all().await;
        device.until("done", |state| state["running"] == 0).await;
        let body = json!({
            "model": "auto", "messages": [{"role": "user", "content": "well again"}],
            // one that has failed again and again is not tried before its rest is over
            "metadata": {"deadline_ms": (2 * REST_MAX).as_millis().to_string(), "mode": "cloud-only"},
        });
        let (status, reply) = device.chat(body).await;
        assert_eq!(status, 200, "{what:?}: {reply}");
        let well = mended.elapsed();
        let grown = memory(device.child.id().unwrap()).resident - before;
        println!(
            "{what:?} broken {strikes} times: {answered} of {count} answered in time, the next one \
             {well:.1?} after the last time, {grown:.1} MiB more"
        );
        assert!(answered > 0 && grown < 20.0, "{what:?}: {answered} of {count}, {grown} MiB");
    }
}

/// Nobody is there: that is no wait, and no silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_workers_is_away() {
    let broker = Mosquitto::start().await;
    let device = device(broker.port);
    device.ready().await;
    let mut app = App::of(broker.port, "app").await;
    let near = json!({"prompt": "hello", "mode": "prefer-cloud"}).to_string();
    let reply = app.ask("app", near).await;
    assert_eq!(reply["source"]["server"], "local", "{reply}");
    assert_eq!(reply["decision"]["reason"], "resting", "{reply}");
    let reply = app.ask("app", far("hello", 500)).await;
    assert_eq!(reply["status"], "expired", "{reply}");
}

/// Who stops waiting stops the work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_waits_for_is_stopped() {
    let broker = Mosquitto::start().await;
    let (device, worker) = (device(broker.port), worker(broker.port, "w1"));
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    // the device's patience ends long before the worker's deadline would
    let asking = device.chat(json!({
        "model": "far", "messages": [{"role": "user", "content": "/tokens=2000 /delay-us=20000"}],
        "metadata": {"deadline_ms": 60_000},
    }));
    tokio::select! {
        _ = asking => panic!("it has ended"),
        () = busy(&worker) => {}
    }
    worker.until("idle again", |state| state["running"] == 0).await;
    assert_eq!(app.ask("app", far("and now", 5_000)).await["text"], "and now");
}

/// A caller written by the book: its one call, which its broker delivers twice, is made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_arrives_twice_is_made_once() {
    let broker = Mosquitto::start().await;
    let worker = worker(broker.port, "w1");
    worker.ready_all().await;
    worker.ready().await;
    let answers = format!("{TOPIC}/answer/by-the-book");
    let mut caller = App::connect(broker.port, "by-the-book", &[&answers]).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "generate", "arguments": {"prompt": "hello there"},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "by-the-book", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    for mark in ["first mark", "first mark", "second mark", "first mark"] {
        let properties = PublishProperties {
            response_topic: Some(answers.clone()),
            correlation_data: Some(mark.into()),
            message_expiry_interval: Some(10),
            ..PublishProperties::default()
        };
        caller.send(&format!("{TOPIC}/call"), call.to_string(), properties).await;
    }
    let mut came: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..4 {
        let message = caller.next().await;
        let properties = message.properties.unwrap();
        let mark = String::from_utf8(properties.correlation_data.unwrap().to_vec()).unwrap();
        let said = came.entry(mark).or_default();
        let number = ("mcp-seq".to_owned(), said.len().to_string());
        let told = properties.user_properties;
        assert!(told.contains(&("mcp-worker".to_owned(), "w1".to_owned())), "{told:?}");
        assert!(told.contains(&number), "{told:?}");
        said.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    caller.stays_silent().await;
    for mark in ["first mark", "second mark"] {
        let [taken, response] = &came[mark][..] else { panic!("{came:?}") };
        assert_eq!(taken, "");
        let response: Value = serde_json::from_str(response).unwrap();
        assert_eq!(response["result"]["structuredContent"]["text"], "hello there", "{response}");
    }
}
