//! What is meant for one host stays with it: not in a core dump, not with a child, not with a proxy.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::cloud::{
    Act, Cloud, KEY, answer, entry, event, head, no_model, piece, trusting,
};
use crate::support::service::{Service, catalog, program, signal};
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

/// What must stay out of the log, the status and the replies.
const CANARY: &str = "canary-41c7";
/// What a server may repeat of it.
const REPEATED: &str =
    "Cannot POST /canary-41c7-path/mcp?key=canary-41c7-query with canary-41c7-header";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_with_keys_is_not_told() {
    // a common server repeats the path, another one repeats what it was sent
    let page = format!(
        "{}Cannot POST /{CANARY}-path/mcp?key={CANARY}-query at https://x:{CANARY}@up.example/?k={CANARY}",
        head("404 Not Found", "text/plain", "")
    );
    let not_found = Cloud::start([Act::Say(page.into_bytes())]).await;
    let repeats = Cloud::start([Act::Make(|message| no_model(message, REPEATED))]).await;
    let header = format!("www-authenticate: Basic realm={CANARY}-user\r\n");
    let asks = Cloud::start([Act::Say(head("401 No", "text/plain", &header).into())]).await;
    let moves = format!("location: http://127.0.0.1:9/{CANARY}-path\r\n");
    let moves = Cloud::start([Act::Say(head("302 Found", "text/plain", &moves).into())]).await;
    let gone = crate::support::service::free_port();
    let gone = format!("http://127.0.0.1:{gone}/v1");
    let nowhere = "https://no-such-host.invalid/v1".to_owned();
    let with_keys = |url: &str| {
        let (scheme, place) = url.trim_end_matches("/v1").split_once("://").unwrap();
        json!({
            "url": scheme.to_owned() + "://${KEY}-user:${KEY}-word@" + place + "/${KEY}-path/mcp?key=${KEY}-query",
            "headers": {"x-key": "${KEY}-header"},
        })
    };
    let mut catalog = catalog(&["--scripted", "small"]);
    let all = [&not_found.url, &repeats.url, &asks.url, &moves.url, &gone, &nowhere];
    for (n, url) in all.iter().enumerate() {
        catalog["mcpServers"][format!("far{n}")] = with_keys(url);
    }
    catalog["mcpServers"]["bad"] = json!({"url": "https://[${KEY}/mcp"});
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let env = [("KEY", CANARY), ("PILOTLIGHT_LOG", "debug")];
    let service = Service::launch_logged(&catalog, "off", &env, file.into());
    let failed = |state: &Value| {
        let servers = state["servers"].as_array().unwrap();
        servers.iter().filter(|one| one["health"]["reason"].is_string()).count() == all.len() + 1
    };
    let state = service.until("all have failed", failed).await;
    let reply = ask(&service, "cloud-only").await;
    let log = std::fs::read_to_string(&log).unwrap();
    for text in [state.to_string(), reply.to_string(), log.clone()] {
        assert!(!text.contains("canary"), "{text}");
    }
    assert!(log.contains("Cannot POST"), "the log has what the server said, but for this: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_repeats_the_key_in_an_answer_is_not_repeated() {
    let url = "https://me:canary@up.example/v1?key=canary";
    let error = json!({"error": {"message": format!("{KEY} is wrong for {url}"), "code": "x"}});
    let stream = head("200 OK", "text/event-stream", "") + &piece("a") + &event(&error);
    let cloud = Cloud::start([Act::Say(stream.into_bytes())]).await;
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    let reply = ask(&service, "cloud-only").await.to_string();
    assert!(reply.contains("is wrong for https://up.example/v1"), "{reply}");
    assert!(!reply.contains(KEY) && !reply.contains("canary"), "{reply}");
}

/// A value in the wrong place of the file is named, not shown.
#[tokio::test]
async fn a_mistake_does_not_show_the_value() {
    let config = json!({
        "mcpServers": {
            "a": {"url": "https://x", "headers": "${KEY}"},
            "b": {"url": ["${KEY}"], "args": "${KEY}"},
            "c": {"url": "https://x/${KEY"},
        },
        "pilotlight": {
            "servers": {"a": {"silence_ms": "${KEY}", "price": "${KEY}"}},
            "providers": {"p": {"kind": "openai", "base_url": "ht tp://${KEY}", "model": "m"}},
            "http": "${KEY}",
            "mqtt": {"url": "mqtt://me:${KEY}@host"},
        },
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), config.to_string()).unwrap();
    let (code, out, err) = program(folder.path(), &["check"], &[("KEY", CANARY)]).await;
    assert_eq!(code, 2, "{err}");
    for path in
        ["a.headers", "b.url", "b.args", "c.url", "silence_ms", "price", "p.base_url", "mqtt"]
    {
        assert!(err.contains(path), "{path} is not in {err}");
    }
    assert!(!format!("{out}{err}").contains(CANARY), "{err}");

    let literal = json!({"mcpServers": {
        "a": {"url": "https://me:word@x/mcp"}, "b": {"url": "https://x/mcp?token=word"},
        "c": {"url": "https://x/mcp?page=1"}, "d": {"url": "https://me:${KEY}@x/mcp?token=${KEY}"},
    }});
    std::fs::write(folder.path().join("mcp.json"), literal.to_string()).unwrap();
    let (code, _, err) = program(folder.path(), &["check"], &[("KEY", CANARY)]).await;
    let named: Vec<&str> =
        err.lines().filter_map(|line| line.split("mcpServers.").nth(1)).collect();
    let named: Vec<&str> = named.iter().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!((code, named), (0, vec!["a.url", "b.url"]), "{err}");
}
