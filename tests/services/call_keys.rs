//! The keys of calls over MQTT: how they are made and shown, and what `check` says without them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::service::program;
use pilotlight::catalog::public_key::{CallerPublicKey, SecretKind, ServicePublicKey};
use serde_json::{Value, json};

fn write(folder: &Path, file: &Value) {
    std::fs::write(folder.join("mcp.json"), file.to_string()).unwrap();
}

/// Runs the program with a state folder and this broker.
async fn run(folder: &Path, args: &[&str], more: &[(&str, &str)]) -> (i32, String, String) {
    let state = folder.join("state");
    let env = [
        ("PILOTLIGHT_STATE", state.to_str().unwrap()),
        ("PILOTLIGHT_MQTT", "mqtts://broker.example"),
        ("PILOTLIGHT_DEVICE", "cam-7"),
    ];
    program(folder, args, &[&env, more].concat()).await
}

fn caller(ours: &Value) -> Value {
    let far = json!({"type": "mqtt", "topic": "pilotlight/mcp/big"});
    let mut file = json!({"mcpServers": {"far": far}, "pilotlight": ours});
    file["pilotlight"]["version"] = json!(1);
    file
}

fn worker(mqtt: &Value) -> Value {
    let child = json!({"command": "pilotlight", "args": ["engine", "--scripted", "x"]});
    json!({"mcpServers": {"local": child}, "pilotlight": {"mqtt": mqtt}})
}

/// `key` makes what is needed once, readable by its owner alone, and prints what is to be written.
#[tokio::test]
async fn keys_are_made_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &caller(&json!({"mqtt": {"serve": "pilotlight/mcp/big"}})));
    let (code, first, errors) = run(folder, &["key", "--json"], &[]).await;
    assert_eq!(code, 0, "{errors}");
    let shown: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(shown["caller"]["name"], "cam-7");
    assert_eq!(shown["service"]["topic"], "pilotlight/mcp/big");
    let of = |part: &str| shown[part]["key"].as_str().unwrap().to_owned();
    CallerPublicKey::try_from(of("caller")).unwrap();
    ServicePublicKey::try_from(of("service")).unwrap();
    assert_eq!(run(folder, &["key", "--json"], &[]).await.1, first);
    let (_, text, _) = run(folder, &["key"], &[]).await;
    assert!(text.contains(&format!("\"cam-7\": \"{}\"", of("caller"))), "{text}");
    assert!(text.contains(&format!("\"service_key\": \"{}\"", of("service"))), "{text}");
    for file in ["caller.key", "service.key"] {
        let path = folder.join("state").join(file);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let secret = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(secret.trim()) && !first.contains(secret.trim()));
    }
    // a secret of the file has precedence
    let secret = SecretKind::Caller.text(&[5; 32]);
    write(folder, &caller(&json!({"mqtt": {"caller_secret": "${MINE}"}})));
    let (_, other, _) = run(folder, &["key", "--json"], &[("MINE", &secret)]).await;
    assert!(!other.contains(&of("caller")) && !other.contains("service"), "{other}");
    let (code, _, errors) = run(folder, &["key"], &[("MINE", "word")]).await;
    assert_eq!(code, 2);
    assert!(errors.contains("pilotlight.mqtt.caller_secret: must be a private key"), "{errors}");
    // neither a caller nor a worker
    let child = json!({"command": "pilotlight", "args": ["engine", "--scripted", "x"]});
    write(folder, &json!({"mcpServers": {"local": child}}));
    let (code, _, errors) = run(folder, &["key"], &[]).await;
    assert!(code == 1 && errors.contains("neither calls nor serves over MQTT"), "{errors}");
}

/// Calls in plain text are warned of, unless only this machine can see them.
#[tokio::test]
async fn calls_without_keys_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let key = ServicePublicKey([7; 32]);
    let callers = json!({"serve": "a/b", "callers": {"dev": CallerPublicKey([7; 32])}});
    let warned = [
        (
            caller(&json!({})),
            "warning: pilotlight.servers.far.service_key: is missing: whoever may use the broker \
             broker.example can read the calls of far",
        ),
        (worker(&json!({"serve": "a/b"})), "warning: pilotlight.mqtt.callers: is missing: whoever"),
    ];
    for (file, expected) in &warned {
        write(folder, file);
        let (code, _, errors) = run(folder, &["check"], &[]).await;
        assert_eq!(code, 0, "{errors}");
        assert!(errors.contains(expected) && errors.contains("`pilotlight key`"), "{errors}");
        for local in ["mqtt://localhost", "mqtt://127.0.0.1:1884", "mqtt://[::1]:1883", "embedded"]
        {
            let (code, _, errors) = run(folder, &["check"], &[("PILOTLIGHT_MQTT", local)]).await;
            assert_eq!((code, errors.as_str()), (0, ""), "{local}");
        }
    }
    let with_keys = [caller(&json!({"servers": {"far": {"service_key": key}}})), worker(&callers)];
    for file in with_keys {
        write(folder, &file);
        let (code, _, errors) = run(folder, &["check"], &[]).await;
        assert_eq!((code, errors.as_str()), (0, ""));
    }
}

/// What is wrong with a key is said with its place, and never with the key.
#[tokio::test]
async fn mistakes_of_keys_have_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let secret = SecretKind::Service.text(&[7; 32]);
    let far = |options: Value| caller(&json!({"servers": {"far": options}}));
    let child = json!({"command": "pilotlight", "args": ["engine", "--scripted", "x"]});
    let mut not_mqtt = far(json!({"service_key": ServicePublicKey([7; 32])}));
    not_mqtt["mcpServers"]["far"] = child;
    let mut twice = far(json!({"service_key": ServicePublicKey([7; 32])}));
    twice["mcpServers"]["near"] = json!({"type": "mqtt", "topic": "pilotlight/mcp/big"});
    let pinned = far(json!({"service_key": ServicePublicKey([7; 32])}));
    let serving = worker(&json!({"serve": "a/b", "callers": {}}));
    let off: &[(&str, &str)] = &[("PILOTLIGHT_STATE", "off")];
    let on: &[(&str, &str)] = &[];
    let cases = [
        (
            far(json!({"service_key": secret})),
            on,
            "pilotlight.servers.far.service_key: is a private key",
        ),
        (
            far(json!({"service_key": CallerPublicKey([7; 32])})),
            on,
            "pilotlight.servers.far.service_key: must be the public key of the service",
        ),
        (not_mqtt, on, "pilotlight.servers.far.service_key: is for servers of type mqtt"),
        (twice, on, "service_key: differs from that of another server with the topic"),
        (
            worker(&json!({"serve": "a/b", "callers": {"dev": "abc"}})),
            on,
            "pilotlight.mqtt.callers.dev: must be the public key of the caller",
        ),
        (
            worker(&json!({"serve": "a/b", "callers": {"a b": CallerPublicKey([7; 32])}})),
            on,
            "pilotlight.mqtt.callers.a b: must be the name of a device",
        ),
        (worker(&json!({"callers": {}})), on, "pilotlight.mqtt.callers: is for a worker"),
        (pinned, off, "pilotlight.mqtt.caller_secret: a server with service_key needs"),
        (serving, off, "pilotlight.mqtt.service_secret: callers needs the key of the service"),
    ];
    for (file, env, expected) in cases {
        write(folder, &file);
        let (code, _, errors) = run(folder, &["check"], env).await;
        assert_eq!(code, 2, "{expected}: {errors}");
        assert!(errors.contains(expected), "{expected}: {errors}");
        assert!(!errors.contains(&secret) && !errors.contains("BwcHBw"), "{errors}");
    }
}
