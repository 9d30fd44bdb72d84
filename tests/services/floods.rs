//! Remote servers whose lists, messages and streams have no end: they are left, and others are answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::service::{Service, catalog, client};
use crate::support::untrusted::{beside, context, honest, reads, respond, says, server, text};
use pilotlight::limits::{ANSWER_BYTES_MAX, LIST_PAGES_MAX};
use serde_json::{Value, json};

/// Waits until the service says this of the server, and returns the whole state.
async fn unavailable(service: &Service, why: &str) -> Value {
    service
        .until(why, |state| {
            let servers = state["servers"].as_array().unwrap();
            let reason = |server: &Value| server["health"]["reason"].as_str().map(str::to_owned);
            let remote = servers.iter().find(|server| server["server"] == "remote").unwrap();
            reason(remote).is_some_and(|reason| reason.contains(why))
        })
        .await
}

/// A list of resources without end is read for some pages; others are answered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_without_end_is_not_read_to_its_end() {
    let endless = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/list").then(|| {
                let at = body["params"]["cursor"].as_str().map_or(0, |at| at.parse().unwrap());
                json!({"resources": [], "nextCursor": (at + 1_u64).to_string()})
            })
        })
    })
    .await;
    let service = Service::launch(&beside(&endless.url), "off", &[]);
    unavailable(&service, "nextCursor").await;
    let asked = endless.asked();
    let methods = asked.iter().filter_map(|asked| asked.body["method"].as_str());
    let mut pages: BTreeMap<usize, usize> = BTreeMap::new();
    let mut handshake = 0;
    for method in methods {
        handshake += usize::from(method == "initialize");
        *pages.entry(handshake).or_default() += usize::from(method == "resources/list");
    }
    assert!(pages.values().all(|pages| *pages <= LIST_PAGES_MAX), "{pages:?}");
    let (_, reply) = service
        .chat(json!({"model": "local", "messages": [{"role": "user", "content": "one two"}]}))
        .await;
    assert_eq!(text(&reply), "one two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_bounded_in_repetition_entries_and_bytes() {
    let repeats = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/list")
                .then(|| json!({"resources": [], "nextCursor": "again"}))
        })
    })
    .await;
    let many = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/list").then(|| {
                let one = json!({"uri": "file:///x", "name": "x"});
                json!({"resources": vec![one; 2000]})
            })
        })
    })
    .await;
    let large = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/list").then(|| {
                let one = json!({"uri": "file:///x", "name": "x".repeat(2 << 20)});
                json!({"resources": [one]})
            })
        })
    })
    .await;
    let huge = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/read").then(|| {
                let mut claims = context();
                claims["identification"]["family"] = json!("x".repeat(1 << 20));
                reads(&claims)
            })
        })
    })
    .await;
    let cases = [(repeats, "repeats"), (many, "2000 resources"), (large, "bytes"), (huge, "bytes")];
    for (server, why) in cases {
        let service = Service::launch(&beside(&server.url), "off", &[]);
        unavailable(&service, why).await;
    }
}

/// A model as a child process whose lines are made by a shell script.
fn script(folder: &Path, calls: &str) -> Value {
    let honest = |method: &str| honest(&json!({"method": method})).unwrap().to_string();
    let lines = [
        ("initialize", honest("initialize")),
        ("resources/list", honest("resources/list")),
        ("resources/read", honest("resources/read")),
    ];
    let cases: Vec<String> = lines
        .iter()
        .map(|(method, result)| {
            std::fs::write(folder.join(method.replace('/', "-")), result).unwrap();
            format!("*'\"{method}\"'*) reply \"$(cat {})\" ;;\n", method.replace('/', "-"))
        })
        .collect();
    let cases = cases.concat();
    std::fs::write(folder.join("said"), says("well", &json!({})).to_string()).unwrap();
    let script = format!(
        r#"cd "{}"
reply() {{ printf '{{"jsonrpc":"2.0","id":%s,"result":%s}}\n' "$id" "$1"; }}
while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  token=$(printf '%s' "$line" | sed -n 's/.*"progressToken":\([0-9]*\).*/\1/p')
  case "$line" in
  {cases}*'"tools/call"'*) {calls} ;;
  *'"notifications/'*) ;;
  *) printf '{{"jsonrpc":"2.0","id":%s,"error":{{"code":-32601,"message":"no"}}}}\n' "$id" ;;
  esac
