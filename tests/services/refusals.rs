//! What a broker refuses: mosquitto with its limits and access rules, and scripted brokers.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::mqtt::{App, Mosquitto};
use crate::support::scripted_broker::{Act, Script, ScriptedBroker, Which};
use crate::support::service::{Service, catalog, client, free_port};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use tokio::time::Instant;

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

fn problems(state: &Value) -> String {
    state["mqtt"]["problems"].to_string()
}

/// The lines of mosquitto's log with this text.
fn lines(broker: &Mosquitto, text: &str) -> usize {
    let log = std::fs::read_to_string(broker.folder.path().join("log")).unwrap();
    log.lines().filter(|line| line.contains(text)).count()
}

/// A mosquitto that logs everything to a file in its folder.
async fn mosquitto(config: impl Fn(&std::path::Path, u16) -> String) -> Mosquitto {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    std::fs::write(&log, "").unwrap();
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest file {}\nlog_type all\nuser root\n{}",
        log.display(),
        config(folder.path(), port)
    );
    let broker = Mosquitto::with(port, &text).await;
    Mosquitto { folder, ..broker }
}

fn url(port: u16) -> String {
    format!("mqtt://127.0.0.1:{port}")
}

/// An application whose reply topic the broker's access rules lack does not harm the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_reply_topic_is_said_once_and_frees_its_requests() {
    let broker = mosquitto(|folder, _| {
        let rules = folder.join("acl");
        let topics =
            ["request/#", "reply/open/#", "stream/open", "status", "health", "config/reported"];
        let allow = |topic| format!("pattern readwrite pilotlight/dev/{topic}");
        let rules_text = topics.map(allow).join("\n") + "\n";
        std::fs::write(&rules, rules_text).unwrap();
        format!("acl_file {}\n", rules.display())
    })
    .await;
    let service = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
    service.ready().await;
    let mut open = App::of(broker.port, "open").await;
    // more than the service has without acknowledgement at once
    for n in 0..50 {
        let ask = json!({"id": format!("l-{n}"), "prompt": "one"}).to_string();
        open.send("pilotlight/dev/request/locked", ask, PublishProperties::default()).await;
    }
    assert_eq!(open.ask("open", "one two").await["status"], "ok");
    let refused = |state: &Value| {
        let told = problems(state);
        told.contains("pilotlight/dev/reply/locked")
            && told.contains("not authorized (0x87)")
            && told.contains("access rules")
            && state["mqtt"]["undelivered"]["refused"] == 50
    };
    let state = service.until("all 50 are counted", refused).await;
    assert_eq!(state["mqtt"]["state"], "up");
    let metrics = client().get(service.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("pilotlight_mqtt_undelivered_total{kind=\"refused\"} 50"),
        "{metrics}"
    );
    // a new request is tried, and its refusal is not another line
    let denied = lines(&broker, "Denied PUBLISH");
    assert!((1..=52).contains(&denied), "{denied}");
    let log = service.log();
    let told = log.lines().filter(|line| line.contains("reply/locked"));
    assert_eq!(told.count(), 1, "{log}");
    assert!(log.lines().count() < 100, "{log}");
    assert_eq!(lines(&broker, "New client connected from 127.0.0.1"), 2);
    // none is delivered again: each was acknowledged
    assert!(service.stop().await);
    let service = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
    service.ready().await;
    assert_eq!(open.ask("open", "three").await["status"], "ok");
    assert!(!service.log().contains("reply/locked"), "{}", service.log());
}

/// A limit that the broker states is obeyed: a reply that is too large becomes a short one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_beyond_the_packet_size_is_a_short_one_that_says_so() {
    for (limit, is_stated) in [("max_packet_size 400\n", true), ("message_size_limit 400\n", false)]
    {
        let broker = mosquitto(|_, _| limit.to_owned()).await;
        let service = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
        service.ready().await;
        let mut app = App::of(broker.port, "app").await;
        let ask = json!({"id": "long", "prompt": "/tokens=60 word"}).to_string();
        let reply = app.ask("app", ask).await;
        assert_eq!((&reply["id"], &reply["status"]), (&json!("long"), &json!("failed")), "{limit}");
        assert_eq!(reply["error"]["code"], "too_large", "{limit} {reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(!is_stated || message.contains("400"), "{limit} {message}");
        app.stays_silent().await;
        // it stays connected, and the health message is told to be too large or is sent
        let connects = lines(&broker, "as pilotlight-dev");
        assert!(connects <= if is_stated { 1 } else { 6 }, "{limit} {connects}");
        let state = service.state().await.unwrap();
        assert_eq!(state["mqtt"]["state"], "up", "{limit} {state}");
        assert!(state["mqtt"]["undelivered"]["too_large"].as_u64().unwrap() >= 1, "{state}");
        // the next one costs no connection
        let ask = json!({"id": "again", "prompt": "/tokens=60 word"}).to_string();
        assert_eq!(app.ask("app", ask).await["error"]["code"], "too_large");
        assert_eq!(lines(&broker, "as pilotlight-dev"), connects, "{limit}");
    }
}

