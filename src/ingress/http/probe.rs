//! `POST /probe`: whether the models of this device answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use url::form_urlencoded;

use super::HttpInterface;
use super::errors::refused;
use crate::ingress::probe::probe;
use crate::limits::DEADLINE_MIN;
use crate::limits::golden::PROBE_ANSWER_MAX;
use crate::request::refusal::{Code, Refusal};
use crate::time::millis;

/// `POST /probe?deadline_ms=N`: lets each model of this device answer a short prompt within that time; 503 if
/// one does not, or if there is none.
pub(super) async fn probe_models(
    State(interface): State<Arc<HttpInterface>>,
    RawQuery(query): RawQuery,
) -> Response {
    let deadline = match deadline_of(query.as_deref()) {
        Ok(deadline) => deadline,
        Err(refusal) => return refused(StatusCode::BAD_REQUEST, &refusal),
    };
    let report = probe(&interface.dispatch, deadline).await;
    let code = if report.answered { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(report)).into_response()
}

/// The time for the answers; without a query the longest one.
fn deadline_of(query: Option<&str>) -> Result<Duration, Refusal> {
    let mut deadline = PROBE_ANSWER_MAX;
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "deadline_ms" {
            let message = "unknown parameter of the address; there is only \"deadline_ms\"";
            return Err(Refusal::field(Code::Invalid, &*name, message));
        }
        let stated = value.parse().ok().map(Duration::from_millis);
        let in_range = stated.filter(|time| (DEADLINE_MIN..=PROBE_ANSWER_MAX).contains(time));
        deadline = in_range.ok_or_else(|| {
            let most = millis(PROBE_ANSWER_MAX);
            Refusal::field(Code::Invalid, &*name, format!("must be a number from 1 to {most}"))
        })?;
    }
    Ok(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_states_the_time_for_the_answers() {
        assert_eq!(deadline_of(None).unwrap(), PROBE_ANSWER_MAX);
        assert_eq!(deadline_of(Some("")).unwrap(), PROBE_ANSWER_MAX);
        assert_eq!(deadline_of(Some("deadline_ms=1500")).unwrap(), Duration::from_millis(1500));
        for (query, field) in [
            ("deadline_ms=0", "deadline_ms"),
            ("deadline_ms=60001", "deadline_ms"),
            ("deadline_ms=", "deadline_ms"),
            ("deadline_ms=-5", "deadline_ms"),
            ("deadline_ms=5s", "deadline_ms"),
            ("deadline_ms", "deadline_ms"),
            ("timeout=5", "timeout"),
        ] {
            let refusal = deadline_of(Some(query)).unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(field), "{query}: {refusal}");
        }
    }
}
