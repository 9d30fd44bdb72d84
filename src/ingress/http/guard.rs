//! Access checks of the HTTP interface: Host, Origin, bearer token, and who may read the status.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::errors::refused;
use crate::catalog::secret::Secret;
use crate::net::client::is_loopback;
use crate::request::client::Client;
use crate::request::refusal::{Code, Refusal};

/// Headers whose repetition makes a request ambiguous: two programs on its way may take different ones.
const SINGLE: [HeaderName; 8] = [
    header::HOST,
    header::ORIGIN,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    FETCH_SITE,
    MCP_SESSION,
    HeaderName::from_static("mcp-protocol-version"),
];
/// The relation of a page to this service, as its browser states it (Fetch Metadata Request Headers).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MCP_SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// Headers that a proxy adds: the client is not this machine, although the connection is its own.
const FORWARDED: [HeaderName; 3] =
    [header::FORWARDED, HeaderName::from_static("x-forwarded-for"), header::VIA];

/// The application of requests without a token of their own.
const HTTP: &str = "http";

/// The guard in force, which changes with the configuration.
pub type PresentGuard = watch::Receiver<Arc<AccessGuard>>;

/// The permitted requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessGuard {
    /// The bearer token of the operator, if any: its requests may also read the status.
    pub token: Option<Secret<String>>,
    /// The bearer tokens of applications. If there is any token, a request must have one of them.
    pub apps: Vec<(String, Secret<String>)>,
    /// Permitted Host names besides loopback.
    pub hosts: Vec<String>,
    /// Permitted Origins, exactly as browsers send them; programs send none.
    pub origins: Vec<String>,
}

/// Puts the checks before all routes; those of `open` need no token.
pub fn protect(routes: Router, open: Router, guard: PresentGuard) -> Router {
    let routes = routes.layer(from_fn_with_state(guard.clone(), check_token)).merge(open);
    // a browser asks without the token first
    let routes = routes.layer(cors(guard.clone()));
    routes.layer(from_fn_with_state(guard, check_head))
}

/// Lets pages of the listed origins send JSON and read the answers (CORS).
fn cors(guard: PresentGuard) -> CorsLayer {
    let is_listed = move |origin: &HeaderValue, _: &Parts| {
        guard.borrow().origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes())
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_listed))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, MCP_SESSION])
}

async fn check_head(State(guard): State<PresentGuard>, request: Request, next: Next) -> Response {
    let checked = guard.borrow().check_head(request.uri(), request.headers());
    match checked {
        Ok(()) => next.run(request).await,
        Err(response) => response,
    }
}

/// Lets those pass who may read the status.
pub(super) async fn details_only(
    State(guard): State<PresentGuard>,
    request: Request,
    next: Next,
) -> Response {
    let checked = guard.borrow().check_details(request.headers());
    match checked {
        Ok(()) => next.run(request).await,
        Err(response) => response,
    }
}