/// No retained messages, and no quality of service: the service connects and answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retain_and_quality_of_service_are_what_the_broker_offers() {
    for limit in ["retain_available false\n", "max_qos 0\n"] {
        let broker = mosquitto(|_, _| limit.to_owned()).await;
        let mut watcher = App::connect(broker.port, "watcher", &["pilotlight/dev/status"]).await;
        let service = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
        service.ready().await;
        let presence = watcher.next().await;
        assert!(presence.payload.windows(6).any(|part| part == b"online"), "{limit}");
        let app = App::connect(broker.port, "app", &["pilotlight/dev/reply/app"]).await;
        let (mut app, topic) = (app, "pilotlight/dev/request/app");
        app.client
            .publish(topic, "one two", rumqttc::PublishOptions::new(QoS::AtMostOnce))
            .await
            .unwrap();
        assert_eq!(app.reply().await["text"], "one two", "{limit}");
        assert!(service.stop().await);
        let presence = watcher.next().await;
        assert!(presence.payload.windows(7).any(|part| part == b"offline"), "{limit}");
    }
}

/// Two services with one name: each says so, and they do not take each other's session all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_services_with_one_name_say_so_and_slow_down() {
    let broker = mosquitto(|_, _| String::new()).await;
    let one = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
    one.ready().await;
    let two = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
    two.ready().await;
    for service in [&one, &two] {
        let told = |state: &Value| problems(state).contains("PILOTLIGHT_DEVICE");
        service.until("it says so", told).await;
        let log = service.log();
        assert!(log.contains("has a message that this service has not written"), "{log}");
    }
    // one of them has the session, the other says why it has not
    let gives_way = async |service: &Service| {
        let down = |state: &Value| {
            let reason = state["mqtt"]["reason"].as_str().unwrap_or_default();
            reason.contains("session taken over (0x8E)")
        };
        service.until("it gives way", down).await;
    };
    tokio::select! {
        () = gives_way(&one) => {}
        () = gives_way(&two) => {}
    }
    let before = lines(&broker, "as pilotlight-dev");
    let end = Instant::now() + Duration::from_secs(4);
    tokio::time::sleep_until(end).await;
    let after = lines(&broker, "as pilotlight-dev");
    assert!(before <= 10 && after - before <= 1, "{before} {after}");
    // the one that has the session answers
    let mut app = App::of(broker.port, "app").await;
    assert_eq!(app.ask("app", "still here").await["status"], "ok");
    drop((one, two));
}

/// Two boards with one image, and so with one host name, have two names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_name_belongs_to_one_board() {
    let broker = mosquitto(|_, _| String::new()).await;
    let mut watcher = App::connect(broker.port, "watcher", &["pilotlight/+/status"]).await;
    let mut unnamed = catalog(&DRY);
    unnamed["pilotlight"].as_object_mut().unwrap().remove("device");
    let (mut services, mut folders) = (Vec::new(), Vec::new());
    for id in ["0123456789abcdef0123456789abcdef", "00112233445566778899aabbccddeeff"] {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/machine-id"), id).unwrap();
        let sensors = root.path().display().to_string();
        let more = [("PILOTLIGHT_SENSORS", sensors.as_str())];
        let service = Service::launch_with_log(&unnamed, &url(broker.port), &more);
        service.ready().await;
        services.push(service);
        folders.push(root);
    }
    let mut names = BTreeSet::new();
    for _ in 0..2 {
        let status: Value = serde_json::from_slice(&watcher.next().await.payload).unwrap();
        assert_eq!(status["state"], "online");
        names.insert(status["device"].as_str().unwrap().to_owned());
    }
    assert_eq!(names.len(), 2, "{names:?}");
    for service in &services {
        assert_eq!(service.state().await.unwrap()["mqtt"]["state"], "up");
        assert!(!service.log().contains("taken over"), "{}", service.log());
    }
    let name = names.first().unwrap();
    assert!(name.len() > 9 && name.as_bytes()[name.len() - 9] == b'-', "{names:?}");
}

