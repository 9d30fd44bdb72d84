//! The HTTP interface under clients that open connections, and do not send or do not read.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::support::SOON;
use crate::support::service::{Service, catalog, client};
use pilotlight::limits::{HTTP_REQUESTS_MAX, HTTP_RESERVE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{interval, timeout};

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "64"];
const HEAD: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n";

fn ask(prompt: &str) -> Value {
    json!({
        "model": "auto", "messages": [{"role": "user", "content": prompt}],
        "metadata": {"deadline_ms": "3600000"},
    })
}

/// A connection from this address of the machine.
async fn connect_from(last: u8, service: &Service) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, service.http).into()).await.unwrap()
}

/// Connections from this address on which these bytes were sent.
async fn connections(count: usize, last: u8, bytes: &[u8], service: &Service) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut line = connect_from(last, service).await;
        line.write_all(bytes).await.unwrap();
        all.push(line);
    }
    all
}

/// A request on a new connection from this machine, and the status of the response.
async fn get(path: &str, service: &Service) -> u16 {
    client().get(service.url(path)).send().await.unwrap().status().as_u16()
}

/// How many connections the service has closed.
async fn closed(lines: &[TcpStream]) -> usize {
    let mut closed = 0;
    for line in lines {
        // only what has arrived already
        closed += usize::from(timeout(Duration::ZERO, line.readable()).await.is_ok());
    }
    closed
}

