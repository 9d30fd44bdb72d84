//! From a job's end to the one reply, the same at every door.

use std::time::Duration;

use serde_json::Value;

use crate::dispatch::JobEnd;
use crate::model::generate::{Fault, Finish};
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};
use crate::scheduler::Verdict;
use crate::wire::{Reply, ReplyUsage, Source, Status, Timing, WireError};

/// The reply to a job that has ended.
pub fn reply(id: Option<String>, format: &Format, text: String, end: JobEnd) -> Reply {
    let timing = Timing {
        queued_ms: millis(end.queued),
        first_token_ms: end.first.map(millis),
        total_ms: millis(end.total),
    };
    let bare = match &end.verdict {
        Verdict::Done => answered(format, text, &end),
        Verdict::Refused(refusal) => Reply::refused(None, refusal),
        Verdict::Expired => broken(
            Status::Expired,
            "deadline",
            "the deadline passed before the answer was complete",
        ),
        Verdict::Cancelled => broken(Status::Failed, "cancelled", "the client disconnected"),
        Verdict::Failed(fault) => failed(fault),
    };
    Reply { id, decision: Some(end.decision), timing: Some(timing), ..bare }
}

fn answered(format: &Format, text: String, end: &JobEnd) -> Reply {
    let usage = end.usage.as_ref();
    let source = end.server.as_ref().zip(end.locality).map(|(server, locality)| Source {
        server: server.clone(),
        model: usage.map(|u| u.model.clone()).unwrap_or_default(),
        location: locality.name().to_owned(),
    });
    let json = match format {
        Format::Text | Format::Label(_) => None,
        Format::Json | Format::Schema(_) | Format::Embedding => {
            serde_json::from_str::<Value>(&text).ok()
        }
    };
    let said = usage.and_then(|u| u.classification.clone());
    let finish = usage.map(|u| u.finish);
    let base = Reply {
        id: None,
        status: Status::Ok,
        finish,
        usage: usage.map(|usage| ReplyUsage {
            cost_usd: end.decision.cost_usd(),
            ..ReplyUsage::from(usage)
        }),
        source,
        decision: None,
        timing: None,
        retry_after_ms: None,
        error: None,
        confidence: said.as_ref().map(|said| said.confidence),
        scores: said.map(|said| said.scores).filter(|scores| !scores.is_empty()),
        logprobs: usage.map(|u| u.logprobs.clone()).unwrap_or_default(),
        tool_calls: usage.map(|u| u.tool_calls.clone()).unwrap_or_default(),
        json,
        // numbers are no text
        text: Some(text).filter(|_| *format != Format::Embedding),
    };
    let is_text = matches!(format, Format::Text | Format::Label(_));
    if is_text || base.json.is_some() || finish == Some(Finish::ToolCalls) {
        return base;
    }
    // JSON was asked for and the text is none: an answer that was cut off
    let (code, message) = match finish {
        Some(Finish::Length) => {
            ("cut_off", "max_tokens was reached before the JSON was complete; increase max_tokens")
        }
        Some(Finish::Stop | Finish::ToolCalls) | None => {
            ("not_json", "the model's answer is not valid JSON")
        }
    };
    let error = WireError {
        code: code.to_owned(),
        message: message.to_owned(),
        field: None,
        retry_after_ms: None,
    };
    Reply { status: Status::Failed, error: Some(error), ..base }
}

fn failed(fault: &Fault) -> Reply {
    broken(Status::Failed, fault.name(), &fault.to_string())
}

fn broken(status: Status, code: &str, message: &str) -> Reply {
    let mut reply = Reply::refused(None, &Refusal::new(Code::Unavailable, message));
    reply.status = status;
    reply.error = Some(WireError {
        code: code.to_owned(),
        message: message.to_owned(),
        field: None,
        retry_after_ms: None,
    });
    reply
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