/// A broker that closes the connection for a large packet and has not said so, and one that closes it
/// for a topic: the message is found, and the others are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_the_connection_is_found_and_not_sent_again() {
    let check = async |which: Which, is_short: bool| {
        let script = Script { publish: Some((which, Act::Close)), ..Script::default() };
        let broker = ScriptedBroker::start(script).await;
        let service = Service::launch_with_log(&catalog(&DRY), &url(broker.port), &[]);
        let ask = |app: &str, id: &str, prompt: &str| {
            let payload = json!({"id": id, "prompt": prompt}).to_string();
            broker.request(&format!("pilotlight/dev/request/{app}"), &payload);
        };
        ask("bad", "b-1", "/tokens=400 long");
        ask("good", "g-1", "short");
        let taken = broker.taken("reply/good", 1).await;
        let reply: Value = serde_json::from_slice(&taken[0].payload).unwrap();
        assert_eq!((&reply["id"], &reply["status"]), (&json!("g-1"), &json!("ok")));
        if is_short {
            let taken = broker.taken("reply/bad", 1).await;
            let reply: Value = serde_json::from_slice(&taken[0].payload).unwrap();
            assert_eq!(reply["error"]["code"], "too_large", "{reply}");
        }
        // the request is acknowledged: the broker does not deliver it again
        broker.until("all acknowledged", |seen| seen.open.is_empty().then_some(())).await;
        let connects = broker.seen.lock().unwrap().connects.len();
        assert!(connects <= 10, "{connects}");
        // the next costs no connection
        ask("bad", "b-2", "/tokens=400 long");
        ask("good", "g-2", "short");
        broker.taken("reply/good", 2).await;
        broker.until("all acknowledged", |seen| seen.open.is_empty().then_some(())).await;
        {
            let seen = broker.seen.lock().unwrap();
            assert_eq!(seen.connects.len(), connects);
            assert_eq!(seen.taken("reply/good").len(), 2);
            assert!(seen.taken("reply/bad").len() <= 2);
        }
        let state = service.state().await.unwrap();
        assert!(problems(&state).contains("pilotlight/dev/reply/bad"), "{state}");
    };
    check(Which::Over(2000), true).await;
    check(Which::Topic("reply/bad"), false).await;
}

/// The broker delivers a request again while its reply is on the way: one reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_again_before_its_reply_is_taken_has_one_reply() {
    for payload in [json!({"id": "r", "prompt": "one two"}).to_string(), "one two".to_owned()] {
        let script = Script {
            publish: Some((Which::Topic("reply/app"), Act::Nothing)),
            ..Script::default()
        };
        let broker = ScriptedBroker::start(script).await;
        let gate = crate::support::mqtt::Gate::to(broker.port).await;
        let service = Service::launch_with_log(&catalog(&DRY), &url(gate.port), &[]);
        broker.request("pilotlight/dev/request/app", &payload);
        let replies = |seen: &crate::support::scripted_broker::Seen| {
            let all = seen.publishes.iter().filter(|publish| publish.topic.contains("reply/app"));
            all.map(|publish| publish.payload.clone()).collect::<Vec<_>>()
        };
        broker.until("a reply", |seen| (replies(seen).len() == 1).then_some(())).await;
        // the connection is lost before the reply is acknowledged
        gate.shut();
        service.until("down", |state| state["mqtt"]["state"] == "down").await;
        gate.open();
        broker.until("the reply again", |seen| (replies(seen).len() == 2).then_some(())).await;
        // a later request is answered, and until then there is no other reply
        broker.request("pilotlight/dev/request/other", "three");
        broker.taken("reply/other", 1).await;
        let all = replies(&broker.seen.lock().unwrap());
        assert_eq!(all.len(), 2, "{payload}");
        assert_eq!(all[0], all[1], "{payload}");
    }
}
