//! Reading of a request's body: JSON only, within bounds of size and time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use super::admission::Connection;
use super::errors::{refused, status_of};
use super::progress::ProgressBudget;
use crate::clock;
use crate::limits::fleet::SIGNED_BYTES_MAX;
use crate::limits::{HTTP_BODY_MAX, HTTP_RATE_MIN, HTTP_STALL_MAX, REQUEST_BYTES_MAX};
use crate::request::client::Client;
use crate::request::refusal::{Code, Refusal};

const JSON_TYPE: &str = "application/json";
/// The type of a body that is a signed update.
const SIGNED_TYPE: &str = "application/octet-stream";

/// The body of a request, once all of it has arrived, or why it was refused.
pub(super) struct JsonBody(pub(super) Result<Bytes, RefusedBody>);

/// The body of a request with an `update.signed`.
pub(super) struct SignedBody(pub(super) Result<Bytes, RefusedBody>);

/// A body that is not read, with the status of the response.
pub(super) struct RefusedBody {
    pub(super) refusal: Refusal,
    status: StatusCode,
}

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, _state: &S) -> Result<JsonBody, Self::Rejection> {
        let (parts, body) = request.into_parts();
        Ok(JsonBody(read(&parts, body).await))
    }
}

impl<S: Sync> FromRequest<S> for SignedBody {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, _state: &S) -> Result<SignedBody, Self::Rejection> {
        let (parts, body) = request.into_parts();
        if !parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| is(kind, SIGNED_TYPE)) {
            return Ok(SignedBody(Err(wrong_type("an update.signed", SIGNED_TYPE))));
        }
        let connection = parts.extensions.get::<Arc<Connection>>().map(Arc::as_ref);
        let most = SIGNED_BYTES_MAX;
        let bytes = match receive(body, connection, most).await {
            Ok(bytes) => bytes,
            Err(refused) => return Ok(SignedBody(Err(refused))),
        };
        let admitted = connection.map_or(Ok(()), |connection| connection.has_request(None));
        Ok(SignedBody(admitted.map(|()| bytes).map_err(RefusedBody::from)))
    }
}

impl IntoResponse for RefusedBody {
    fn into_response(self) -> Response {
        let mut response = refused(self.status, &self.refusal);
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // RFC 9110, 15.5.9
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Refusal> for RefusedBody {
    /// A body that was read, of a request that is refused.
    fn from(refusal: Refusal) -> RefusedBody {
        RefusedBody { status: status_of(refusal.code), refusal }
    }
}

/// Reads the body of a POST request before the inner service gets it.
pub(super) async fn read_first(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match read(&parts, body).await {
        Ok(body) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(body) => body.into_response(),
    }
}

async fn read(parts: &Parts, body: Body) -> Result<Bytes, RefusedBody> {
    if !parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| is(kind, JSON_TYPE)) {
        return Err(wrong_type("JSON", JSON_TYPE));
    }
    let connection = parts.extensions.get::<Arc<Connection>>().map(Arc::as_ref);
    let bytes = receive(body, connection, REQUEST_BYTES_MAX).await?;
    if let Some(connection) = connection {
        let client = parts.extensions.get::<Client>().filter(|client| !client.is_interface());
        connection.has_request(client.map(|client| client.app.as_str()))?;
    }
    Ok(bytes)
}

/// Whether a content type is this one, with any parameters.
fn is(kind: &HeaderValue, expected: &str) -> bool {
    let essence = kind.to_str().ok().and_then(|kind| kind.split(';').next());
    essence.is_some_and(|kind| kind.trim().eq_ignore_ascii_case(expected))
}

/// The refusal of another content type: a page of another origin can send some types without the browser
/// asking first, and none of those is accepted.
fn wrong_type(what: &str, expected: &str) -> RefusedBody {
    let message = format!("the body must be {what}; send the header content-type: {expected}");
    let refusal = Refusal::new(Code::Malformed, message);
    RefusedBody { refusal, status: StatusCode::UNSUPPORTED_MEDIA_TYPE }
}

async fn receive(
    mut body: Body,
    connection: Option<&Connection>,
    most: usize,
) -> Result<Bytes, RefusedBody> {
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    if let Some(connection) = connection.filter(|_| !body.is_end_stream()) {
        connection.waits_for_body();
    }
    let end = clock::now() + HTTP_BODY_MAX;
    let mut budget = ProgressBudget::default();
    let mut all = Bytes::new();
    // bounded by the size, the time, and the least rate
    loop {
        let asked = clock::now();
        let latest = Instant::from((asked + budget.left()).min(end));
        let frame = match timeout_at(latest, body.frame()).await {
            Err(_) => return Err(too_slow()),
            Ok(None) => return Ok(all),
            Ok(Some(Err(error))) => {
                let message = format!("the body cannot be read: {error}");
                return Err(Refusal::new(Code::Malformed, message).into());
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(part) = frame.into_data() else { continue };
        budget.progress(part.len(), clock::now().saturating_duration_since(asked));
        if all.len() + part.len() > most {
            return Err(too_large(most));
        }
        if let Some(connection) = connection {
            connection.received(part.len());
        }
        if all.is_empty() {
            all = part;
        } else {
            let mut grown = all.try_into_mut().unwrap_or_else(|all| BytesMut::from(&*all));
            grown.extend_from_slice(&part);
            all = grown.freeze();
        }
    }
}

fn too_large(most: usize) -> RefusedBody {
    let message = format!("the body is larger than {most} bytes");
    Refusal::new(Code::TooLarge, message).into()
}

fn too_slow() -> RefusedBody {
    let message = format!(
        "the body did not arrive in time: within {HTTP_BODY_MAX:?}, at {HTTP_RATE_MIN} bytes per \
         second or more, without a pause of {HTTP_STALL_MAX:?}"
    );
    let refusal = Refusal::new(Code::Malformed, message);
    RefusedBody { refusal, status: StatusCode::REQUEST_TIMEOUT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let check = |kind: &str, expected: bool| {
            let kind = HeaderValue::from_str(kind).unwrap();
            assert_eq!(is(&kind, JSON_TYPE), expected, "{kind:?}");
        };
        check("application/json", true);
        check("Application/JSON; charset=utf-8", true);
        check("application/json ;charset=\"utf-8\"", true);
        check("text/plain", false);
        check("text/plain; application/json", false);
        check("application/json, text/plain", false);
        check("application/jsonp", false);
        check("application/x-www-form-urlencoded", false);
        check("", false);
    }
}
