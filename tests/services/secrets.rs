//! What is meant for one host stays with it: not in a core dump, not with a child, not with a proxy.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::cloud::{Cloud, KEY, answer, entry, trusting};
use crate::support::service::{Service, catalog, signal};
use crate::support::{PROGRAM, SOON};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

const PROMPT: &str = "the lamp of the lighthouse";

async fn ask(service: &Service, mode: &str) -> Value {
    let body = json!({
        "model": "auto", "messages": [{"role": "user", "content": PROMPT}],
        "metadata": {"mode": mode, "deadline_ms": "8000"},
    });
    service.chat(body).await.1
}

/// The core dumps in a folder.
fn cores(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("core")).collect()
}

#[tokio::test]
async fn a_crash_leaves_no_core_dump() {
    let (_, most) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, most, most).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut other = Command::new("sh");
    let crashed = other.args(["-c", "kill -ABRT $$"]).current_dir(&elsewhere);
    if !crashed.status().await.unwrap().core_dumped() {
        eprintln!("not tried: this system writes no core dump of anybody");
        return;
    }
    let cloud = Cloud::start([answer(&["x"])]).await;
    let mut catalog = catalog(&["--scripted", "small"]);
    let mut big = entry(&cloud.url);
    big["key"] = json!("${CLOUD_KEY}");
    catalog["pilotlight"]["providers"] = json!({"big": big});
    let mut service = Service::launch(&catalog, "off", &[("CLOUD_KEY", KEY)]);
    service.ready_all().await;
    for mode in ["cloud-only", "local-only"] {
        assert!(ask(&service, mode).await["choices"].is_array());
    }
    assert!(cloud.asked()[0].head.contains(KEY));

    let engine = service.engine();
    signal(engine, Signal::SIGABRT);
    service.until("the engine is gone", |state| state["servers"][0]["model"].is_null()).await;
    service.ready_all().await;
    assert_ne!(service.engine(), engine);
    signal(service.child.id().unwrap() as i32, Signal::SIGABRT);
    let ended = tokio::time::timeout(SOON, service.child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32));
    assert!(!ended.core_dumped());
    assert_eq!(cores(service.folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_child_is_not_told_the_keys_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let begin = format!("env > {}; exec \"$0\" engine --scripted small", told.display());
    let catalog = json!({
        "mcpServers": {"tool": {
            "command": "sh", "args": ["-c", begin, PROGRAM],
            "env": {"OWN_TOKEN": "${TOOL_TOKEN}", "PLACE": "${PLACE}"}
        }},
        "pilotlight": {
            "device": {"name": "dev"},
            "providers": {"big": {"kind": "openai", "base_url": "https://models.example/v1", "model": "b", "key": "${CLOUD_KEY}"}},
        },
    });
    let more = [
        ("CLOUD_KEY", KEY),
        ("TOOL_TOKEN", "for the tool"),
        ("PLACE", "at sea"),
        ("PILOTLIGHT_HTTP_TOKEN", KEY),
        ("PILOTLIGHT_MQTT_PASSWORD", KEY),
    ];
    let service = Service::launch(&catalog, "off", &more);
    let end = tokio::time::Instant::now() + SOON;
    let told = loop {
        let told = std::fs::read_to_string(&told).unwrap_or_default();
        if told.contains("PLACE=") && told.ends_with('\n') {
            break told;
        }
        assert!(tokio::time::Instant::now() < end, "the child was not started");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!told.contains(KEY), "{told}");
    for line in ["OWN_TOKEN=for the tool", "PLACE=at sea"] {
        assert!(told.lines().any(|told| told == line), "{told}");
    }
    assert!(told.contains("\nPATH=") && !told.contains("TOOL_TOKEN="), "{told}");
    drop(service);
}

/// A proxy that opens tunnels to this machine, whatever the name, and writes down how each line begins.
async fn proxy() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut line, _)) = listener.accept().await {
            let notes = notes.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let length = line.read(&mut head).await.ok()?;
                notes.lock().unwrap().extend_from_slice(&head[..length]);
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                let (_, port) =
                    head.strip_prefix("CONNECT ")?.split_once(' ')?.0.rsplit_once(':')?;
                let mut cloud = TcpStream::connect(format!("127.0.0.1:{port}")).await.ok()?;
                line.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
                copy_bidirectional(&mut line, &mut cloud).await.ok()
            });
        }
    });
    (url, seen)
}

#[tokio::test]
async fn a_proxy_is_followed_but_not_to_this_machine() {
    let (proxy, seen) = proxy().await;
    // a name that only the proxy knows
    let (far, certificate) = Cloud::start_named("cloud.test", [answer(&["far"])]).await;
    let here = Cloud::start([answer(&["here"])]).await;
    let near = Service::launch(&catalog(&["--scripted", "near"]), "off", &[]);
    near.ready().await;
    let (big, _folder) = trusting(&far.url, &certificate);
    let proxies: Vec<(&str, &str)> =
        ["HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, &*proxy)).into();
    let with = |providers: Value, servers: Value| {
        let catalog = json!({"mcpServers": servers, "pilotlight": {
            "device": {"name": "dev"}, "providers": providers,
        }});
        Service::launch(&catalog, "off", &proxies)
    };
    let text = |told: &Value| told["choices"][0]["message"]["content"].clone();

    let service = with(json!({"here": entry(&here.url)}), json!({}));
    service.ready_all().await;
    assert_eq!(text(&ask(&service, "cloud-only").await), "here");
    let service = with(json!({}), json!({"near": {"url": near.url("/mcp")}}));
    service.ready_all().await;
    let told = ask(&service, "cloud-only").await;
    assert!(text(&told).as_str().unwrap().contains("lighthouse"), "{told}");
    let sent = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert_eq!(sent, "", "what is meant for this machine went to a proxy");

    let service = with(json!({"big": big}), json!({}));
    service.ready_all().await;
    let told = ask(&service, "cloud-only").await;
    assert_eq!(text(&told), "far", "{told}");
    let sent = String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    assert!(sent.starts_with("CONNECT cloud.test:"), "{sent}");
    assert!(!sent.contains(KEY) && !sent.contains("lighthouse"), "{sent}");
}
