//! The reasons for which providers end an answer, in the words of all protocols.

use super::answer::{forbidden, gave_up};
use super::reason::shown;
use crate::model::generate::{Fault, Finish};

/// Why an answer ended. The protocols share their words: services that are compatible with one of them
/// also pass on those of another. `None` for an empty reason, with which some providers fill each event.
///
/// An unknown reason counts as [`Finish::Stop`]: the answer is there, whatever its end is called.
///
/// # Errors
/// [`Fault::Rejected`] for a filtered answer, [`Fault::Crashed`] for one that the provider gave up.
pub(super) fn finish_of(reason: &str) -> Result<Option<Finish>, Fault> {
    match reason.to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "stop" | "end_turn" | "stop_sequence" | "eos" | "eos_token" => Ok(Some(Finish::Stop)),
        "length"
        | "max_tokens"
        | "max_output_tokens"
        | "max_completion_tokens"
        | "max_new_tokens"
        | "model_length"
        | "model_context_window_exceeded" => Ok(Some(Finish::Length)),
        "tool_calls" | "tool_call" | "tool_use" | "function_call" => Ok(Some(Finish::ToolCalls)),
        "content_filter"
        | "content_filtered"
        | "guardrail_intervened"
        | "refusal"
        | "safety"
        | "recitation"
        | "blocklist"
        | "prohibited_content"
        | "spii" => Err(forbidden()),
        "error"
        | "insufficient_system_resource"
        | "abort"
        | "aborted"
        | "cancelled"
        | "canceled"
        | "timeout" => Err(gave_up(Some(reason))),
        _ => {
            let reason = shown(reason);
            tracing::debug!(reason, "the finish reason is unknown; the answer counts as complete");
            Ok(Some(Finish::Stop))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_meaning() {
        for (reason, expected) in [
            ("stop", Some(Finish::Stop)),
            ("eos", Some(Finish::Stop)),
            ("end_turn", Some(Finish::Stop)),
            ("stop_sequence", Some(Finish::Stop)),
            ("STOP", Some(Finish::Stop)),
            ("pause_turn", Some(Finish::Stop)),
            ("what is this", Some(Finish::Stop)),
            ("length", Some(Finish::Length)),
            ("max_tokens", Some(Finish::Length)),
            ("MAX_TOKENS", Some(Finish::Length)),
            ("model_length", Some(Finish::Length)),
            ("tool_calls", Some(Finish::ToolCalls)),
            ("function_call", Some(Finish::ToolCalls)),
            ("tool_use", Some(Finish::ToolCalls)),
            ("", None),
        ] {
            assert_eq!(finish_of(reason).unwrap(), expected, "{reason:?}");
        }
        for (reason, expected) in [
            ("content_filter", "unfit"),
            ("guardrail_intervened", "unfit"),
            ("refusal", "unfit"),
            ("SAFETY", "unfit"),
            ("abort", "crashed"),
            ("error", "crashed"),
        ] {
            assert_eq!(finish_of(reason).unwrap_err().name(), expected, "{reason}");
        }
    }
}
