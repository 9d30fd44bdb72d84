//! The HTTP door: `OpenAI`'s chat API, MCP, health and metrics, on loopback unless told otherwise.

mod chat;
mod completion;
mod embeddings;
mod errors;
mod guard;
mod openai;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rmcp::ServerHandler;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::guard::{AccessGuard, protect};
use crate::catalog::catalog::Catalog;
use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::limits::{
    DRAIN_MAX, HTTP_CONNECTIONS_MAX, HTTP_HEAD_MAX, HTTP_LINGER_BYTES_MAX, HTTP_LINGER_MAX,
    REQUEST_BYTES_MAX,
};
use crate::mcp::server::{McpServer, ModelHost};
use crate::metrics::Metrics;
use crate::model::health::Health;
use crate::mqtt::ConnectionState;

/// What the handlers need.
pub struct HttpInterface {
    /// Where jobs go.
    pub dispatch: Dispatch,
    /// The MCP server at `/mcp`.
    pub mcp: Arc<dyn ModelHost>,
    /// Tasks and defaults.
    pub catalog: Arc<Catalog>,
    /// Counts.
    pub metrics: Metrics,
    /// The line to the broker, if there is one.
    pub line: Option<watch::Receiver<ConnectionState>>,
    /// How the device is.
    pub reading: watch::Receiver<SensorReading>,
}

/// Listens at `addr`.
///
/// # Errors
/// If the address can't be had.
pub async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!(
            "the HTTP interface cannot listen on {addr}; if the port is in use, set PILOTLIGHT_HTTP"
        )
    })
}

/// The routes of the service.
pub fn routes(door: HttpInterface, guard: AccessGuard, stop: CancellationToken) -> Router {
    let door = Arc::new(door);
    let mcp = Arc::clone(&door.mcp);
    let routes = Router::new()
        .route("/v1/chat/completions", post(openai::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(openai::models))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::clone(&door));
    let open = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(door);
    let routes = with_mcp(routes, McpServer::new(mcp), &guard, stop);
    protect(routes, open, guard)
}

/// Adds an MCP server at `/mcp`: the service's own, or a fixture for the conformance suite.
pub fn with_mcp<H>(
    routes: Router,
    handler: H,
    guard: &AccessGuard,
    stop: CancellationToken,
) -> Router
where
    H: ServerHandler + Clone + Send + Sync + 'static,
{
    // hosts and origins are checked for all routes alike, in `guard`
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(guard.mcp_sessions)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_cancellation_token(stop)
        .disable_allowed_hosts();
    let handler = move || Ok(handler.clone());
    let mcp = StreamableHttpService::new(handler, Arc::new(LocalSessionManager::default()), config);
    routes.route_service("/mcp", mcp)
}

/// Serves until `stop`, then until open requests have ended.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    // ends with the service
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let routes = routes.clone();
                let stop = stop.clone();
                connections.spawn(async move {
                    connection(stream, routes, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
        tracing::warn!("stopped before all HTTP requests had ended");
    }
}

async fn connection(mut stream: TcpStream, routes: Router, stop: CancellationToken) {
    // small pieces must not wait for each other
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(routes);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_HEAD_MAX)
        .serve_connection(TokioIo::new(&mut stream), service);
    let mut connection = Box::pin(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
    drop(connection);
    tokio::select! {
        _ = tokio::time::timeout(HTTP_LINGER_MAX, linger(stream)) => {}
        () = stop.cancelled() => {}
    }
}

/// Reads on, within a bound, after our side has said its last word: a socket that is closed with
/// unread data in it is reset, and the answer to a body that was refused would be lost.
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut passed_over = vec![0; 16 * 1024];
    let mut left = HTTP_LINGER_BYTES_MAX;
    while left > 0 {
        match stream.read(&mut passed_over).await {
            Ok(0) | Err(_) => return,
            Ok(read) => left = left.saturating_sub(read),
        }
    }
}

async fn ready(State(door): State<Arc<HttpInterface>>) -> Response {
    let servers: Vec<_> = door
        .dispatch
        .backends()
        .into_iter()
        .map(|seen| {
            json!({
                "server": seen.server,
                "where": seen.locality.name(),
                "health": seen.health,
                "model": seen.context,
            })
        })
        .collect();
    let (waiting, running) = door.dispatch.load();
    let mqtt = door.line.as_ref().map(|line| match &*line.borrow() {
        ConnectionState::Up => json!({"state": "up"}),
        ConnectionState::Down(reason) => json!({"state": "down", "reason": reason}),
    });
    let ready = door.dispatch.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "ready": ready,
        "version": env!("CARGO_PKG_VERSION"),
        "servers": servers,
        "waiting": waiting,
        "running": running,
        "spent_usd": door.dispatch.spending(),
        "mqtt": mqtt,
        "device": door.reading.borrow().told(),
    });
    (status, Json(body)).into_response()
}

async fn metrics(State(door): State<Arc<HttpInterface>>) -> Result<impl IntoResponse, Infallible> {
    let servers = door.dispatch.backends().into_iter();
    let servers: Vec<_> = servers.map(|seen| (seen.server, seen.health == Health::Ready)).collect();
    let mqtt = door.line.as_ref().is_some_and(|line| *line.borrow() == ConnectionState::Up);
    let device_pressure = door.reading.borrow().device_pressure;
    let spent = door.dispatch.spending().by_span();
    let text = door.metrics.text(door.dispatch.load(), &servers, mqtt, &device_pressure, &spent);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(http::header::CONTENT_TYPE, kind)], text))
}
