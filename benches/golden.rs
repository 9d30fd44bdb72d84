//! Real models pushed to a running service: a better one over a worse one, and the reverse, gated by a
//! golden set of 60 labelled prompts of `tests/data`.
//!
//! `WORSE=small.gguf BETTER=large.gguf cargo bench --bench golden`; without `WORSE` it is the model of the
//! tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::labelled::prompts;
use support::service::Service;
use support::signing::{keygen, sha256, sign};
use support::{PROGRAM, model_file, print_head, print_machine, print_row};

const TASK: &str = "severity";
/// Cases of each of the three labels.
const EACH: usize = 20;
/// Longest time of a push: two models answer 60 prompts each.
const PATIENCE: Duration = Duration::from_secs(900);

fn engine(path: &str) -> Value {
    json!(["engine", "--gguf", path])
}

fn remote(command: &str) -> Value {
    let mut taken = BTreeMap::<String, usize>::new();
    let cases = prompts(TASK, "test").into_iter().filter_map(|(label, prompt)| {
        let count = taken.entry(label.clone()).or_default();
        *count += 1;
        (*count <= EACH).then(|| json!({"input": {"prompt": prompt}, "answer": label}))
    });
    let cases: Vec<Value> = cases.collect();
    assert_eq!(cases.len(), 60);
    let labels: serde_json::Map<_, _> =
        taken.keys().map(|label| (label.clone(), json!([]))).collect();
    json!({
        "mcpServers": {"local": {"command": command}},
        "pilotlight": {"tasks": {TASK: {
            "template": "How severe is this message of a building: info, warning or critical?\n\nMessage: {{prompt}}",
            "labels": labels,
            "golden": {"cases": cases, "loss_percent": 2},
        }}},
    })
}

#[tokio::main]
async fn main() {
    let worse = std::env::var("WORSE").unwrap_or_else(|_| model_file().display().to_string());
    let better = std::env::var("BETTER").expect("BETTER must name a GGUF file");
    print_machine();
    let folder = tempfile::tempdir().unwrap();
    let public = keygen(folder.path()).await;
    let own = sha256(PROGRAM);
    let command = |path: &str| json!({"path": PROGRAM, "sha256": own, "args": engine(path)});
    let key = json!({
        "public_key": public, "targets": ["device"],
        "operations": ["config"], "longest_days": 30,
    });
    let trust = json!({
        "keys": {"ops": key}, "trial": {"good_jobs": 20, "seconds": 1},
        "commands": {"better": command(&better), "worse": command(&worse)},
    });
    std::fs::write(folder.path().join("trust.json"), trust.to_string()).unwrap();
    let trust = folder.path().join("trust.json").display().to_string();
    let mut tasks = remote("worse")["pilotlight"]["tasks"].clone();
    tasks[TASK].as_object_mut().unwrap().remove("golden");
    let file = json!({
        "mcpServers": {"local": {"command": "pilotlight", "args": engine(&worse)}},
        "pilotlight": {"device": {"name": "dev"}, "tasks": tasks},
    });
    let env = [("PILOTLIGHT_TRUST", trust.as_str())];
    let service = Service::launch_with_log(&file, "off", &env);
    service.ready().await;
    print_head(&["push", "end", "right of 60, before and after", "s"]);
    for (version, command, expected) in [(1, "better", "kept"), (2, "worse", "rolled-back")] {
        let signed = sign(folder.path(), &remote(command), ["--device", "dev"], version).await;
        let began = Instant::now();
        let apply = support::service::client()
            .post(service.url("/config/apply"))
            .timeout(PATIENCE)
            .header("content-type", "application/octet-stream")
            .body(signed);
        apply.send().await.unwrap();
        let end = |state: &Value| {
            let end = state["config"]["state"].as_str().unwrap_or_default().to_owned();
            ["kept", "rolled-back", "refused"].contains(&end.as_str()).then_some(end)
        };
        let has_ended =
            |state: &Value| state["config"]["offered"] == version && end(state).is_some();
        let state = service.until_within(PATIENCE, expected, has_ended).await;
        let end = end(&state).unwrap();
        let log = service.log();
        let scored = log.lines().rfind(|line| line.contains("before=")).unwrap_or_default();
        let figure = |name: &str| {
            let rest = scored.split_once(name).map_or("?", |(_, rest)| rest);
            rest.split(' ').next().unwrap_or_default().to_owned()
        };
        let reason = state["config"]["reason"].as_str().unwrap_or_default();
        assert_eq!(end, expected, "{reason}");
        print_row(&[
            command.to_owned(),
            format!("{end} {reason}"),
            format!("{}, {}", figure("before="), figure("after=")),
            format!("{:.0}", began.elapsed().as_secs_f64()),
        ]);
    }
}
