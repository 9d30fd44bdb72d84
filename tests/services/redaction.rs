//! Redaction of what is sent to a peer over MQTT.

use crate::support::cloud::{Act, Cloud, entry, stream};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog};
use serde_json::{Value, json};

const TOPIC: &str = "pilotlight/mcp/big";

/// A cloud repeats what it reads.
fn echo(body: &Value) -> Vec<u8> {
    stream(&[body["messages"][0]["content"].as_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_over_mqtt_reads_placeholders() {
    let broker = Mosquitto::start().await;
    let mqtt = format!("mqtt://127.0.0.1:{}", broker.port);
    let cloud = Cloud::start([Act::Make(echo)]).await;
    let mut serving = catalog(&["--scripted", "w1"]);
    serving["pilotlight"]["device"]["name"] = json!("w1");
    serving["pilotlight"]["mqtt"] = json!({"serve": TOPIC});
    serving["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    serving["pilotlight"]["policy"] = json!({"default_mode": "cloud-only"});
    let worker = Service::launch(&serving, &mqtt, &[]);
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["far"] = json!({"type": "mqtt", "topic": TOPIC});
    catalog["pilotlight"]["servers"] = json!({"far": {"reach": "peer"}});
    catalog["pilotlight"]["policy"] = json!({"redact": ["email"]});
    let device = Service::launch(&catalog, &mqtt, &[]);
    worker.ready_all().await;
    device.ready_all().await;
    let mut app = App::of(broker.port, "app").await;
    let ask = json!({"prompt": "write to ann@mail.example", "mode": "cloud-only"});
    let reply = app.ask("app", ask.to_string()).await;
    assert_eq!(reply["text"], "write to ann@mail.example", "{reply}");
    let decision = &reply["decision"];
    assert_eq!(
        (&decision["route"], &decision["attempts"][0]["redacted"]),
        (&json!("peer"), &json!(1))
    );
    assert_eq!(cloud.asked()[0].body["messages"][0]["content"], "write to [EMAIL_1]");
}
