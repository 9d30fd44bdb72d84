//! Requests for paths and methods that the interface does not have, and the accepted types of MCP.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::errors::refused;
use crate::request::refusal::{Code, Refusal};

/// The types of a response of MCP, of which its specification wants both accepted.
const MCP_TYPES: &str = "application/json, text/event-stream";
/// A type that accepts each other one.
const ANY_TYPE: &str = "*/*";

/// The response to a request for an unknown path.
pub(super) async fn unknown(method: Method, uri: Uri) -> Response {
    let message = format!(
        "there is no {method} {}; there are /v1/chat/completions, /v1/embeddings, /v1/models, /mcp, /readyz, /healthz and \
         /metrics",
        uri.path()
    );
    refused(StatusCode::NOT_FOUND, &Refusal::new(Code::Unknown, message))
}

/// The response to a request with another method than the path has.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} has no method {method}", uri.path());
    refused(StatusCode::METHOD_NOT_ALLOWED, &Refusal::new(Code::Invalid, message))
}

/// Names the types of MCP where a client accepts any.
pub(super) async fn accept_all(mut request: Request, next: Next) -> Response {
    if accepts_any(request.headers()) {
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(MCP_TYPES));
    }
    next.run(request).await
}

/// Whether a client accepts each type; without the header it does (RFC 9110, 12.5.1).
fn accepts_any(headers: &HeaderMap) -> bool {
    let stated = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let is_any = |one: &str| one.split(';').next().unwrap_or("").trim() == ANY_TYPE;
    !headers.contains_key(header::ACCEPT) || stated.flat_map(|value| value.split(',')).any(is_any)
}
