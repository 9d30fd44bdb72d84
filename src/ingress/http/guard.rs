//! Access checks of the HTTP interface: Host, Origin and bearer token.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::catalog::secret::Secret;
use crate::net::client::is_loopback;
use crate::request::refusal::{Code, Refusal};

/// The permitted requests.
#[derive(Debug, Clone, Default)]
pub struct AccessGuard {
    /// The bearer token that a request must have, if any.
    pub token: Option<Secret<String>>,
    /// Permitted Host names besides loopback.
    pub hosts: Vec<String>,
    /// Permitted Origins besides loopback; browsers send one, programs send none.
    pub origins: Vec<String>,
    /// MCP clients of older revisions get a session each, which takes memory.
    pub mcp_sessions: bool,
}

/// Puts the checks before all routes; those of `open` need no token.
pub fn protect(routes: Router, open: Router, guard: AccessGuard) -> Router {
    let guard = Arc::new(guard);
    routes
        .layer(from_fn_with_state(Arc::clone(&guard), check_token))
        .merge(open)
        .layer(from_fn_with_state(guard, check_host_and_origin))
}

async fn check_host_and_origin(
    State(guard): State<Arc<AccessGuard>>,
    request: Request,
    next: Next,
) -> Response {
    // against DNS rebinding: a page of another name must not reach the service
    if !host_of(request.headers()).is_some_and(|host| guard.knows_host(host)) {
        let message = "host not allowed; add it to pilotlight.http.allowed_hosts";
        return refuse(StatusCode::FORBIDDEN, message);
    }
    if let Some(origin) = request.headers().get(header::ORIGIN)
        && !origin.to_str().is_ok_and(|origin| guard.knows_origin(origin))
    {
        let message = "origin not allowed; add it to pilotlight.http.allowed_origins";
        return refuse(StatusCode::FORBIDDEN, message);
    }
    next.run(request).await
}

async fn check_token(
    State(guard): State<Arc<AccessGuard>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &guard.token else {
        return next.run(request).await;
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
    let given = given.and_then(|h| h.strip_prefix("Bearer "));
    if given.is_some_and(|given| same(given.trim().as_bytes(), token.0.as_bytes())) {
        return next.run(request).await;
    }
    let mut response = refuse(StatusCode::UNAUTHORIZED, "a bearer token is required");
    let challenge = http::HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let refusal = Refusal::new(Code::Forbidden, message);
    (status, axum::Json(super::errors::error_body(&refusal))).into_response()
}

/// Compares in constant time for texts of the same length, so that the time does not tell how many
/// bytes of a token are right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// The host name of a request, without its port.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map(|(address, _)| address);
    }
    Some(host.split_once(':').map_or(host, |(name, _)| name))
}

impl AccessGuard {
    /// Loopback origins are permitted, as MCP requires; others must be configured.
    fn knows_origin(&self, origin: &str) -> bool {
        let local = origin.parse::<Uri>().is_ok_and(|origin| {
            origin.scheme().is_some() && origin.host().is_some_and(is_loopback)
        });
        local || self.origins.iter().any(|known| known == origin)
    }

    fn knows_host(&self, host: &str) -> bool {
        is_loopback(host) || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let guard = AccessGuard { hosts: vec!["pi.lan".to_owned()], ..AccessGuard::default() };
        let check = |host: &str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            let known = host_of(&headers).is_some_and(|host| guard.knows_host(host));
            assert_eq!(known, expected, "{host}");
        };
        check("localhost", true);
        check("localhost:8080", true);
        check("127.0.0.1:8080", true);
        check("[::1]:8080", true);
        check("PI.lan:8080", true);
        check("evil.example", false);
        check("localhost.evil.example", false);
        check("192.168.1.4", false);
        assert_eq!(host_of(&HeaderMap::new()), None);
    }

    #[test]
    fn origins() {
        let guard = AccessGuard {
            origins: vec!["https://app.example".to_owned()],
            ..AccessGuard::default()
        };
        let check = |origin: &str, expected: bool| {
            assert_eq!(guard.knows_origin(origin), expected, "{origin}");
        };
        check("http://localhost:3000", true);
        check("http://127.0.0.1", true);
        check("http://[::1]:8080", true);
        check("https://app.example", true);
        check("http://app.example", false);
        check("https://app.example.evil", false);
        check("http://localhost.evil.example", false);
        check("null", false);
        check("localhost", false);
        check("", false);
    }

    #[test]
    fn tokens() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
        assert!(!same(b"", b"a"));
    }
}
