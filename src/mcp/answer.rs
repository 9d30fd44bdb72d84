//! Whether an answer is one that was asked for.

use crate::limits::{TOOL_CALL_ID_BYTES_MAX, TOOL_CALLS_MAX};
use crate::model::generate::{Fault, Finish, Usage};
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::tools::ToolCall;

/// The fault of an answer beyond its bounds.
pub(super) fn too_much(what: &str) -> Fault {
    Fault::ProtocolError(format!("the server sent more {what} than an answer may have"))
}

/// Checks that calls are of offered tools, and that a label is one of those that were asked for.
pub(super) fn check_answer(job: &Job, usage: &Usage) -> Result<(), Fault> {
    let calls = &usage.tool_calls;
    let is_long = |call: &ToolCall| call.id.len() > TOOL_CALL_ID_BYTES_MAX;
    if calls.len() > TOOL_CALLS_MAX || calls.iter().any(is_long) {
        return Err(too_much("tool calls, or longer identifiers of them,"));
    }
    match &job.tools {
        // an answer that was cut off has no calls
        Some(_) if usage.finish == Finish::Length && calls.is_empty() => {}
        Some(tools) => tools.allow(calls).map_err(Fault::ProtocolError)?,
        None if calls.is_empty() => {}
        None => {
            let why = "a tool call although no tools were offered";
            return Err(Fault::ProtocolError(why.to_owned()));
        }
    }
    let is_asked = match (&job.format, &usage.classification) {
        (Format::Label(labels), Some(chosen)) => {
            let is_known = |label: &String| labels.examples.contains_key(label);
            is_known(&chosen.label) && chosen.scores.keys().all(is_known)
        }
        (Format::Label(_), None) => false,
        (Format::Text | Format::Json | Format::Schema(_) | Format::Embedding, chosen) => {
            chosen.is_none()
        }
    };
    if is_asked {
        return Ok(());
    }
    Err(Fault::ProtocolError("it chose no label, or one that was not asked for".to_owned()))
}
