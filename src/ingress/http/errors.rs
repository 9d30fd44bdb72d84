//! Errors in the format of `OpenAI`'s API, with the decision record where there is one.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::completion::PilotlightFields;
use crate::request::refusal::{Code, Refusal};
use crate::wire::{Reply, Status};

/// The body for a refusal.
pub(super) fn error_body(refusal: &Refusal) -> Value {
    let kind = match refusal.code {
        Code::Busy => "rate_limit_error",
        Code::Unavailable => "server_error",
        Code::Malformed
        | Code::Invalid
        | Code::TooLarge
        | Code::Unknown
        | Code::Forbidden
        | Code::Incapable
        | Code::Conflict => "invalid_request_error",
    };
    json!({"error": {
        "message": refusal.message,
        "type": kind,
        "param": refusal.field,
        "code": refusal.code.name(),
    }})
}

/// The response to a refused request, with this status.
pub(super) fn refused(status: StatusCode, refusal: &Refusal) -> Response {
    refused_as(status, refusal, &error_body(refusal))
}

/// The status of a response to a refused request.
pub(super) fn status_of(code: Code) -> StatusCode {
    match code {
        Code::Malformed | Code::Invalid | Code::Incapable => StatusCode::BAD_REQUEST,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::Unknown => StatusCode::NOT_FOUND,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::Conflict => StatusCode::CONFLICT,
        Code::Busy => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The response to a refused request, with this status and body.
fn refused_as(status: StatusCode, refusal: &Refusal, body: &Value) -> Response {
    let mut response = (status, Json(body)).into_response();
    if let Some(wait) = refusal.retry_after {
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
    }
    response
}

/// The body for a job that ended without an answer.
pub(super) fn error_of(reply: &Reply) -> Value {
    let error = reply.error.as_ref();
    json!({
        "error": {
            "message": error.map_or("no answer", |e| e.message.as_str()),
            "type": "server_error",
            "param": error.and_then(|e| e.field.clone()),
            "code": error.map(|e| e.code.clone()),
        },
        "pilotlight": PilotlightFields::of(reply),
    })
}

/// The response to a job that ended without an answer.
pub(super) fn not_ok(reply: &Reply) -> Response {
    let code = reply.error.as_ref().map_or("", |error| error.code.as_str());
    if let Ok(code) = serde_json::from_value::<Code>(Value::from(code)) {
        let error = reply.error.as_ref();
        let refusal = Refusal {
            code,
            message: error.map(|e| e.message.clone()).unwrap_or_default(),
            field: error.and_then(|e| e.field.clone()),
            retry_after: reply.retry_after_ms.map(std::time::Duration::from_millis),
        };
        let mut body = error_body(&refusal);
        body["pilotlight"] = json!(PilotlightFields::of(reply));
        return refused_as(status_of(code), &refusal, &body);
    }
    let status = match reply.status {
        Status::Expired => StatusCode::GATEWAY_TIMEOUT,
        Status::Ok | Status::Busy | Status::Refused | Status::Conflict | Status::Failed => {
            StatusCode::BAD_GATEWAY
        }
    };
    (status, Json(error_of(reply))).into_response()
}
