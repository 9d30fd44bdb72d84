//! An answer as it comes in from a provider, whatever its protocol: piece by piece to the asker.

use std::time::Instant;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde_json::Map;

use super::Protocol;
use super::stream::{Events, whole};
use crate::clock::now;
use crate::limits::{ANSWER_BYTES_MAX, TOOL_CALLS_MAX};
use crate::model::generate::{Fault, Finish, Out, TokenLogprob, Usage};
use crate::request::format;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::request::tools::{ToolCall, Tools};

/// What one event says, or a whole answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct News {
    /// More of the answer.
    pub(super) text: Option<String>,
    /// Why it ends.
    pub(super) finish: Option<Finish>,
    /// Tokens of the prompt, cached ones included.
    pub(super) prompt_tokens: Option<u32>,
    /// Of these, cached ones.
    pub(super) cached_tokens: Option<u32>,
    /// Tokens of the answer so far.
    pub(super) completion_tokens: Option<u32>,
    /// More of the tools that it calls.
    pub(super) calls: Vec<CallPiece>,
    /// How likely these tokens were.
    pub(super) logprobs: Vec<TokenLogprob>,
    /// Nothing comes after this.
    pub(super) is_last: bool,
}

/// A piece of a call: its head once, its arguments in pieces of text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CallPiece {
    /// Which of several.
    pub(super) place: u32,
    /// The provider's name for it.
    pub(super) id: Option<String>,
    /// The tool's name.
    pub(super) name: Option<String>,
    /// More of the arguments, a JSON object as text.
    pub(super) arguments: Option<String>,
}

/// A call as far as it has come in.
#[derive(Default)]
struct Partial {
    place: u32,
    id: String,
    name: String,
    arguments: String,
}

struct Reader<'o> {
    out: &'o mut Out,
    asked: Instant,
    first: Option<Instant>,
    format: &'o Format,
    tools: Option<&'o Tools>,
    /// JSON comes as the arguments of a call; see [`Protocol::json_by_tool`].
    is_called: bool,
    calls: Vec<Partial>,
    /// The answer, if it must be JSON.
    kept: Option<String>,
    bytes: usize,
    pieces: u32,
    known: News,
}

/// Writes the answer to `out` piece by piece.
///
/// # Errors
/// [`Fault::ProtocolError`] if it is not what the protocol says, or not whole; see the table of the room.
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
        asked: now(),
        first: None,
        format: &job.format,
        tools: job.tools.as_deref(),
        is_called: protocol.json_by_tool && job.format != Format::Text,
        calls: Vec::new(),
        kept: (job.format != Format::Text).then(String::new),
        bytes: 0,
        pieces: 0,
        known: News::default(),
    };
    match kind.as_str() {
        "text/event-stream" => reader.follow(Events::of(response), protocol).await?,
        #[cfg(feature = "bedrock")]
        "application/vnd.amazon.eventstream" => {
            reader.follow(Events::framed(response), protocol).await?;
        }
        // some answer whole, whatever they are asked
        "application/json" => {
            let body = whole(response).await?;
            reader.take((protocol.parse)(&body)?).await?;
        }
        other => return Err(Fault::ProtocolError(format!("unexpected content type {other:?}"))),
    }
    reader.end()
}

/// The fault of a provider that will not write this.
pub(super) fn forbidden() -> Fault {
    Fault::Rejected(Refusal::new(
        Code::Forbidden,
        "the provider's usage policy forbids this answer",
    ))
}

/// The fault of a provider that says in the middle of an answer that it can't go on.
pub(super) fn gave_up(message: Option<&str>) -> Fault {
    Fault::Crashed(format!("the provider aborted: {}", message.unwrap_or("without a reason")))
}

