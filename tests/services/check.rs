//! `pilotlight check` for people, editors and CI: places of mistakes, the list of `--json`, the schema.

use std::path::Path;

use crate::support::service::{Service, program};
use serde_json::{Value, json};

const FILE: &str = r#"{
  "mcpServers": {"a": {"command": "x"}},
  "pilotlight": {
    "http": {"listen": "0.0.0.0:8080"},
    "mqtt": {"url": "http://x", "prefix": "/"},
    "tasks": {
      "t": {
        "template": "ä日🙂", "max_token": 5,
        "max_tokens": 1,
        "max_tokens": 2
      }
    }
  }
}
"#;

/// The code, standard output and standard error of a check of this file.
async fn check(file: &str, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), file).unwrap();
    program(folder.path(), &[&["check"], args].concat(), env).await
}

#[tokio::test]
async fn mistakes_have_the_form_of_a_compiler() {
    let (code, out, err) = check(FILE, &[], &[("PILOTLIGHT_HTP", "x")]).await;
    assert_eq!((code, out.as_str()), (2, ""));
    let lines: Vec<&str> = err.lines().collect();
    for (line, expected) in lines.iter().zip([
        "mcp.json:4:5: pilotlight.http.token: 0.0.0.0:8080 is reachable",
        "mcp.json:5:14: pilotlight.mqtt.url: must be mqtt://",
        "mcp.json:8:28: pilotlight.tasks.t.max_token: unknown field",
        "mcp.json:10:9: pilotlight.tasks.t.max_tokens: is there twice, the first time in line 9",
        "error: PILOTLIGHT_HTP: is unknown",
    ]) {
        assert!(line.starts_with(expected), "{line}\nis not\n{expected}");
    }
    assert_eq!(lines.len(), 5, "{err}");
    assert!(lines[2].ends_with("; the nearest is `max_tokens`"), "{err}");
    let (code, _, err) = check("{\n  \"mcpServers\": {},\n}", &[], &[]).await;
    assert_eq!(code, 2);
    let expected = "mcp.json:2:19: not valid JSON: a comma before `}`; remove it\n";
    assert_eq!(err, expected);
}

#[tokio::test]
async fn the_list_for_programs_is_stable() {
    let (code, out, _) = check(FILE, &["--json"], &[("PILOTLIGHT_HTP", "x")]).await;
    assert_eq!(code, 2);
    let list: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(list.len(), 5, "{out}");
    let keys = |one: &Value| one.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for one in &list {
        assert_eq!(keys(one), ["file", "path", "line", "column", "message"]);
    }
    let place = |one: &Value| json!([one["file"], one["path"], one["line"], one["column"]]);
    assert_eq!(place(&list[2]), json!(["mcp.json", "pilotlight.tasks.t.max_token", 8, 28]));
    assert_eq!(place(&list[4]), json!([null, "PILOTLIGHT_HTP", null, null]));
    let (_, again, _) = check(FILE, &["--json"], &[("PILOTLIGHT_HTP", "x")]).await;
    assert_eq!(out, again);

    let (code, out, _) =
        check("{\"mcpServers\": {\"a\": {\"command\": \"x\"}}}", &["--json"], &[]).await;
    assert_eq!((code, out.as_str()), (0, "[]\n"));
    // a file that cannot be read has no place
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = program(folder.path(), &["check", "--json", "none.json"], &[]).await;
    let list: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &list[0]["path"], &list[0]["line"]), (2, &json!("none.json"), &Value::Null));
}

/// A value of the environment is not at any place of the file, though the file may have one, too.
#[tokio::test]
async fn a_mistake_of_a_variable_names_the_variable() {
    let file = json!({
        "mcpServers": {"a": {"command": "x"}},
        "pilotlight": {
            "mqtt": {"url": "mqtt://good", "password": "good"},
            "http": {"listen": "127.0.0.1:8080", "token": "good"},
            "device": {"name": "good"},
        },
    });
    let env = [
        ("PILOTLIGHT_MQTT", "http://x"),
        ("PILOTLIGHT_HTTP", "nowhere"),
        ("PILOTLIGHT_DEVICE", "a/b"),
    ];
    let (_, _, err) = check(&file.to_string(), &[], &env).await;
    for (name, _) in env {
        assert!(err.lines().any(|line| line.starts_with(&format!("error: {name}: "))), "{err}");
    }
    assert_eq!(err.lines().count(), 3, "{err}");
    let env = [("PILOTLIGHT_MQTT_PASSWORD", "cred:none"), ("PILOTLIGHT_HTTP_TOKEN", "cred:none")];
    let (_, _, err) = check(&file.to_string(), &[], &env).await;
    for (name, _) in env {
        assert!(err.lines().any(|line| line.starts_with(&format!("error: {name}: "))), "{err}");
    }
    assert_eq!(err.lines().count(), 2, "{err}");
}

#[tokio::test]
async fn warnings_and_files_with_a_byte_order_mark_have_places() {
    let file = "\u{feff}{\"mcpServers\": {\"a\": {\"url\": \"https://x\",\r\n \"headers\": {\"Authorization\": \"Bearer 1\"}}}}";
    let (code, _, err) = check(file, &[], &[]).await;
    assert_eq!(code, 0, "{err}");
    let expected =
        "mcp.json:2:14: warning: mcpServers.a.headers.Authorization: looks like a secret";
    assert!(err.starts_with(expected), "{err}");
    let (_, _, err) = check("\u{feff}[]", &[], &[]).await;
    assert!(err.starts_with("mcp.json:1:1: must be a JSON object"), "{err}");
}

/// The service refuses to start with the same words.
#[tokio::test]
async fn the_service_names_places_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.json"), "{\"mcpServers\":\n{'a': 1}}").unwrap();
    let (code, _, err) = program(folder.path(), &["--config", "other.json", "serve"], &[]).await;
    assert_eq!(code, 2);
    assert!(err.starts_with("other.json:2:2: mcpServers: not valid JSON: a key in other"), "{err}");
}

#[tokio::test]
async fn the_schema_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, err) = program(folder.path(), &["schema"], &[]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mcp.schema.json");
    if cfg!(feature = "bedrock") {
        assert!(out == std::fs::read_to_string(copy).unwrap(), "the copy is another one");
    }
    assert!(serde_json::from_str::<Value>(&out).is_ok());
}

/// A file that names its schema, as editors need it, runs.
#[tokio::test]
async fn a_file_may_name_its_schema() {
    let file = json!({
        "$schema": "docs/mcp.schema.json",
        "mcpServers": {"a": {"command": "pilotlight", "args": ["engine", "--scripted", "hello"]}},
    });
    let service = Service::start(&file).await;
    assert!(service.state().await.is_some());
}