/// Lets the holder of a token pass, and notes which client that is.
async fn check_token(
    State(guard): State<PresentGuard>,
    mut request: Request,
    next: Next,
) -> Response {
    let client = guard.borrow().client_of(request.headers());
    match client {
        Ok(client) => {
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(response) => response,
    }
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Response {
    let code = if status == StatusCode::BAD_REQUEST { Code::Malformed } else { Code::Forbidden };
    refused(status, &Refusal::new(code, message))
}

/// Compares in constant time for texts of the same length, so that the time does not tell how many
/// bytes of a token are right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// The host name of an authority, without its port.
fn name_of(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

impl AccessGuard {
    /// This guard for good.
    pub fn fixed(self) -> PresentGuard {
        watch::channel(Arc::new(self)).1
    }

    #[expect(clippy::result_large_err, reason = "the response is sent at once")]
    fn check_head(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Response> {
        let ambiguous = |message: String| Err(refuse(StatusCode::BAD_REQUEST, message));
        let is_repeated = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
        if let Some(name) = SINGLE.iter().find(is_repeated) {
            return ambiguous(format!("the header {name} is there more than once; send it once"));
        }
        // RFC 9112, 3.2: a request without one is malformed
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
            return ambiguous("the header host is missing or no text".to_owned());
        };
        if uri.authority().is_some_and(|target| !target.as_str().eq_ignore_ascii_case(host)) {
            return ambiguous("the request's target and its header host differ".to_owned());
        }
        // against DNS rebinding: a page of another name must not reach the service
        if !self.knows_host(name_of(host)) {
            let message = "host not allowed; add it to pilotlight.http.allowed_hosts";
            return Err(refuse(StatusCode::FORBIDDEN, message));
        }
        if !self.knows_page(host, headers) {
            let message = "origin not allowed; add it to pilotlight.http.allowed_origins";
            return Err(refuse(StatusCode::FORBIDDEN, message));
        }
        Ok(())
    }

    /// The client that holds the token of a request; the interface itself, if no token is required or the
    /// token is the operator's.
    #[expect(clippy::result_large_err, reason = "the response is sent at once")]
    fn client_of(&self, headers: &HeaderMap) -> Result<Client, Response> {
        if self.token.is_none() && self.apps.is_empty() {
            return Ok(Client::known(HTTP));
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let given = given.and_then(bearer_token).unwrap_or_default();
        let is_given = |token: &Secret<String>| same(given.as_bytes(), token.0.as_bytes());
        if self.token.as_ref().is_some_and(is_given) {
            return Ok(Client::known(HTTP));
        }
        if let Some((app, _)) = self.apps.iter().find(|(_, token)| is_given(token)) {
            return Ok(Client::known(app));
        }
        let mut response = refuse(StatusCode::UNAUTHORIZED, "a bearer token is required");
        let challenge = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        Err(response)
    }

    /// Whether this client may read the status: with the token, or if there is none, a program of this
    /// machine, which may use the models too.
    ///
    /// # Errors
    /// The response for a client that may not.
    #[expect(clippy::result_large_err, reason = "the response is sent at once")]
    pub(super) fn check_details(&self, headers: &HeaderMap) -> Result<(), Response> {
        if self.token.is_some() {
            return match self.client_of(headers) {
                Ok(client) if client.is_interface() => Ok(()),
                Ok(_) => {
                    Err(refuse(StatusCode::FORBIDDEN, "the status is for the operator's token"))
                }
                Err(response) => Err(response),
            };
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_local = host.is_some_and(|host| is_loopback(name_of(host)))
            && !FORWARDED.iter().any(|name| headers.contains_key(name));
        let refused = || {
            let message = "without a token the status is for programs of this machine; set \
                           PILOTLIGHT_HTTP_TOKEN";
            refuse(StatusCode::FORBIDDEN, message)
        };
        is_local.then_some(()).ok_or_else(refused)
    }

    /// Whether the request comes from a program, from a page of this service itself, or from a page of a
    /// listed origin. Pages of other ports of this machine are other origins.
    fn knows_page(&self, host: &str, headers: &HeaderMap) -> bool {
        if let Some(origin) = headers.get(header::ORIGIN) {
            return origin.to_str().is_ok_and(|origin| {
                let own = origin.split_once("://").filter(|(_, own)| *own == host);
                own.is_some_and(|(scheme, _)| matches!(scheme, "http" | "https"))
                    || self.origins.iter().any(|known| known == origin)
            });
        }
        // requests for images and scripts have no origin
        let site = headers.get(FETCH_SITE).map(HeaderValue::as_bytes);
        site.is_none_or(|site| matches!(site, b"same-origin" | b"none"))
    }

    fn knows_host(&self, host: &str) -> bool {
        is_loopback(host) || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
    }
}

/// Whether a browser can send this text as an Origin: scheme, host and port, without a default port,
/// in lower case and ASCII.
pub fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => 0,
    };
    // also without path, query and user name
    let has_form = text == format!("{scheme}://{authority}") && !authority.as_str().contains('@');
    let is_host = !matches!(authority.host(), "" | "*") && authority.port_u16() != Some(default);
    has_form && is_host && text.is_ascii() && !text.contains(|c: char| c.is_ascii_uppercase())
}

/// The token of an authorization; the scheme has any case (RFC 9110, 11.1).
fn bearer_token(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(guard: &AccessGuard, target: &str, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let checked = guard.check_head(&target.parse().unwrap(), &map);
        checked.map_or_else(|response| response.status().as_u16(), |()| 200)
    }

    #[test]
    fn hosts() {
        let guard = AccessGuard { hosts: vec!["pi.lan".to_owned()], ..AccessGuard::default() };
        let check = |host: &str, expected: u16| {
            assert_eq!(status(&guard, "/", &[("host", host)]), expected, "{host}");
        };
        check("localhost", 200);
        check("localhost:8080", 200);
        check("127.0.0.1:8080", 200);
        check("[::1]:8080", 200);
        check("PI.lan:8080", 200);
        check("evil.example", 403);
        check("localhost.evil.example", 403);
        check("192.168.1.4", 403);
        check("[::1", 403);
        assert_eq!(status(&guard, "/", &[]), 400);
        assert_eq!(status(&guard, "http://localhost/", &[("host", "localhost")]), 200);
        assert_eq!(status(&guard, "http://evil.example/", &[("host", "localhost")]), 400);
    }

    #[test]
    fn repeated_headers() {
        let guard = AccessGuard::default();
        for name in SINGLE.iter().map(HeaderName::as_str) {
            let twice: &'static str = Box::leak(name.to_owned().into_boxed_str());
            let headers = [("host", "localhost"), (twice, "localhost"), (twice, "localhost")];
            assert_eq!(status(&guard, "/", &headers), 400, "{name}");
        }
        let twice = [("host", "localhost"), ("accept", "a/b"), ("accept", "c/d")];
        assert_eq!(status(&guard, "/", &twice), 200);
    }

    #[test]
    fn pages() {
        let guard = AccessGuard {
            origins: vec!["https://app.example".to_owned(), "http://localhost:3000".to_owned()],
            ..AccessGuard::default()
        };
        let check = |header: &'static str, value: &str, expected: u16| {
            let headers = [("host", "localhost:8080"), (header, value)];
            assert_eq!(status(&guard, "/", &headers), expected, "{header}: {value}");
        };
        check("origin", "http://localhost:3000", 200);
        check("origin", "https://app.example", 200);
        check("origin", "http://localhost:8080", 200);
        check("origin", "http://localhost:3001", 403);
        check("origin", "http://localhost", 403);
        check("origin", "http://127.0.0.1:8080", 403);
        check("origin", "http://app.example", 403);
        check("origin", "https://app.example.evil", 403);
        check("origin", "file://localhost:8080", 403);
        check("origin", "null", 403);
        check("origin", "", 403);
        check("sec-fetch-site", "cross-site", 403);
        check("sec-fetch-site", "same-site", 403);
        check("sec-fetch-site", "same-origin", 200);
        check("sec-fetch-site", "none", 200);
        let listed = [
            ("host", "localhost:8080"),
            ("origin", "https://app.example"),
            ("sec-fetch-site", "cross-site"),
        ];
        assert_eq!(status(&guard, "/", &listed), 200);
    }

    #[test]
    fn origins_are_written_as_browsers_send_them() {
        for origin in ["https://app.example", "http://localhost:3000", "http://[::1]:3000"] {
            assert!(is_origin(origin), "{origin}");
        }
        for other in [
            "*",
            "null",
            "app.example",
            "https://app.example/",
            "https://app.example:443",
            "http://app.example:80",
            "https://App.example",
            "https://*",
            "https://user@app.example",
            "https://app.example/path",
            "",
        ] {
            assert!(!is_origin(other), "{other}");
        }
    }

    #[test]
    fn details_are_for_this_machine_or_the_token() {
        let open = AccessGuard::default();
        let closed = AccessGuard { token: Some(Secret("t".to_owned())), ..AccessGuard::default() };
        let check = |guard: &AccessGuard, headers: &[(&'static str, &str)], expected: bool| {
            let headers = headers.iter().map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            });
            assert_eq!(guard.check_details(&headers.collect()).is_ok(), expected);
        };
        let host = ("host", "127.0.0.1:8080");
        check(&open, &[host], true);
        check(&open, &[("host", "pi.lan")], false);
        check(&open, &[host, ("x-forwarded-for", "192.0.2.1")], false);
        check(&open, &[host, ("forwarded", "for=192.0.2.1")], false);
        check(&closed, &[host], false);
        check(&closed, &[host, ("authorization", "Bearer other")], false);
        check(&closed, &[host, ("authorization", "Bearer t")], true);
    }

    #[test]
    fn tokens() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
        assert!(!same(b"", b"a"));
    }
}
