//! What the tests share: real children, real sockets, a real service in a folder of its own.
#![allow(dead_code, reason = "each test uses a part")]

pub mod cloud;
pub mod contract;
pub mod engine;
pub mod failures;
pub mod figures;
pub mod labelled;
pub mod model_fixture;
pub mod model_server;
pub mod mqtt;
pub mod network;
pub mod pace;
pub mod reports;
pub mod scripted_broker;
pub mod service;
pub mod signing;
pub mod stranger;
pub mod untrusted;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use pilotlight::backends::scripted::{Crash, Scripted};
use pilotlight::catalog::addresses::AddressRule;
use pilotlight::ingress::http;
use pilotlight::limits::ENGINE_SILENCE_MAX;
use pilotlight::mcp::client::{Closed, Patience, Remote, connect, connect_http};
use pilotlight::mcp::pair::{PairEnd, pair};
use pilotlight::mcp::server::{McpServer, SingleModel, serve};
use pilotlight::model::generate::Generate;
use rmcp::RoleClient;
use rmcp::transport::async_rw::AsyncRwTransport;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pilotlight");

/// Generous: it only bounds how long a broken test hangs, on a machine that has much else to do.
pub const SOON: Duration = Duration::from_secs(180);

/// How often each failure is tried; `STORM=1000` for the long run.
pub fn storm() -> usize {
    std::env::var("STORM").map_or(10, |each| each.parse().unwrap())
}

pub fn scripted() -> Arc<dyn Generate> {
    Arc::new(Scripted::new("scripted", 8, Crash::Report))
}

pub fn patience() -> Patience {
    Patience { silence: ENGINE_SILENCE_MAX }
}

/// A model behind a line of MCP inside this process.
pub async fn over_channels(model: Arc<dyn Generate>) -> (Remote, Closed) {
    connect(line_to(model, Duration::ZERO), patience()).await.unwrap()
}

/// The client's end of a line to a model, which is served after this time.
pub fn line_to(model: Arc<dyn Generate>, after: Duration) -> PairEnd<RoleClient> {
    let (ours, theirs) = pair();
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        let served = serve(Arc::new(SingleModel(model)), theirs).await.unwrap();
        served.waiting().await
    });
    ours
}

/// A model in a child process, over its standard input and output.
pub async fn child(args: &[&str]) -> (Remote, Closed, Child) {
    let mut child = Command::new(PROGRAM)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .env("GGML_NO_BACKTRACE", "1")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let line = AsyncRwTransport::new_client(output, input);
    let (remote, closed) = connect(line, patience()).await.unwrap();
    (remote, closed, child)
}

/// A model behind the service's HTTP stack; stops when the token is cancelled.
pub async fn over_http(model: Arc<dyn Generate>) -> (Remote, Closed, CancellationToken) {
    let (url, stop) = over_http_at(model).await;
    let reached = connect_http(&url, &BTreeMap::new(), &AddressRule::Any, patience()).await;
    let (remote, closed) = reached.unwrap();
    (remote, closed, stop)
}

/// The same before a client has come; gives the URL.
pub async fn over_http_at(model: Arc<dyn Generate>) -> (String, CancellationToken) {
    pilotlight::net::tls::install_provider();
    let stop = CancellationToken::new();
    let handler = McpServer::new(Arc::new(SingleModel(model)));
    let routes = http::with_mcp(Router::new(), handler, false, stop.clone());
    let listener = http::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(http::serve(listener, routes, stop.clone()));
    (format!("http://{addr}/mcp"), stop)
}

/// The prepared model, if `scripts/test` has fetched it.
pub fn model_file() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-q8_0.gguf");
    assert!(path.is_file(), "{} is missing: run scripts/test, which fetches it", path.display());
    path
}

/// The folder of ONNX Runtime, if `scripts/test` has fetched it.
pub fn runtime() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/onnxruntime");
    assert!(path.is_dir(), "{} is missing: run scripts/test, which fetches it", path.display());
    path
}
