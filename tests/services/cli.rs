//! The command line: what it prints, what it refuses, and its exit codes.

use std::path::Path;

use crate::support::PROGRAM;
use crate::support::service::{LOGIN, Service, catalog, program};
use serde_json::{Value, json};

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

async fn check(config: &str, env: &[(&str, &str)]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), config).unwrap();
    program(folder.path(), &["check"], env).await
}

#[tokio::test]
async fn the_example_has_no_mistakes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (code, out, err) = program(root, &["check"], &[]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
}

#[tokio::test]
async fn every_mistake_is_named_with_its_path() {
    let config = json!({
        "mcpServers": {
            "a": {"command": "x", "url": "http://y"},
            "b": {"type": "sse", "url": "http://y"},
            "c": {"url": "ftp://y"},
            "d": {"command": "x", "args": ["${NOT_SET_ANYWHERE}"]},
            "e": {"comand": "x"},
        },
        "extra": 1,
        "pilotlight": {
            "servers": {"nobody": {"reach": "device"}},
            "models": {"../m": {}, "m": {"sha256": "0A"}},
            "device": {"name": "a/b"},
            "mqtt": {"url": "http://x"},
            "http": {"listen": "0.0.0.0:8080"},
            "tasks": {"bad name": {"template": "x"}, "t": {"template": " ", "max_tokens": 0}},
            "policy": {"classes": {"vip": {}, "batch": {"deadline_ms": 0}}, "budget": {"usd_per_day": -1, "apps": {"a/b": {}}}}
        }
    });
    let (code, _, err) = check(&config.to_string(), &[("PILOTLIGHT_HTP", "x")]).await;
    assert_eq!(code, 2);
    for path in [
        "extra:",
        "mcpServers.a: ",
        "mcpServers.b: the sse transport",
        "mcpServers.c: ",
        "mcpServers.d.args[0]: the variable NOT_SET_ANYWHERE",
        "mcpServers.e.comand: ",
        "the nearest is `command`",
        "pilotlight.models.../m: ",
        "pilotlight.models.m: missing field `source`",
        "pilotlight.device.name: ",
        "pilotlight.mqtt.url: ",
        "pilotlight.http.token: ",
        "pilotlight.policy.budget.usd_per_day: ",
        "pilotlight.policy.budget.apps.a/b: ",
        "pilotlight.servers.nobody: ",
        "pilotlight.tasks.bad name: ",
        "pilotlight.tasks.t.template: ",
        "pilotlight.tasks.t.max_tokens: ",
        "classes.vip: ",
        "classes.batch.deadline_ms: ",
        "PILOTLIGHT_HTP:",
    ] {
        assert!(err.contains(path), "{path} is not in\n{err}");
    }
    let simple = |ours: Value| {
        json!({"mcpServers": {"a": {"command": "x"}}, "pilotlight": ours}).to_string()
    };
    for (ours, path) in [
        (json!({"device": {"name": "a/b"}}), "pilotlight.device.name: "),
        (json!({"mqtt": {"url": "http://x"}}), "pilotlight.mqtt.url: "),
        (json!({"http": {"listen": "0.0.0.0:8080"}}), "pilotlight.http.token: "),
        (json!({"tasks": {"t": {}}}), "pilotlight.tasks.t: missing field `template`"),
        (json!({"versoin": 1}), "unknown field `versoin`"),
    ] {
        let (code, _, err) = check(&simple(ours), &[]).await;
        assert!(code == 2 && err.contains(path), "{path} is not in\n{err}");
    }
    for (text, said) in
        [("{", "not valid JSON"), ("[]", "must be a JSON object"), ("{}", "mcpServers")]
    {
        let (code, _, err) = check(text, &[]).await;
        assert!(code == 2 && err.contains(said), "{text}: {err}");
    }
}

#[tokio::test]
async fn secrets_are_named_and_never_shown() {
    let canary = "canary-9f3";
    let config = json!({
        "mcpServers": {"a": {"url": "https://x", "headers": {"Authorization": "Bearer ${TOKEN}"}}},
        "pilotlight": {"http": {"token": "${TOKEN}"}, "mqtt": {"url": "ht!p", "username": "u", "password": "${TOKEN}"}}
    });
    let (code, out, err) =
        check(&config.to_string(), &[("TOKEN", canary), ("PILOTLIGHT_LOG", "trace")]).await;
    assert_eq!(code, 2);
    assert!(!format!("{out}{err}").contains(canary), "{out}{err}");
    let config = json!({"mcpServers": {"a": {"url": "https://x", "headers": {"Authorization": format!("Bearer {canary}")}}}});
    let (code, out, err) = check(&config.to_string(), &[]).await;
    assert_eq!(code, 0);
    assert!(err.contains("mcpServers.a.headers.Authorization: looks like a secret"), "{err}");
    assert!(!format!("{out}{err}").contains(canary));
}

#[tokio::test]
async fn variables_come_from_the_file_and_the_environment_wins() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".env"), "WHICH=file\nPILOTLIGHT_DEVICE=from_file\n")
        .unwrap();
    let config = json!({"mcpServers": {"${WHICH}": {"command": "x"}}, "pilotlight": {"device": {"name": "${WHICH}/"}}});
    std::fs::write(folder.path().join("mcp.json"), config.to_string()).unwrap();
    assert_eq!(
        program(folder.path(), &["check"], &[]).await.0,
        0,
        "the variable gives a good name"
    );
    let (code, _, err) = program(folder.path(), &["check"], &[("PILOTLIGHT_DEVICE", "x/y")]).await;
    assert!(code == 2 && err.contains("\"x/y\""), "{err}");
    // without its policy the device would refuse each signed configuration
    std::fs::write(folder.path().join("trust.json"), r#"{"flet": 1}"#).unwrap();
    let trust = [("PILOTLIGHT_TRUST", "trust.json")];
    let (code, _, err) = program(folder.path(), &["check"], &trust).await;
    assert!(code == 2 && err.contains("trust.json") && err.contains("flet"), "{err}");
    let (code, out, _) = program(folder.path(), &["check", "--json"], &trust).await;
    assert!(code == 2 && out.contains("flet"), "{out}");
    std::fs::write(folder.path().join(".env"), "not a line").unwrap();
    let (code, _, err) = program(folder.path(), &["check"], &[]).await;
    assert!(code == 2 && err.contains(".env"), "{err}");
}