/// The fault of an answer that is not what the protocol says.
pub(super) fn unreadable(error: &serde_json::Error) -> Fault {
    Fault::ProtocolError(format!("invalid response: {error}"))
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
            let Some(data) = event else {
                // not all say that they are done
                return if self.known.finish.is_some() { Ok(()) } else { Err(early()) };
            };
            let news = (protocol.parse)(&data?)?;
            let is_last = news.is_last;
            self.take(news).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, news: News) -> Result<(), Fault> {
        let known = &mut self.known;
        known.logprobs.extend(news.logprobs);
        known.finish = news.finish.or(known.finish);
        known.prompt_tokens = news.prompt_tokens.or(known.prompt_tokens);
        known.cached_tokens = news.cached_tokens.or(known.cached_tokens);
        known.completion_tokens = news.completion_tokens.or(known.completion_tokens);
        let text = if self.is_called {
            // what it says besides is no part of the JSON
            Some(news.calls.into_iter().filter_map(|piece| piece.arguments).collect())
        } else {
            self.take_calls(news.calls)?;
            news.text
        };
        match text.filter(|text: &String| !text.is_empty()) {
            Some(text) => self.write(text).await,
            None => {
                self.out.alive();
                Ok(())
            }
        }
    }

    fn take_calls(&mut self, pieces: Vec<CallPiece>) -> Result<(), Fault> {
        for CallPiece { place, id, name, arguments } in pieces {
            // some say the head of a call with each piece, and some give all calls one place
            let is_it = |call: &Partial| {
                let is_new = id.as_ref().is_some_and(|id| !call.id.is_empty() && call.id != *id);
                call.place == place && !is_new
            };
            let known = self.calls.iter().rposition(is_it);
            let at = known.unwrap_or_else(|| {
                self.calls.push(Partial { place, ..Partial::default() });
                self.calls.len() - 1
            });
            let call = &mut self.calls[at];
            for (known, told) in [(&mut call.id, id), (&mut call.name, name)] {
                if let (true, Some(told)) = (known.is_empty(), told) {
                    self.bytes += told.len();
                    *known = told;
                }
            }
            let more = arguments.unwrap_or_default();
            self.bytes += more.len();
            call.arguments.push_str(&more);
            if self.bytes > ANSWER_BYTES_MAX || self.calls.len() > TOOL_CALLS_MAX {
                return Err(Fault::ProtocolError("too many tool calls".to_owned()));
            }
        }
        Ok(())
    }

    async fn write(&mut self, text: String) -> Result<(), Fault> {
        self.first.get_or_insert_with(now);
        self.bytes += text.len();
        self.pieces += 1;
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Fault::ProtocolError("the answer exceeds the size limit".to_owned()));
        }
        if let Some(kept) = &mut self.kept {
            kept.push_str(&text);
        }
        self.out.write(text).await.map_err(|_| Fault::Cancelled)
    }

    fn end(mut self) -> Result<Usage, Fault> {
        let finish = self.known.finish.ok_or_else(early)?;
        let tool_calls = self.called(finish)?;
        let finish = match finish {
            Finish::Length => Finish::Length,
            // some say that they stopped where they call, others the other way round
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
            // one that does not count is taken to write a token a piece
            completion_tokens: self.known.completion_tokens.unwrap_or(self.pieces),
            chunks: self.out.written(),
            prefill_ms: first.duration_since(self.asked).as_secs_f64() * 1e3,
            logprobs: self.known.logprobs,
            decode_ms: ended.duration_since(first).as_secs_f64() * 1e3,
            ..Usage::one_piece("")
        })
    }

    /// The calls, which must be what was offered. Of an answer that was cut off none counts: the last
    /// is not whole, and nobody knows what would have come behind it.
    fn called(&mut self, finish: Finish) -> Result<Vec<ToolCall>, Fault> {
        let partial = std::mem::take(&mut self.calls);
        if finish == Finish::Length {
            return Ok(Vec::new());
        }
        let calls = partial.into_iter().enumerate().map(|(n, call)| {
            let arguments = match call.arguments.trim() {
                "" => Ok(Map::new()),
                text => serde_json::from_str(text),
            };
            let id = if call.id.is_empty() { format!("call_{n}") } else { call.id };
            let arguments = arguments.map_err(|e| {
                Fault::ProtocolError(format!("the arguments of a call are not valid JSON: {e}"))
            })?;
            Ok(ToolCall { id, name: call.name, arguments })
        });
        let calls = calls.collect::<Result<Vec<ToolCall>, Fault>>()?;
        if finish == Finish::ToolCalls && calls.is_empty() && !self.is_called {
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
