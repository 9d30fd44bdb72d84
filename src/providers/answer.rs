//! Reads a provider's answer, in any protocol, and streams it to the client.

use std::time::Instant;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;

use super::calls::{CallDelta, Calls};
use super::sse::{DONE, ServerSentEvents};
use super::stream::{Events, buffered};
use super::{Protocol, reason};
use crate::clock::now;
use crate::limits::ANSWER_BYTES_MAX;
use crate::model::generate::{Fault, Finish, TokenLogprob, Usage};
use crate::model::out::Out;
use crate::request::format;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::request::tools::{ToolCall, Tools};

/// What one event of a stream adds, or a buffered answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct AnswerDelta {
    /// More text.
    pub(super) text: Option<String>,
    /// Why the answer ends.
    pub(super) finish: Option<Finish>,
    /// Tokens of the prompt, cached ones included.
    pub(super) prompt_tokens: Option<u32>,
    /// Tokens of the prompt that were cached.
    pub(super) cached_tokens: Option<u32>,
    /// Tokens of the answer so far.
    pub(super) completion_tokens: Option<u32>,
    /// More of the tool calls.
    pub(super) calls: Vec<CallDelta>,
    /// Log-probabilities of the tokens.
    pub(super) logprobs: Vec<TokenLogprob>,
    /// Whether this is the last event.
    pub(super) is_last: bool,
}

struct Reader<'o> {
    out: &'o mut Out,
    started: Instant,
    first: Option<Instant>,
    format: &'o Format,
    tools: Option<&'o Tools>,
    /// JSON mode is emulated by a forced tool call; see [`Protocol::json_by_tool`].
    is_json_by_tool: bool,
    calls: Calls,
    /// The answer so far, if it must be JSON.
    kept: Option<String>,
    bytes: usize,
    chunks: u32,
    known: AnswerDelta,
    /// The provider has marked the end of the answer, or sent it as a whole.
    is_complete: bool,
}

/// Reads the answer and writes its text to `out` as it comes in.
///
/// # Errors
/// [`Fault::ProtocolError`] if the answer breaks the protocol, [`Fault::Crashed`] if it ends early; see
/// the table of [`super`].
pub(super) async fn read(
    response: Response,
    protocol: &Protocol,
    job: &Job,
    out: &mut Out,
) -> Result<Usage, Fault> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let mut reader = Reader {
        out,
        started: now(),
        first: None,
        format: &job.format,
        tools: job.tools.as_deref(),
        is_json_by_tool: protocol.json_by_tool && job.format != Format::Text,
        calls: Calls::default(),
        kept: (job.format != Format::Text).then(String::new),
        bytes: 0,
        chunks: 0,
        known: AnswerDelta::default(),
        is_complete: false,
    };
    match kind.as_str() {
        "text/event-stream" => {
            reader.follow(Events::Sse(ServerSentEvents::of(response)), protocol).await?;
        }
        #[cfg(feature = "bedrock")]
        "application/vnd.amazon.eventstream" => {
            let frames = super::frames::Frames::of(response);
            reader.follow(Events::Framed(frames), protocol).await?;
        }
        // some providers never stream
        "application/json" => {
            let body = buffered(response).await?;
            reader.take(parsed(protocol, &body)?).await?;
            reader.is_complete = true;
        }
        other => {
            return Err(Fault::ProtocolError(format!("unexpected content type {other:?}")));
        }
    }
    reader.end()
}

/// The fault of an answer that the provider's content filter stopped, or that the model refused.
pub(super) fn forbidden() -> Fault {
    Fault::Rejected(Refusal::new(
        Code::Forbidden,
        "the provider's usage policy forbids this answer",
    ))
}

/// The fault of an error event in the middle of an answer.
pub(super) fn gave_up(message: Option<&str>) -> Fault {
    Fault::Crashed(format!("the provider aborted: {}", message.unwrap_or("without a reason")))
}

/// The fault of an event that can't be parsed.
pub(super) fn unreadable(error: &serde_json::Error) -> Fault {
    Fault::ProtocolError(format!("invalid response: {error}"))
}

/// Parses an event, or a buffered answer. One without content may be an error in a form of its own.
fn parsed(protocol: &Protocol, data: &str) -> Result<AnswerDelta, Fault> {
    let parsed = (protocol.parse)(data);
    let may_be_error = match &parsed {
        Ok(delta) => *delta == AnswerDelta::default(),
        Err(fault) => fault.name() == "broken",
    };
    match reason::of_event(data).filter(|_| may_be_error) {
        Some(why) => Err(gave_up(Some(&why))),
        None => parsed,
    }
}

fn early() -> Fault {
    Fault::Crashed("the response ended prematurely".to_owned())
}

