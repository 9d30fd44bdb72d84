//! A reply in the format of `OpenAI`'s chat completions, buffered and streamed.
//!
//! The format is that of the API reference's "The chat completion object" and "The chat completion
//! chunk object"; the key `pilotlight` is an addition of this service.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock;
use crate::model::generate::{Finish, TokenLogprob};
use crate::request::job::JobId;
use crate::request::tools::ToolCall;
use crate::scheduler::decision::Decision;
use crate::wire::{Reply, ReplyUsage, Source, Timing};

/// The fields that all parts of one answer share.
pub(super) struct Head {
    id: String,
    /// Seconds since 1970.
    created: u64,
    /// The model of the request.
    model: String,
}

/// A buffered answer, or a part of a stream.
#[derive(Serialize)]
pub(super) struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<CompletionUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pilotlight: Option<PilotlightFields<'a>>,
}

/// The one choice of a buffered answer.
#[derive(Serialize)]
pub(super) struct Choice<'a> {
    index: u8,
    message: AnswerMessage<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

/// The message of the model; one with calls alone has no text.
#[derive(Serialize)]
struct AnswerMessage<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

/// The one choice of a part of a stream.
#[derive(Serialize)]
pub(super) struct PartChoice<'a> {
    index: u8,
    delta: Delta<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

/// The text or calls that a part of a stream adds.
#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: &'a [TokenLogprob],
}

#[derive(Serialize)]
struct Call<'a> {
    /// Position of the call, in a stream only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: &'a str,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: String,
}

#[derive(Serialize)]
struct CompletionUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: Details,
}

#[derive(Serialize)]
struct Details {
    cached_tokens: u32,
}

/// Additions of this service: the model that answered, the decision record, the times.
#[derive(Serialize)]
pub(super) struct PilotlightFields<'a> {
    source: Option<&'a Source>,
    decision: Option<&'a Decision>,
    timing: Option<Timing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scores: Option<&'a BTreeMap<String, f32>>,
}

impl Head {
    /// The head of the answer to this job; `model` is that of the request.
    pub(super) fn new(job: JobId, model: String) -> Head {
        let created = clock::since_epoch().as_secs();
        Head { id: format!("chatcmpl-{}", job.0), created, model }
    }

    /// A buffered answer.
    pub(super) fn completion<'a>(&'a self, reply: &'a Reply) -> Completion<'a, Choice<'a>> {
        let text = reply.text.as_deref();
        let content = text.filter(|text| reply.tool_calls.is_empty() || !text.is_empty());
        let tool_calls = reply.tool_calls.iter().map(|call| Call::of(call, None)).collect();
        let logprobs = Some(reply.logprobs.as_slice()).filter(|tokens| !tokens.is_empty());
        let choice = Choice {
            index: 0,
            message: AnswerMessage { role: "assistant", content, refusal: None, tool_calls },
            logprobs: logprobs.map(|content| Logprobs { content }),
            finish_reason: finish_reason(reply),
        };
        Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: reply.source.as_ref().map_or(&self.model, |source| &source.model),
            choices: vec![choice],
            usage: reply.usage.map(CompletionUsage::from),
            pilotlight: Some(PilotlightFields::of(reply)),
        }
    }

    /// The first part of a stream.
    pub(super) fn opening(&self) -> Completion<'_, PartChoice<'_>> {
        self.part(Delta { role: Some("assistant"), content: Some(""), ..Delta::default() }, None)
    }

    /// One chunk of text.
    pub(super) fn chunk<'a>(&'a self, text: &'a str) -> Completion<'a, PartChoice<'a>> {
        self.part(Delta { content: Some(text), ..Delta::default() }, None)
    }

    /// The parts after the last chunk: tool calls, the end, and the usage if it was requested.
    pub(super) fn endings<'a>(
        &'a self,
        reply: &'a Reply,
        with_usage: bool,
    ) -> Vec<Completion<'a, PartChoice<'a>>> {
        let mut last = Vec::new();
        if !reply.tool_calls.is_empty() {
            // each call is complete and has its position
            let calls = reply.tool_calls.iter().enumerate();
            let tool_calls = calls.map(|(at, call)| Call::of(call, Some(at))).collect();
            last.push(self.part(Delta { tool_calls, ..Delta::default() }, None));
        }
        let end = self.part(Delta::default(), Some(finish_reason(reply)));
        last.push(Completion { pilotlight: Some(PilotlightFields::of(reply)), ..end });
        if with_usage {
            let usage = reply.usage.map(CompletionUsage::from);
            let empty = self.part(Delta::default(), None);
            last.push(Completion { choices: Vec::new(), usage, ..empty });
        }
        last
    }

    fn part<'a>(
        &'a self,
        delta: Delta<'a>,
        finish_reason: Option<&'static str>,
    ) -> Completion<'a, PartChoice<'a>> {
        Completion {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices: vec![PartChoice { index: 0, delta, logprobs: None, finish_reason }],
            usage: None,
            pilotlight: None,
        }
    }
}

impl PilotlightFields<'_> {
    /// The additions of this reply.
    pub(super) fn of(reply: &Reply) -> PilotlightFields<'_> {
        PilotlightFields {
            source: reply.source.as_ref(),
            decision: reply.decision.as_ref(),
            timing: reply.timing,
            confidence: reply.confidence,
            scores: reply.scores.as_ref(),
        }
    }
}

impl<'a> Call<'a> {
    fn of(call: &'a ToolCall, index: Option<usize>) -> Call<'a> {
        let function = Function { name: &call.name, arguments: call.text() };
        Call { index, id: &call.id, r#type: "function", function }
    }
}

impl From<ReplyUsage> for CompletionUsage {
    fn from(usage: ReplyUsage) -> CompletionUsage {
        CompletionUsage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: Details { cached_tokens: usage.cached_tokens },
        }
    }
}

fn finish_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Some(Finish::Length) => "length",
        Some(Finish::ToolCalls) => "tool_calls",
        Some(Finish::Stop) | None => "stop",
    }
}