done
"#,
        folder.display()
    );
    std::fs::write(folder.join("server.sh"), script).unwrap();
    json!({"command": "sh", "args": [folder.join("server.sh")]})
}

/// A service with this server as a child.
fn with_child(child: Value) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["remote"] = child;
    Service::launch(&catalog, "off", &[])
}

async fn ask_child(service: &Service, stream: bool) -> Value {
    let body = json!({
        "model": "remote", "messages": [{"role": "user", "content": "hello"}], "stream": stream,
        "metadata": {"mode": "local-only", "deadline_ms": "120000"},
    });
    let asked = client().post(service.url("/v1/chat/completions")).json(&body).send();
    let text = asked.await.unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap_or(json!(text))
}

/// A child that answers calls as the others do is a model as any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_script_answers() {
    let folder = tempfile::tempdir().unwrap();
    let service = with_child(script(folder.path(), r#"reply "$(cat said)""#));
    service.ready_all().await;
    assert_eq!(text(&ask_child(&service, false).await), "well");
}

/// Notifications, requests and progress without end close the connection; the other model is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_end_close_the_connection() {
    let log = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
    let roots = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;
    let stray = r#"{"jsonrpc":"2.0","id":987654,"result":{}}"#;
    let alive = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":'"$token"',"progress":1}}"#;
    for flood in [log, roots, stray, alive] {
        let folder = tempfile::tempdir().unwrap();
        let calls = format!("while printf '%s\\n' '{flood}'; do :; done");
        let service = with_child(script(folder.path(), &calls));
        service.ready_all().await;
        let reply = ask_child(&service, false).await;
        let error = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(error.contains("connection lost") || error.contains("more"), "{flood}: {reply}");
        let (_, reply) = service
            .chat(json!({"model": "local", "messages": [{"role": "user", "content": "one two"}]}))
            .await;
        assert_eq!(text(&reply), "one two");
    }
}

/// A stream of more than an answer may have is ended, though each piece is read at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_beyond_its_bound_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("piece"), "a".repeat(ANSWER_BYTES_MAX / 20)).unwrap();
    let calls = r#"n=0; while [ $n -lt 40 ]; do n=$((n+1))
      printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":%s,"message":"%s"}}\n' "$token" $n "$(cat piece)"
    done; reply "$(cat said)""#;
    let child = script(folder.path(), calls);
    let said = says("well", &json!({"chunks": 40, "completion_tokens": 40}));
    std::fs::write(folder.path().join("said"), said.to_string()).unwrap();
    let service = with_child(child);
    service.ready_all().await;
    let reply = ask_child(&service, true).await.to_string();
    let end = &reply[reply.len().saturating_sub(500)..];
    assert!(reply.contains("than an answer may have"), "{end}");
}

/// A server that ends the stream of each response early, states an interval of zero, and can be resumed.
async fn ends_early() -> (String, Arc<Mutex<Vec<Instant>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let resumed = Arc::new(Mutex::new(Vec::new()));
    let seen = resumed.clone();
    tokio::spawn(async move {
        while let Ok((mut line, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt;
                let asked = crate::support::cloud::read(&mut line).await?;
                let early = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                             connection: close\r\n\r\nid: 1\nretry: 0\ndata: \n\n";
                let is_resumed = asked.head.starts_with("GET");
                if is_resumed {
                    seen.lock().unwrap().push(Instant::now());
                }
                let answer = if is_resumed || asked.body["method"] == "tools/call" {
                    early.as_bytes().to_vec()
                } else {
                    respond(&asked.body, |_| None)
                };
                line.write_all(&answer).await.ok()?;
                line.shutdown().await.ok()
            });
        }
    });
    (url, resumed)
}

/// The interval before a stream is resumed is not the server's to choose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_resumed_once_a_second() {
    let (url, resumed) = ends_early().await;
    let service = Service::launch(&beside(&url), "off", &[]);
    service.ready_all().await;
    let body = json!({
        "model": "remote", "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"mode": "cloud-only", "deadline_ms": "4000"},
    });
    let (status, reply) = service.chat(body).await;
    assert_ne!(status, 200, "{reply}");
    let at = resumed.lock().unwrap().clone();
    assert!((1..=5).contains(&at.len()), "resumed {} times in 4 s", at.len());
    let pauses = at.windows(2).map(|two| two[1] - two[0]);
    assert!(pauses.min().is_none_or(|least| least > Duration::from_millis(900)), "{at:?}");
}