impl Reader<'_> {
    async fn follow(&mut self, mut events: Events, protocol: &Protocol) -> Result<(), Fault> {
        // bounded by the bytes that are read of a response
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.out.gone() => return Err(Fault::Cancelled),
            };
            let data = match event {
                Some(Ok(data)) => data,
                // some providers send no last event, or break the connection behind the answer
                None | Some(Err(Fault::Crashed(_) | Fault::TimedOut(_)))
                    if self.known.finish.is_some() =>
                {
                    return Ok(());
                }
                Some(Err(fault)) => return Err(fault),
                None => return Err(early()),
            };
            if data.trim() == DONE {
                self.is_complete = true;
                return Ok(());
            }
            if data.is_empty() {
                self.out.alive();
                continue;
            }
            let delta = parsed(protocol, &data)?;
            self.is_complete = delta.is_last;
            self.take(delta).await?;
            if self.is_complete {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, delta: AnswerDelta) -> Result<(), Fault> {
        let known = &mut self.known;
        known.logprobs.extend(delta.logprobs);
        known.finish = delta.finish.or(known.finish);
        known.prompt_tokens = delta.prompt_tokens.or(known.prompt_tokens);
        known.cached_tokens = delta.cached_tokens.or(known.cached_tokens);
        known.completion_tokens = delta.completion_tokens.or(known.completion_tokens);
        let text = if self.is_json_by_tool {
            // text beside the call is no part of the JSON
            Some(delta.calls.into_iter().filter_map(|part| part.arguments).collect())
        } else {
            self.calls.take(delta.calls)?;
            self.check_size()?;
            delta.text
        };
        match text.filter(|text: &String| !text.is_empty()) {
            Some(text) => self.write(text).await,
            None => {
                self.out.alive();
                Ok(())
            }
        }
    }

    async fn write(&mut self, text: String) -> Result<(), Fault> {
        self.first.get_or_insert_with(now);
        self.bytes += text.len();
        self.chunks += 1;
        self.check_size()?;
        if let Some(kept) = &mut self.kept {
            kept.push_str(&text);
        }
        self.out.write(text).await.map_err(|_| Fault::Cancelled)
    }

    /// Checks the size of text and calls together.
    fn check_size(&self) -> Result<(), Fault> {
        if self.bytes + self.calls.bytes() > ANSWER_BYTES_MAX {
            return Err(Fault::ProtocolError("the answer exceeds the size limit".to_owned()));
        }
        Ok(())
    }

    /// Why the answer ended. One with content and an end, but without a reason, counts as complete.
    fn finish(&self) -> Result<Finish, Fault> {
        let has_content = self.chunks > 0 || !self.calls.is_empty();
        match self.known.finish {
            Some(finish) => Ok(finish),
            None if self.is_complete && has_content => {
                tracing::debug!("the answer has no finish reason; it counts as complete");
                Ok(Finish::Stop)
            }
            None => Err(early()),
        }
    }

    fn end(mut self) -> Result<Usage, Fault> {
        let finish = self.finish()?;
        let tool_calls = self.tool_calls(finish)?;
        let finish = match finish {
            Finish::Length => Finish::Length,
            // some providers state "stop" for an answer with calls, some the reverse
            Finish::Stop | Finish::ToolCalls if tool_calls.is_empty() => Finish::Stop,
            Finish::Stop | Finish::ToolCalls => Finish::ToolCalls,
        };
        if let (Finish::Stop, Some(text)) = (finish, &self.kept) {
            format::check(self.format, text).map_err(Fault::ProtocolError)?;
        }
        let ended = now();
        let first = self.first.unwrap_or(ended);
        Ok(Usage {
            finish,
            tool_calls,
            prompt_tokens: self.known.prompt_tokens.unwrap_or(0),
            cached_tokens: self.known.cached_tokens.unwrap_or(0),
            // without a count, one token for each chunk is assumed
            completion_tokens: self.known.completion_tokens.unwrap_or(self.chunks),
            chunks: self.out.written(),
            prefill_ms: first.duration_since(self.started).as_secs_f64() * 1e3,
            logprobs: self.known.logprobs,
            decode_ms: ended.duration_since(first).as_secs_f64() * 1e3,
            ..Usage::one_piece("")
        })
    }

    /// The tool calls, which must be of offered tools. An answer that was cut off by its length has
    /// none: the last call may be incomplete, and more may have followed.
    fn tool_calls(&mut self, finish: Finish) -> Result<Vec<ToolCall>, Fault> {
        let calls = std::mem::take(&mut self.calls);
        if finish == Finish::Length {
            return Ok(Vec::new());
        }
        let calls = calls.end()?;
        if finish == Finish::ToolCalls && calls.is_empty() && !self.is_json_by_tool {
            return Err(Fault::ProtocolError("finish reason tool_calls without a call".to_owned()));
        }
        match self.tools {
            Some(tools) => tools.allow(&calls).map_err(Fault::ProtocolError)?,
            None if calls.is_empty() => {}
            None => {
                return Err(Fault::ProtocolError(
                    "a tool call although no tools were offered".to_owned(),
                ));
            }
        }
        Ok(calls)
    }
}
