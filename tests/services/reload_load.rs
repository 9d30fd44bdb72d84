//! Many changes of the configuration while requests run.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::reload::{chat, scripted, until, write};
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog};

/// Memory, descriptors and children of a process.
fn holds(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    (memory / 1024, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// Good and bad reloads while requests run over MQTT and HTTP: none fails, nothing is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reloads_under_load_disturb_nothing() {
    const RELOADS: usize = 1_000;
    let file = catalog(&["--scripted", "near", "--slots", "8"]);
    let service = Service::launch_with_log(&file, "embedded", &[]);
    service.ready().await;
    let pid = service.child.id().unwrap();
    let client = crate::support::service::client();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut load = JoinSet::new();
    for n in 0..4 {
        let (client, url, ended) =
            (client.clone(), service.url("/v1/chat/completions"), stop.clone());
        load.spawn(async move {
            let mut done = 0;
            while !ended.is_cancelled() {
                let answer = client.post(&url).json(&chat("one two /delay-us=2000")).send().await;
                let answer = answer.unwrap();
                let (status, body) = (answer.status(), answer.text().await.unwrap());
                assert_eq!(status, 200, "{body}");
                done += 1;
            }
            done
        });
        let (port, stop) = (service.mqtt, stop.clone());
        load.spawn(async move {
            let name = format!("app{n}");
            let mut app = App::of(port, &name).await;
            let mut done = 0;
            while !stop.is_cancelled() {
                let reply = app.ask(&name, "three four /delay-us=2000").await;
                assert_eq!(reply["status"], "ok", "{reply}");
                done += 1;
            }
            done
        });
    }
    let reload = async |text: &str| {
        write(service.folder.path(), "mcp.json", text);
        let answer = client.post(service.url("/reload")).send().await.unwrap();
        let (status, state): (_, Value) = (answer.status(), answer.json().await.unwrap());
        let is_in_force =
            state["digest"] == pilotlight::config::source::digest(text.as_bytes()).as_str();
        (status.as_u16(), is_in_force, state)
    };
    let mut before = None;
    for n in 0..RELOADS {
        let mut next = file.clone();
        let (text, is_good) = match n % 5 {
            // another process
            0 => {
                next["mcpServers"]["local"]["args"] =
                    json!(["engine", "--scripted", format!("near{n}"), "--slots", "8"]);
                (next.to_string(), true)
            }
            // one more entry
            1 => {
                next["mcpServers"][format!("more{n}")] = scripted("more");
                (next.to_string(), true)
            }
            // terms alone
            2 => {
                next["pilotlight"]["tasks"][format!("t{n}")] = json!({"template": "x"});
                next["pilotlight"]["policy"] = json!({"redact": ["email"]});
                (next.to_string(), true)
            }
            3 => {
                next["pilotlight"]["tasks"]["echo"] = json!({"template": ""});
                (next.to_string(), false)
            }
            _ => (next.to_string()[..50].to_owned(), false),
        };
        let (status, is_in_force, state) = reload(&text).await;
        assert_eq!((status == 200, is_in_force), (is_good, is_good), "{n}: {status} {state}");
        if n == RELOADS / 5 {
            before = Some(holds(pid));
        }
    }
    assert_eq!(reload(&file.to_string()).await.0, 200);
    until("one engine is left", || service.engines().len() == 1).await;
    let ((memory, files), (memory_after, files_after)) = (before.unwrap(), holds(pid));
    stop.cancel();
    let done: Vec<u32> = load.join_all().await;
    println!("{done:?} answers, {memory} to {memory_after} MiB, {files} to {files_after} files");
    assert!(done.iter().all(|done| *done > 100), "{done:?}");
    assert!(memory_after <= memory + 8, "{memory} to {memory_after} MiB");
    assert!(files_after <= files, "{files} to {files_after} descriptors");
}
