//! Requests of the operator's programs about the configuration: to read its files again, and about signed
//! updates. They are for those who may read the status.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::HttpInterface;
use super::body::{JsonBody, SignedBody};
use super::errors::{error_body, refused};
use crate::ingress::updates::{UpdateAction, UpdateFailure};
use crate::request::refusal::{Code, Refusal};

/// The body of a request to return to the configuration before.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RollBackBody {
    allow_downgrade: bool,
}

/// `POST /reload`: reads the configuration again; 422 if it is refused.
pub(super) async fn reload(State(interface): State<Arc<HttpInterface>>) -> Response {
    let Some(outcome) = interface.reloads.reload().await else {
        let message = "the service is stopping, or too many reloads wait; retry later";
        return refused(StatusCode::SERVICE_UNAVAILABLE, &Refusal::new(Code::Busy, message));
    };
    // a signed update that was refused before has no mistakes of the file
    let is_refused = outcome.is_refused();
    let code = if is_refused { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    (code, Json(outcome)).into_response()
}

/// `POST /config/apply` with an `update.signed`: checks and tries it; 422 if it is refused or fails. The
/// response comes when it is kept or answers the requests of applications.
pub(super) async fn apply(state: State<Arc<HttpInterface>>, body: SignedBody) -> Response {
    signed(state, body, UpdateAction::Apply).await
}

/// `POST /config/check` with an `update.signed`: checks it and changes nothing; 422 if it would be refused.
pub(super) async fn check(state: State<Arc<HttpInterface>>, body: SignedBody) -> Response {
    signed(state, body, UpdateAction::Check).await
}

/// `POST /config/rollback` with `{"allow_downgrade": BOOL}`: returns to the configuration before; 409 if
/// that is not possible.
pub(super) async fn roll_back(
    state: State<Arc<HttpInterface>>,
    JsonBody(body): JsonBody,
) -> Response {
    let body = match body {
        Ok(body) => serde_json::from_slice::<RollBackBody>(&body),
        Err(refused) => return refused.into_response(),
    };
    match body {
        Ok(body) => {
            let action = UpdateAction::RollBack { steps_down: body.allow_downgrade };
            done(state, action, StatusCode::CONFLICT).await
        }
        Err(error) => {
            let message = format!("the body is not {{\"allow_downgrade\": BOOL}}: {error}");
            refused(StatusCode::BAD_REQUEST, &Refusal::new(Code::Malformed, message))
        }
    }
}

async fn signed(
    state: State<Arc<HttpInterface>>,
    SignedBody(body): SignedBody,
    action: impl FnOnce(Vec<u8>) -> UpdateAction,
) -> Response {
    match body {
        Ok(bytes) => {
            let action = action(bytes.into());
            done(state, action, StatusCode::UNPROCESSABLE_ENTITY).await
        }
        Err(refused) => refused.into_response(),
    }
}

async fn done(
    State(interface): State<Arc<HttpInterface>>,
    action: UpdateAction,
    failed: StatusCode,
) -> Response {
    match interface.updates.ask(action).await {
        Ok(status) => Json(status).into_response(),
        Err(failure) => (failed, Json(body_of(&failure))).into_response(),
    }
}

/// The body for a failure, in the format of all errors.
fn body_of(UpdateFailure { code, reason }: &UpdateFailure) -> Value {
    let mut body = error_body(&Refusal::new(Code::Invalid, reason.clone()));
    if let Some(code) = code {
        body["error"]["code"] = json!(code);
    }
    body
}
