//! The access rules for mosquitto that the documentation ships, in a real mosquitto.

use std::path::Path;
use std::process::Command;

use crate::support::cloud::{Cloud, answer, entry};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog, free_port};
use pilotlight::catalog::public_key::SecretKind;
use pilotlight::catalog::secret::Secret;
use pilotlight::mcp::over_mqtt::keys::{CallerPair, ServicePair};
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::json;

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples/mosquitto.acl");
const TOPIC: &str = "pilotlight/mcp/big";
/// All users have it.
const PASSWORD: &str = "a word of tests";

/// A mosquitto with the shipped rules, and a user for each of its blocks and a stranger.
async fn broker() -> Mosquitto {
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    let passwords = folder.path().join("passwords");
    std::fs::write(&passwords, "").unwrap();
    for user in ["dev", "w1", "app", "stranger"] {
        let mut program = Command::new("mosquitto_passwd");
        let made = program.arg("-b").arg(&passwords).args([user, PASSWORD]).status();
        assert!(made.unwrap().success());
    }
    // mosquitto reads no file that others can write
    let rules = folder.path().join("rules");
    std::fs::copy(Path::new(RULES), &rules).unwrap();
    let config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous false\nuser root\npassword_file {}\nacl_file {}\n",
        passwords.display(),
        rules.display()
    );
    let broker = Mosquitto::with(port, &config).await;
    Mosquitto { folder, ..broker }
}

async fn client(broker: &Mosquitto, user: &str, filters: &[&str]) -> App {
    App::log_in(broker.port, &format!("test-{user}"), filters, Some((user, PASSWORD))).await
}

/// Whether this user may publish on the topic.
async fn may_publish(app: &App, topic: &str) -> bool {
    let options = PublishOptions::new(QoS::AtLeastOnce);
    let notice = app.client.publish_tracked(topic, "{}", options).await.unwrap();
    notice.wait_completion_async().await.is_ok()
}

fn service(user: &str, catalog: &serde_json::Value, port: u16, secret: (&str, &str)) -> Service {
    let login = [
        ("PILOTLIGHT_DEVICE", user),
        ("PILOTLIGHT_MQTT_USERNAME", user),
        ("PILOTLIGHT_MQTT_PASSWORD", PASSWORD),
        secret,
    ];
    Service::launch(catalog, &format!("mqtt://127.0.0.1:{port}"), &login)
}

