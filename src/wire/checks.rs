//! Checks of single fields against their bounds.

use serde_json::Value;

use crate::catalog::catalog::AppPolicy;
use crate::limits::{STOP_BYTES_MAX, STOPS_MAX, TOP_LOGPROBS_MAX};
use crate::model::context::Locality;
use crate::request::client::{Client, UNLISTED};
use crate::request::job::Mode;
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::{SchemaBounds, SchemaMistake};

pub(super) fn check_stops(stops: &[String]) -> Result<(), Refusal> {
    if stops.len() > STOPS_MAX {
        let message = format!("{} stop strings, at most {STOPS_MAX}", stops.len());
        return Err(Refusal::field(Code::TooLarge, "stop", message));
    }
    for (at, stop) in stops.iter().enumerate() {
        if stop.is_empty() || stop.len() > STOP_BYTES_MAX {
            let message = format!("{} bytes, must be 1 to {STOP_BYTES_MAX}", stop.len());
            return Err(Refusal::field(Code::Invalid, format!("stop[{at}]"), message));
        }
    }
    Ok(())
}

pub(super) fn check_range(
    field: &str,
    value: Option<f32>,
    min: f32,
    max: f32,
) -> Result<(), Refusal> {
    match value {
        Some(v) if !(min..=max).contains(&v) => {
            let min = if min > 0.0 && min < 1.0 { "more than 0".into() } else { min.to_string() };
            let message = format!("{v}, must be {min} to {max}");
            Err(Refusal::field(Code::Invalid, field, message))
        }
        Some(_) | None => Ok(()),
    }
}

pub(super) fn check_length(field: &str, text: &str, max: usize) -> Result<(), Refusal> {
    if text.is_empty() || text.len() > max {
        let message = format!("{} bytes, must be 1 to {max}", text.len());
        return Err(Refusal::field(Code::Invalid, field, message));
    }
    Ok(())
}

pub(super) fn check_schema(
    bounds: &mut SchemaBounds,
    field: &str,
    schema: &Value,
) -> Result<(), Refusal> {
    bounds.check(schema).map_err(|mistake| match mistake {
        SchemaMistake::TooLarge(message) => Refusal::field(Code::TooLarge, field, message),
        SchemaMistake::Invalid(message) => Refusal::field(Code::Invalid, field, message),
    })
}

/// An application that the policy refuses is told where it could be listed.
pub(super) fn check_admitted(client: &Client, policy: &AppPolicy) -> Result<(), Refusal> {
    if !policy.refuse {
        return Ok(());
    }
    let Client { app, principal } = client;
    let message = if principal == UNLISTED {
        format!(
            "the policy refuses applications that are not listed; list {app:?} in pilotlight.policy.apps"
        )
    } else {
        format!("the policy refuses the application {principal:?} (pilotlight.policy.apps)")
    };
    Err(Refusal::new(Code::Forbidden, message))
}

/// A request that asks for what the policy forbids is refused; any other is narrowed by the policy.
pub(super) fn check_mode(mode: Mode, furthest: Locality) -> Result<(), Refusal> {
    if mode == Mode::CloudOnly && furthest == Locality::Device {
        let message = "the policy keeps this request on the device (reach); use another mode";
        return Err(Refusal::field(Code::Forbidden, "mode", message));
    }
    Ok(())
}

/// The number of alternatives for each token, if log-probabilities are wanted.
pub(super) fn check_logprobs(
    logprobs: Option<bool>,
    top: Option<u8>,
) -> Result<Option<u8>, Refusal> {
    match (logprobs.unwrap_or(false), top) {
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message = "requires logprobs: true";
            Err(Refusal::field(Code::Invalid, "top_logprobs", message))
        }
        (true, Some(top)) if top > TOP_LOGPROBS_MAX => {
            let message = format!("{top}, must be 0 to {TOP_LOGPROBS_MAX}");
            Err(Refusal::field(Code::Invalid, "top_logprobs", message))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}