/// The next response on a connection that is then closed by the service.
async fn last_response(line: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // a connection that was reset has sent all that it had
    let _ = timeout(SOON, line.read_to_end(&mut bytes)).await.expect("the service closes it");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn told(request: &[u8], service: &Service) -> String {
    let mut line = connect_from(1, service).await;
    line.write_all(request).await.unwrap();
    last_response(&mut line).await
}

fn body_of_100(path: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: 100\r\n\r\n"
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_sent_heads_take_no_place() {
    let service = Service::start(&catalog(&DRY)).await;
    let first = connections(HTTP_REQUESTS_MAX, 1, HEAD, &service).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(path, &service).await, 200, "{path}");
    }
    assert_eq!(closed(&first).await, 0, "they were answered beside the others, not after them");
    // the connections that have waited longest make room for further ones
    let more = connections(HTTP_REQUESTS_MAX, 1, HEAD, &service).await;
    assert_eq!(get("/healthz", &service).await, 200);
    assert_eq!(service.chat(ask("x")).await.0, 200);
    assert_eq!(closed(&more[HTTP_REQUESTS_MAX / 2..]).await, 0);
    assert!(closed(&first).await > HTTP_REQUESTS_MAX / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_takes_no_place_of_another() {
    let service = Service::start(&catalog(&DRY)).await;
    // a connection that waits between its requests
    let mut own = connect_from(1, &service).await;
    let health = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut answer = [0; 1024];
    let mut others = Vec::new();
    for _ in 0..8 {
        own.write_all(health).await.unwrap();
        let read = own.read(&mut answer).await.unwrap();
        assert!(answer[..read].ends_with(b"ok\n"));
        others.extend(connections(HTTP_REQUESTS_MAX / 4, 2, HEAD, &service).await);
    }
    assert_eq!(service.chat(ask("x")).await.0, 200);
    assert_eq!(closed(std::slice::from_ref(&own)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_come_take_no_place() {
    let service = Service::start(&catalog(&DRY)).await;
    let bodies = [body_of_100("/v1/chat/completions"), body_of_100("/mcp")].map(|mut bytes| {
        bytes.push(b'{');
        bytes
    });
    let mut lines = connections(HTTP_REQUESTS_MAX / 2, 2, &bodies[0], &service).await;
    lines.extend(connections(HTTP_REQUESTS_MAX / 2, 3, &bodies[1], &service).await);
    assert_eq!(get("/healthz", &service).await, 200);
    assert_eq!(service.chat(ask("x")).await.0, 200);
    assert_eq!(closed(&lines).await, 0, "they were answered beside the others, not after them");
    // then they are told, and closed
    for line in &mut lines {
        let told = last_response(line).await;
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
        assert!(told.contains("did not arrive in time"), "{told}");
    }
}

/// One byte now and then is no progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_trickles_is_refused() {
    let service = Service::start(&catalog(&DRY)).await;
    let line = connect_from(1, &service).await;
    let (mut from, mut to) = line.into_split();
    to.write_all(&body_of_100("/v1/chat/completions")).await.unwrap();
    let trickle = async {
        let mut ticks = interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            if to.write_all(b" ").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut told = [0; 64];
    tokio::select! {
        () = trickle => {}
        read = timeout(SOON, from.read(&mut told)) => { read.unwrap().unwrap(); }
    }
    assert!(told.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&told));
}

/// A client that asks for long streams and reads none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_closed() {
    let service = Service::start(&catalog(&DRY)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut line = socket.connect((Ipv4Addr::LOCALHOST, service.http).into()).await.unwrap();
    let mut body = ask("/tokens=8000 x");
    body["stream"] = json!(true);
    let body = body.to_string();
    let head = format!("content-type: application/json\r\ncontent-length: {}", body.len());
    let request = [HEAD, head.as_bytes(), b"\r\n\r\n", body.as_bytes()].concat();
    // one after the other, more than the buffers of both sides hold
    for _ in 0..8 {
        line.write_all(&request).await.unwrap();
    }
    service.until("running", |state| state["running"] == 1).await;
    // each of them has an hour
    let idle = async {
        let mut ticks = interval(Duration::from_millis(100));
        let mut idle = 0;
        while idle < 10 {
            ticks.tick().await;
            let state = service.state().await.unwrap();
            idle = if state["running"] == 0 { idle + 1 } else { 0 };
        }
    };
    timeout(SOON, idle).await.expect("the engine is free again");
    let got = last_response(&mut line).await;
    assert!(got.matches("[DONE]").count() < 8, "{} bytes", got.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_while_all_requests_are_answered() {
    let service = Service::start(&catalog(&DRY)).await;
    let body = ask("/tokens=8000 /delay-us=400000 x").to_string();
    let head = format!("content-type: application/json\r\ncontent-length: {}", body.len());
    let request = [HEAD, head.as_bytes(), b"\r\n\r\n", body.as_bytes()].concat();
    let lines = connections(HTTP_REQUESTS_MAX, 1, &request, &service).await;
    let jobs =
        |state: &Value| state["running"].as_u64().unwrap() + state["waiting"].as_u64().unwrap();
    service.until("busy", |state| jobs(state) == HTTP_REQUESTS_MAX as u64).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(path, &service).await, 200, "{path}");
    }
    let url = service.url("/v1/chat/completions");
    let refused = client().post(url).json(&ask("x")).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    // half-sent heads do not take the reserve either
    let _heads = connections(2 * HTTP_RESERVE, 1, HEAD, &service).await;
    assert_eq!(get("/healthz", &service).await, 200);
    assert_eq!(closed(&lines).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ambiguous_head_is_refused() {
    let service = Service::start(&catalog(&DRY)).await;
    let close = "connection: close\r\n";
    for head in [
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n",
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: evil.example\r\nhost: localhost\r\n",
        "GET /healthz HTTP/1.1\r\n",
        "GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\n",
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nauthorization: a\r\nauthorization: b\r\n",
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\ncontent-length: 3\r\n",
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-type: text/plain\r\ncontent-length: 2\r\n",
    ] {
        let told = told(format!("{head}{close}\r\n{{}}").as_bytes(), &service).await;
        assert!(told.starts_with("HTTP/1.1 400 "), "{head}: {told}");
    }
    let fine = format!("GET http://localhost/healthz HTTP/1.1\r\nhost: localhost\r\n{close}\r\n");
    let told = told(fine.as_bytes(), &service).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
}

/// A head that is far longer than any client sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_has_a_bound() {
    let service = Service::start(&catalog(&DRY)).await;
    let long = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}", "x".repeat(200_000));
    let told = told(long.as_bytes(), &service).await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
}