/// Device, worker and application do with these rules all that they do without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_rules_everything_works_and_a_stranger_can_do_nothing() {
    let broker = broker().await;
    let (service_secret, caller_secret) = ([1; 32], [2; 32]);
    let cloud = Cloud::start([answer(&["from ", "afar"])]).await;
    let callers = json!({"dev": CallerPair::new(&Secret(caller_secret)).unwrap().public()});
    let mqtt = json!({"serve": TOPIC, "callers": callers, "service_secret": "${KEY}"});
    let big = json!({"providers": {"big": entry(&cloud.url)}, "mqtt": mqtt});
    let worker = json!({"pilotlight": big});
    let key = SecretKind::Service.text(&service_secret);
    let worker = service("w1", &worker, broker.port, ("KEY", &key));
    let mut catalog = catalog(&["--scripted", "small"]);
    let pinned = ServicePair::new(&Secret(service_secret)).unwrap().public();
    catalog["mcpServers"]["far"] = json!({"type": "mqtt", "topic": TOPIC});
    catalog["pilotlight"]["servers"] = json!({"far": {"service_key": pinned}});
    catalog["pilotlight"]["mqtt"] = json!({"caller_secret": "${KEY}"});
    let key = SecretKind::Caller.text(&caller_secret);
    let device = service("dev", &catalog, broker.port, ("KEY", &key));

    // a stranger with a login of its own, from the start on
    let all = ["#", &format!("$share/big/{TOPIC}/call"), "pilotlight/+/request/#"];
    let mut stranger = client(&broker, "stranger", &all).await;
    device.ready_all().await;
    worker.ready().await;

    let replies = ["pilotlight/+/reply/app/#", "pilotlight/+/stream/app", "pilotlight/+/status"];
    let mut app = client(&broker, "app", &replies).await;
    let ask =
        json!({"prompt": "hello", "mode": "cloud-only", "stream": true, "deadline_ms": 20_000});
    let mut had_pieces = false;
    app.send("pilotlight/dev/request/app", ask.to_string(), PublishProperties::default()).await;
    let reply = loop {
        let publish = app.next().await;
        let value: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
        match publish.topic.as_ref() {
            topic if topic.ends_with(b"/reply/app") => break value,
            topic if topic.ends_with(b"/stream/app") => had_pieces = true,
            topic => assert!(topic.ends_with(b"/status"), "{publish:?}"),
        }
    };
    assert_eq!(reply["text"], "from afar", "{reply}");
    assert!(had_pieces);
    let task = json!({"input": {"word": "lamp"}}).to_string();
    app.send("pilotlight/dev/request/app/echo", task, PublishProperties::default()).await;
    assert_eq!(app.reply().await["text"], "say lamp");
    for running in [&device, &worker] {
        let state = running.state().await.unwrap();
        assert_eq!(state["mqtt"]["problems"].to_string(), "null", "{}", state["mqtt"]);
    }

    // who may write where
    let users = [client(&broker, "dev", &[]).await, client(&broker, "w1", &[]).await];
    let [dev, w1] = &users;
    for (topic, may) in [
        // a device's
        ("pilotlight/dev/request/app", "app"),
        ("pilotlight/dev/request/app/echo", "app"),
        ("pilotlight/dev/request/other", ""),
        ("pilotlight/dev/reply/app", "dev"),
        ("pilotlight/dev/stream/app", "dev"),
        ("pilotlight/dev/status", "dev"),
        ("pilotlight/dev/health", "dev"),
        ("pilotlight/dev/config/reported", "dev"),
        ("pilotlight/w1/reply/app", "w1"),
        ("pilotlight/w1/status", "w1"),
        // the service's
        (&format!("{TOPIC}/call/w1"), "dev"),
        (&format!("{TOPIC}/call"), ""),
        (&format!("{TOPIC}/tell"), "dev"),
        (&format!("{TOPIC}/answer/dev"), "w1"),
        (&format!("{TOPIC}/worker/w1"), "w1"),
        (&format!("{TOPIC}/worker/w2"), ""),
        ("pilotlight/mcp/other/call/w1", ""),
    ] {
        for (user, connection) in [("dev", dev), ("w1", w1), ("app", &app), ("stranger", &stranger)]
        {
            assert_eq!(may_publish(connection, topic).await, user == may, "{user} on {topic}");
        }
    }
    // nothing has come to the stranger, and nothing it sent was done
    stranger.stays_silent().await;
    assert_eq!(cloud.asked().len(), 1);
    // a client without a login is none
    let mut options = rumqttc::MqttOptions::new("nobody", ("127.0.0.1", broker.port));
    options.set_keep_alive(5);
    let (_nobody, mut events) = rumqttc::AsyncClient::builder(options).capacity(1).build();
    assert!(events.poll().await.is_err());
}

/// Other callers' answers, other workers' calls: each reads its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reads_its_own() {
    let broker = broker().await;
    let all = ["#", "pilotlight/mcp/big/#", "$share/big/pilotlight/mcp/big/call"];
    let mut dev = client(&broker, "dev", &all).await;
    let mut w1 = client(&broker, "w1", &all).await;
    let mut app = client(&broker, "app", &all).await;
    let read = |publish: rumqttc::mqttbytes::v5::Publish| {
        String::from_utf8(publish.topic.to_vec()).unwrap()
    };
    let to_dev = App::log_in(broker.port, "by-w1", &[], Some(("w1", PASSWORD))).await;
    let to_w1 = App::log_in(broker.port, "by-dev", &[], Some(("dev", PASSWORD))).await;
    // denied ones first: they would come first
    for topic in ["answer/other", "answer/dev"] {
        assert!(may_publish(&to_dev, &format!("{TOPIC}/{topic}")).await, "{topic}");
    }
    for topic in ["call/w2", "call/w1"] {
        assert!(may_publish(&to_w1, &format!("{TOPIC}/{topic}")).await, "{topic}");
    }
    assert_eq!(read(dev.next().await), format!("{TOPIC}/answer/dev"));
    assert_eq!(read(w1.next().await), format!("{TOPIC}/call/w1"));
    app.stays_silent().await;
}
