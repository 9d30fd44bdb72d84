//! A terminal, and a folder of a stranger: what a model says and an `mcp.json` starts.

use std::path::Path;
use std::process::Stdio;

use crate::support::cloud::{Act, Cloud, no_model};
use crate::support::service::{Service, catalog, program};
use crate::support::{PROGRAM, SOON};
use serde_json::{Value, json};
use tokio::process::Command;

const DRY: [&str; 2] = ["--scripted", "dry"];
/// The title of a terminal, a colour as one byte, and text that runs backwards.
const EVIL: &str = "\x1b]0;title\x07red\u{9b}31m\u{202e}back";
const SHOWN: &str = "\\u{1b}]0;title\\u{7}red\\u{9b}31m\\u{202e}back";

/// Runs the program with a terminal as its standard output and error, and gives what the terminal got.
async fn on_terminal(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let command = args
        .iter()
        .enumerate()
        .fold("exec \"$PROGRAM\"".to_owned(), |all, (n, _)| format!("{all} \"$ARG{n}\""));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).current_dir(folder).env("PROGRAM", PROGRAM);
    script.envs(args.iter().enumerate().map(|(n, arg)| (format!("ARG{n}"), *arg)));
    script.envs(env.iter().copied()).stdin(Stdio::null());
    let out = tokio::time::timeout(SOON, script.output()).await.unwrap().unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn is_escaped(text: &str) {
    assert!(text.contains(SHOWN), "{text:?}");
    for raw in ["\x1b]0", "\x07", "\u{9b}", "\u{202e}"] {
        assert!(!text.contains(raw), "{raw:?} is in {text:?}");
    }
}

fn written(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), config.to_string()).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_not_told_what_to_do_by_a_model() {
    let folder = written(&catalog(&DRY));
    is_escaped(&on_terminal(folder.path(), &["ask", "--local", EVIL], &[]).await);
    let (code, out, err) = program(folder.path(), &["ask", "--local", EVIL], &[]).await;
    assert!(code == 0 && out.starts_with(EVIL), "another reader gets the text: {out:?} {err}");
    let told = on_terminal(folder.path(), &["ask", "--local", "--json", EVIL], &[]).await;
    assert!(!told.contains("\u{9b}") && !told.contains("\u{202e}"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_by_a_server_a_file_or_a_record() {
    let server = Cloud::start([Act::Make(|message| no_model(message, EVIL))]).await;
    let mut catalog = catalog(&DRY);
    catalog["mcpServers"]["far"] = json!({"url": server.url});
    let service = Service::start(&catalog).await;
    let failed = |state: &Value| {
        let far = state["servers"].as_array().unwrap().iter().find(|s| s["server"] == "far");
        far.unwrap()["health"]["reason"].as_str().is_some_and(|reason| reason.contains("title"))
    };
    service.until("the server has failed", failed).await;
    let http = format!("127.0.0.1:{}", service.http);
    let env = [("PILOTLIGHT_HTTP", http.as_str())];
    for args in [&["status"][..], &["status", "--json"]] {
        let told = on_terminal(service.folder.path(), args, &env).await;
        for raw in ["\x1b]0", "\x07", "\u{9b}", "\u{202e}"] {
            assert!(told.contains("title") && !told.contains(raw), "{raw:?} is in {told:?}");
        }
    }

    let folder = written(&json!({"mcpServers": {"a": {"command": "x"}}, EVIL: 1}));
    for args in [&["check"][..], &["doctor"], &["ask", "--local", "x"]] {
        is_escaped(&on_terminal(folder.path(), args, &[]).await);
    }
    let record = json!({
        "route": "local", "reason": "feasible",
        "attempts": [{"server": EVIL, "outcome": "ok", "ms": 1}],
        "pressure": {"heat": 0.0, "memory": 0.0, "disk": 0.0, "queue": 0.0},
    });
    is_escaped(&on_terminal(folder.path(), &["explain", &record.to_string()], &[]).await);
}

/// Ends a command that would run for as long as its input is open.
async fn run(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(PROGRAM);
    command.args(args).current_dir(folder).envs(env.iter().copied()).stdin(Stdio::null());
    let out = tokio::time::timeout(SOON, command.output()).await.unwrap().unwrap();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A server that leaves a file behind before it answers.
fn stranger() -> Value {
    let begin = "touch started; exec \"$0\" engine --scripted dry";
    json!({"mcpServers": {"tool": {"command": "sh", "args": ["-c", begin, PROGRAM]}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_programs_of_a_folder_are_not_started_unasked() {
    let folder = written(&stranger());
    let started = folder.path().join("started");
    std::fs::write(folder.path().join("samples.jsonl"), "{\"prompt\": \"x\"}\n").unwrap();
    std::fs::write(folder.path().join(".env"), "PILOTLIGHT_CONFIG=mcp.json\n").unwrap();
    for args in [&["ask", "--local", "x"][..], &["mcp"], &["simulate", "--engine"]] {
        let (code, err) = run(folder.path(), args, &[]).await;
        assert_eq!(code, 1, "{args:?}: {err}");
        for part in ["tool: sh", "--config", "mcp.json"] {
            assert!(err.contains(part), "{args:?}: {part} is not in {err}");
        }
        assert!(!started.exists(), "{args:?}");
    }
    let (code, err) =
        run(folder.path(), &["--config", "mcp.json", "ask", "--local", "x"], &[]).await;
    assert!(code == 0 && started.exists(), "a file that is named is used: {err}");
    std::fs::remove_file(&started).unwrap();
    let named = [("PILOTLIGHT_CONFIG", "mcp.json")];
    let (code, err) = run(folder.path(), &["ask", "--local", "x"], &named).await;
    assert!(code == 0 && started.exists(), "{err}");
}

/// The program itself starts what its arguments and variables say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_by_the_program_itself() {
    for server in [
        json!({"command": "pilotlight", "args": ["--config", "inner.json", "mcp"]}),
        json!({"command": "pilotlight", "args": ["--config", "absent.json", "mcp"]}),
        json!({"command": "pilotlight", "args": ["--config", "mcp.json", "mcp"]}),
        json!({"command": "pilotlight", "args": ["mcp"]}),
        json!({"command": "pilotlight", "args": ["engine", "--onnx", ".", "--runtime", "./a.so"]}),
        json!({"command": "pilotlight", "args": ["engine", "--onnx", ".", "--runtime=./a.so"]}),
        json!({"command": "pilotlight", "args": ["engine", "--scripted", "x"], "env": {"LD_PRELOAD": "./a.so"}}),
        json!({"command": "./pilotlight", "args": ["engine", "--scripted", "x"]}),
    ] {
        let folder = written(&json!({"mcpServers": {"inner": server}}));
        std::fs::write(folder.path().join("inner.json"), stranger().to_string()).unwrap();
        let (code, err) = run(folder.path(), &["ask", "--local", "x"], &[]).await;
        assert!(code == 1 && err.contains("starts other programs"), "{server}: {code} {err}");
        assert!(!folder.path().join("started").exists(), "{server}");
    }
}
