//! The one reply to a job that has ended, and its line in the log; the same for every interface.

use serde_json::Value;

use crate::decision::Decision;
use crate::dispatch::JobEnd;
use crate::metrics::Metrics;
use crate::model::generate::{Fault, Finish};
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::scheduler::Verdict;
use crate::time::millis;
use crate::wire::{Reply, ReplyUsage, Source, Status, Timing, WireError};

/// The code of JSON that was cut off by `max_tokens`.
pub(crate) const CUT_OFF: &str = "cut_off";

/// The origin of a request, as the log states it.
#[derive(Debug, Clone)]
pub struct ReplyOrigin {
    /// `mqtt`, `http` or `mcp`.
    pub interface: &'static str,
    /// The application.
    pub app: String,
    /// The task, if the request names one.
    pub task: Option<String>,
}

impl ReplyOrigin {
    /// The origin of a job.
    pub fn of(interface: &'static str, job: &Job) -> ReplyOrigin {
        ReplyOrigin { interface, app: job.client.app.clone(), task: job.task.clone() }
    }

    /// The origin of a request of which only the application is known.
    pub fn unread(interface: &'static str, app: &str) -> ReplyOrigin {
        ReplyOrigin { interface, app: app.to_owned(), task: None }
    }
}

/// Counts a reply, and writes its line to the log.
pub fn replied(metrics: &Metrics, origin: &ReplyOrigin, reply: &Reply) {
    metrics.replied(origin.interface, reply);
    log(origin, reply, reply.decision.as_ref());
}

/// Writes the line of an ended job to the log, where no reply is made of it.
pub fn ended(origin: &ReplyOrigin, end: &JobEnd) {
    if tracing::enabled!(tracing::Level::INFO) {
        log(origin, &without_record(&Format::Text, String::new(), end), Some(&end.decision));
    }
}

/// One line for each reply, without text of prompt or answer.
fn log(origin: &ReplyOrigin, reply: &Reply, decision: Option<&Decision>) {
    let ReplyOrigin { interface, app, task } = origin;
    tracing::info!(
        interface,
        app,
        task = task.as_deref(),
        status = reply.status.name(),
        route = decision.map(|decision| decision.route.name()),
        reason = decision.map(|decision| decision.reason.name()),
        error = reply.error.as_ref().map(|error| error.code.as_str()),
        model = reply.source.as_ref().map(|source| source.model.as_str()),
        prompt_tokens = reply.usage.map(|usage| usage.prompt_tokens),
        completion_tokens = reply.usage.map(|usage| usage.completion_tokens),
        ms = reply.timing.map(|timing| timing.total_ms),
        "replied"
    );
}

/// The reply to a job that has ended.
pub fn reply(id: Option<String>, format: &Format, text: String, end: JobEnd) -> Reply {
    let base = without_record(format, text, &end);
    Reply { id, decision: Some(end.decision), ..base }
}

/// The reply to a job that has ended, without its identifier and its decision record.
fn without_record(format: &Format, text: String, end: &JobEnd) -> Reply {
    let timing = Timing {
        queued_ms: millis(end.queued),
        first_token_ms: end.first.map(millis),
        total_ms: millis(end.total),
    };
    let base = match &end.verdict {
        Verdict::Done => answered(format, text, end),
        Verdict::Refused(refusal) => Reply::refused(None, refusal),
        Verdict::Expired => without_answer(
            Status::Expired,
            "deadline",
            "the deadline passed before the answer was complete",
        ),
        Verdict::Cancelled => {
            without_answer(Status::Failed, "cancelled", "the client disconnected")
        }
        Verdict::Failed(fault) => failed(fault),
    };
    Reply { timing: Some(timing), ..base }
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
    let classified = usage.and_then(|u| u.classification.clone());
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
        confidence: classified.as_ref().map(|c| c.confidence),
        scores: classified.map(|c| c.scores).filter(|scores| !scores.is_empty()),
        logprobs: usage.map(|u| u.logprobs.clone()).unwrap_or_default(),
        tool_calls: usage.map(|u| u.tool_calls.clone()).unwrap_or_default(),
        json,
        // an embedding has no text
        text: Some(text).filter(|_| *format != Format::Embedding),
    };
    let is_text = matches!(format, Format::Text | Format::Label(_));
    if is_text || finish == Some(Finish::ToolCalls) {
        return base;
    }
    if let (Some(json), Format::Schema(schema)) = (&base.json, format) {
        // an engine's constraint leaves out some keywords
        let Err(place) = schema.fits(json) else { return base };
        let error = WireError::new("schema", &format!("the answer does not fit the schema{place}"));
        return Reply { status: Status::Failed, error: Some(error), ..base };
    }
    if base.json.is_some() {
        return base;
    }
    // the request wants JSON, and the answer is none: it was cut off or is malformed
    let (code, message) = match finish {
        Some(Finish::Length) => {
            (CUT_OFF, "max_tokens was reached before the JSON was complete; increase max_tokens")
        }
        Some(Finish::Stop | Finish::ToolCalls) | None => {
            ("not_json", "the model's answer is not valid JSON")
        }
    };
    let error = Some(WireError::new(code, message));
    Reply { status: Status::Failed, error, ..base }
}

fn failed(fault: &Fault) -> Reply {
    without_answer(Status::Failed, fault.name(), &fault.to_string())
}

fn without_answer(status: Status, code: &str, message: &str) -> Reply {
    let error = Some(WireError::new(code, message));
    Reply { status, error, ..Reply::refused(None, &Refusal::new(Code::Unavailable, message)) }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_reply_has_one_line_in_the_log_and_no_text() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let refusal = Refusal::new(Code::Busy, "a message that quotes private text");
        let reply = Reply {
            text: Some("private text".to_owned()),
            timing: Some(Timing { queued_ms: 1, first_token_ms: None, total_ms: 42 }),
            ..Reply::refused(Some("id".to_owned()), &refusal)
        };
        let origin =
            ReplyOrigin { task: Some("topic".to_owned()), ..ReplyOrigin::unread("mqtt", "app") };
        tracing::subscriber::with_default(subscriber, || {
            replied(&Metrics::default(), &origin, &reply);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in ["INFO", "interface=\"mqtt\"", "app=\"app\"", "task=\"topic\"", "ms=42"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(text.contains("status=\"busy\"") && text.contains("error=\"busy\""), "{text}");
        assert!(!text.contains("private"), "{text}");
    }
}
