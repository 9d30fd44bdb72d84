//! Requests on unusual topics and with unusual payloads.

use super::mqtt::with;
use crate::support::mqtt::App;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::Value;

/// Every topic gets exactly one reply, where its client looks for it.
pub(super) async fn have_one_reply(port: u16) {
    let mut all = App::connect(port, "all", &["pilotlight/dev/reply/#"]).await;
    let long = "x".repeat(300);
    let cases = [
        ("home.assistant", "home.assistant", "ok"),
        ("My App", "My App", "ok"),
        ("Gerät 7 \u{1F600}", "Gerät 7 \u{1F600}", "ok"),
        ("\u{FF0B}\u{FF03}", "\u{FF0B}\u{FF03}", "ok"),
        ("odd/echo", "odd", "refused"),
        ("a/b", "a/b", "refused"),
        ("a/b/echo", "a/b/echo", "refused"),
        ("a/", "a/", "refused"),
        ("", "", "refused"),
        ("/echo", "/echo", "refused"),
        (&long, &long, "refused"),
    ];
    for (request, reply, status) in cases {
        let topic = format!("pilotlight/dev/request/{request}");
        all.send(&topic, "hello", PublishProperties::default()).await;
        let publish = all.next().await;
        assert_eq!(publish.topic, format!("pilotlight/dev/reply/{reply}").as_bytes(), "{request}");
        let value: Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!(value["status"], status, "{request}: {value}");
        let told = value["error"]["message"].as_str().unwrap_or_default();
        assert!(status == "ok" || !told.is_empty(), "{value}");
        all.send(&topic, "hello", with(&format!("pilotlight/dev/reply/{request}"), "c")).await;
        assert_eq!(all.next().await.properties.unwrap().correlation_data.unwrap(), "c".as_bytes());
    }
    // no application at all
    all.send("pilotlight/dev/request", "hello", PublishProperties::default()).await;
    assert_eq!(all.next().await.topic, "pilotlight/dev/reply".as_bytes());
    // empty correlation data is no key
    let empty = PublishProperties {
        correlation_data: Some(bytes::Bytes::new()),
        ..PublishProperties::default()
    };
    for (payload, properties) in [("one", empty.clone()), ("two", empty)] {
        all.send("pilotlight/dev/request/keys", payload, properties).await;
        let reply = all.reply().await;
        assert_eq!(reply["status"], "ok", "{payload}: {reply}");
    }
    // a text that begins like a request, and is none
    for payload in
        ["{name} is here", r#"{"humidity": 40}"#, r#"{"humidity": 40} is that dry?"#, "{"]
    {
        all.send("pilotlight/dev/request/keys", payload, PublishProperties::default()).await;
        let reply = all.reply().await;
        assert_eq!(reply["status"], "refused", "{payload}: {reply}");
        let told = reply["error"]["message"].as_str().unwrap();
        assert!(told.contains("goes into \"prompt\""), "{payload}: {told}");
    }
    let marked = "\u{FEFF}{\"prompt\": \"marked\"}";
    all.send("pilotlight/dev/request/keys", marked, PublishProperties::default()).await;
    assert_eq!(all.reply().await["text"], "marked");
    all.stays_silent().await;
}