#[tokio::test]
async fn exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let code = async |args: &[&str]| program(folder.path(), args, &[]).await.0;
    assert_eq!(code(&["--help"]).await, 0);
    assert_eq!(code(&["nonsense"]).await, 2);
    assert_eq!(code(&["check"]).await, 2);
    std::fs::write(folder.path().join("mcp.json"), catalog(&DRY).to_string()).unwrap();
    let port = crate::support::service::free_port();
    let http = format!("127.0.0.1:{port}");
    let off = [("PILOTLIGHT_HTTP", http.as_str()), ("PILOTLIGHT_BROKER", "127.0.0.1:1")];
    assert_eq!(program(folder.path(), &["status"], &off).await.0, 3);
    let (code, _, err) = program(folder.path(), &["ask", "x"], &off).await;
    assert!(code == 1 && err.contains("broker 127.0.0.1:1 is not reachable"), "{err}");
    let taken = std::net::TcpListener::bind(&http).unwrap();
    let (code, _, err) = program(
        folder.path(),
        &["serve"],
        &[("PILOTLIGHT_HTTP", &http), ("PILOTLIGHT_MQTT", "off")],
    )
    .await;
    assert!(code == 1 && err.contains("if the port is in use"), "{err}");
    drop(taken);
    let (code, out, _) = program(folder.path(), &["completions", "bash"], &[]).await;
    assert!(code == 0 && out.contains("pilotlight"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ask_and_status_against_a_service() {
    let service = Service::start(&catalog(&DRY)).await;
    let (http, broker) =
        (format!("127.0.0.1:{}", service.http), format!("127.0.0.1:{}", service.mqtt));
    let [user, password] = LOGIN;
    let env = [("PILOTLIGHT_HTTP", http.as_str()), ("PILOTLIGHT_BROKER", broker.as_str())];
    let env = [env[0], env[1], user, password];
    let (code, out, err) = program(service.folder.path(), &["ask", "one two three"], &env).await;
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    assert!(err.contains("local dry, 3 tokens, ") && err.contains(", feasible"), "{err}");
    let args = ["ask", "--record", "--mode", "local-only", "--id", "a-1", "one two"];
    let (code, out, err) = program(service.folder.path(), &args, &env).await;
    assert!(code == 0 && out.starts_with("one two\ndecision record: {"), "{out} {err}");
    let (code, out, _) = program(
        service.folder.path(),
        &["ask", "--json", "--label", "hot", "--label", "cold", "so cold"],
        &env,
    )
    .await;
    let reply: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &reply["text"]), (0, &json!("cold")), "{reply}");
    let (code, _, err) =
        program(service.folder.path(), &["ask", "--mode", "nowhere", "x"], &env).await;
    assert!(code == 2 && err.contains("local-only"), "{err}");
    let (code, out, _) =
        program(service.folder.path(), &["ask", "--json", "/fail=broken@1 x y"], &env).await;
    let reply: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &reply["status"]), (4, &json!("failed")));
    let (code, out, _) = program(service.folder.path(), &["status"], &env).await;
    assert!(
        code == 0 && out.contains("local (device): ready") && out.contains("broker: up"),
        "{out}"
    );
    let (code, out, _) = program(service.folder.path(), &["status", "--json"], &env).await;
    let state: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &state["ready"]), (0, &json!(true)));
    let (_, out, _) = program(service.folder.path(), &["doctor", "--json"], &env).await;
    let findings: Value = serde_json::from_str(&out).unwrap();
    assert!(findings.as_array().unwrap().iter().any(|f| f["what"] == "memory"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ask_here_and_serve_dry() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), catalog(&DRY).to_string()).unwrap();
    let (code, out, err) = program(folder.path(), &["ask", "--local", "a b c"], &[]).await;
    assert!(code == 0 && out.starts_with("a b c\n"), "{out}{err}");
    // the whole service on standard input and output is one more model
    std::fs::copy(folder.path().join("mcp.json"), folder.path().join("inner.json")).unwrap();
    let inner = folder.path().join("inner.json").display().to_string();
    let outer =
        json!({"mcpServers": {"inner": {"command": PROGRAM, "args": ["--config", inner, "mcp"]}}});
    std::fs::write(folder.path().join("mcp.json"), outer.to_string()).unwrap();
    let (code, out, err) = program(folder.path(), &["ask", "--local", "d e f"], &[]).await;
    assert!(code == 0 && out.starts_with("d e f\n"), "{out}{err}");
}

/// As with `pilotlight doctor | head -1`.
#[tokio::test]
async fn a_reader_that_goes_is_no_trouble() {
    let mut doctor = tokio::process::Command::new(PROGRAM)
        .args(["doctor", "--samples", "1"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(doctor.stdout.take());
    let ended = tokio::time::timeout(crate::support::SOON, doctor.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!((ended.status.code(), said.as_str()), (Some(141), ""));
}
