//! The HTTP interface: `OpenAI`'s chat API, MCP, status and metrics; on loopback by default.

mod admission;
mod body;
mod chat;
mod completion;
mod config;
mod connection;
mod embeddings;
mod errors;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod messages;
mod neutral;
mod openai;
mod paths;
mod probe;
mod progress;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any_service, get, post};
use axum::{Json, Router};
use rmcp::ServerHandler;
use rmcp::transport::StreamableHttpServerConfig;
use rmcp::transport::StreamableHttpService;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::connection::serve;
pub use self::guard::{AccessGuard, PresentGuard, is_origin, protect};
use super::reloads::Reloads;
use super::status::gather;
use super::updates::Updates;
use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::limits::{HTTP_SEND_BUFFER_BYTES, REQUEST_BYTES_MAX};
use crate::mcp::server::{McpServer, ModelHost};
use crate::metrics::Metrics;
use crate::mqtt::Bus;
use crate::status::ServiceStatus;

/// Connections that may wait to be accepted: the standard library's own choice is 128.
const LISTEN_BACKLOG: u32 = 1024;

/// The state that all handlers share.
pub struct HttpInterface {
    /// Takes the jobs.
    pub dispatch: Dispatch,
    /// The MCP server at `/mcp`.
    pub mcp: Arc<dyn ModelHost>,
    /// Counts the replies.
    pub metrics: Metrics,
    /// The connection to the MQTT broker, if one is configured.
    pub broker: Option<Bus>,
    /// Readings of the sensors.
    pub reading: watch::Receiver<SensorReading>,
    /// Reads the configuration again.
    pub reloads: Reloads,
    /// Takes requests about signed updates.
    pub updates: Updates,
}

/// Listens at `addr`.
///
/// # Errors
/// If the address can't be bound.
pub async fn listen(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = async || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // accepted connections inherit it
        socket.set_send_buffer_size(HTTP_SEND_BUFFER_BYTES)?;
        socket.bind(addr)?;
        socket.listen(LISTEN_BACKLOG)
    };
    bind().await.with_context(|| {
        format!(
            "the HTTP interface cannot listen on {addr}; if the port is in use, set PILOTLIGHT_HTTP"
        )
    })
}

/// The routes of the service.
pub fn routes(interface: HttpInterface, guard: PresentGuard, stop: CancellationToken) -> Router {
    let mcp = Arc::clone(&interface.mcp);
    let interface = Arc::new(interface);
    let routes = Router::new()
        .route("/v1/chat/completions", post(openai::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(openai::models))
        // a name may have slashes, as those of model hubs
        .route("/v1/models/{*id}", get(openai::model))
        .with_state(Arc::clone(&interface));
    let open = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state((Arc::clone(&interface), guard.clone()));
    let operator = Router::new()
        .route("/probe", post(probe::probe_models))
        .route("/reload", post(config::reload))
        .route("/config/apply", post(config::apply))
        .route("/config/check", post(config::check))
        .route("/config/rollback", post(config::roll_back))
        .route_layer(from_fn_with_state(guard.clone(), guard::details_only))
        .with_state(interface);
    let open = open.merge(operator);
    let routes = with_mcp(routes, McpServer::new(mcp), false, stop);
    let routes = routes.method_not_allowed_fallback(paths::wrong_method);
    let open = open.method_not_allowed_fallback(paths::wrong_method).fallback(paths::unknown);
    protect(routes, open, guard)
}

/// Adds an MCP server at `/mcp`: the service's own, or a fixture for the conformance suite. With sessions,
/// MCP clients of older revisions get one each, which takes memory.
pub fn with_mcp<H>(
    routes: Router,
    handler: H,
    with_sessions: bool,
    stop: CancellationToken,
) -> Router
where
    H: ServerHandler + Clone + Send + Sync + 'static,
{
    // Host and Origin are checked for all routes alike, in `guard`
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(with_sessions)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_cancellation_token(stop)
        .disable_allowed_hosts();
    let handler = move || Ok(handler.clone());
    let mcp = StreamableHttpService::new(handler, Arc::new(LocalSessionManager::default()), config);
    let mcp = any_service(mcp).layer(from_fn(body::read_first)).layer(from_fn(paths::accept_all));
    routes.route("/mcp", mcp.clone()).route("/mcp/", mcp)
}

/// The state of the handlers of which everybody may read something.
type Open = (Arc<HttpInterface>, PresentGuard);

/// `GET /readyz`: whether a backend is ready, 503 while none is; the status for those who may read it.
async fn ready(State((interface, guard)): State<Open>, headers: HeaderMap) -> Response {
    let status = interface.status();
    let code = if status.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match guard.borrow().check_details(&headers) {
        Ok(()) => json!(status),
        Err(_) => json!({"ready": status.ready}),
    };
    (code, Json(body)).into_response()
}

/// `GET /metrics`
async fn metrics(State((interface, guard)): State<Open>, headers: HeaderMap) -> Response {
    if let Err(refused) = guard.borrow().check_details(&headers) {
        return refused;
    }
    let text = interface.metrics.text(&interface.status());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(http::header::CONTENT_TYPE, kind)], text).into_response()
}

impl HttpInterface {
    fn status(&self) -> ServiceStatus {
        let config = self.reloads.status();
        gather(&self.dispatch, self.broker.as_ref(), &self.reading.borrow(), config)
    }
}
