//! A reply in the words of `OpenAI`'s chat completions: whole, and as the parts of a stream.
//!
//! The format is that of the API reference's "The chat completion object" and "The chat completion
//! chunk object"; `pilotlight` is ours.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock;
use crate::model::generate::{Finish, TokenLogprob};
use crate::request::job::JobId;
use crate::request::tools::ToolCall;
use crate::scheduler::decision::Decision;
use crate::wire::{Reply, ReplyUsage, Source, Timing};

/// What each part of an answer says of the whole.
pub(super) struct Head {
    id: String,
    /// Seconds since 1970.
    created: u64,
    /// The model that was asked for.
    model: String,
}

/// A whole answer, or a part of a stream.
#[derive(Serialize)]
pub(super) struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Counted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pilotlight: Option<PilotlightFields<'a>>,
}

/// The one choice of a whole answer.
#[derive(Serialize)]
pub(super) struct Choice<'a> {
    index: u8,
    message: Said<'a>,
    logprobs: Option<Likely<'a>>,
    finish_reason: &'static str,
}

/// What the model says and calls; a call alone has no text.
#[derive(Serialize)]
struct Said<'a> {
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
    logprobs: Option<Likely<'a>>,
    finish_reason: Option<&'static str>,
}

/// What a part of a stream adds.
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
struct Likely<'a> {
    content: &'a [TokenLogprob],
}

#[derive(Serialize)]
struct Call<'a> {
    /// In a stream, its place.
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
struct Counted {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: Details,
}

#[derive(Serialize)]
struct Details {
    cached_tokens: u32,
}

/// What no other API says: who answered, why, and how long it took.
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
    /// That of the answer to this job, which asked for this model.
    pub(super) fn new(job: JobId, model: String) -> Head {
        let created = clock::since_epoch().as_secs();
        Head { id: format!("chatcmpl-{}", job.0), created, model }
    }

    /// A whole answer.
    pub(super) fn whole<'a>(&'a self, reply: &'a Reply) -> Completion<'a, Choice<'a>> {
        let text = reply.text.as_deref();
        let content = text.filter(|text| reply.tool_calls.is_empty() || !text.is_empty());
        let tool_calls = reply.tool_calls.iter().map(|call| Call::of(call, None)).collect();
        let logprobs = Some(reply.logprobs.as_slice()).filter(|tokens| !tokens.is_empty());
        let choice = Choice {
            index: 0,
            message: Said { role: "assistant", content, refusal: None, tool_calls },
            logprobs: logprobs.map(|content| Likely { content }),
            finish_reason: finish_reason(reply),
        };
        Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: reply.source.as_ref().map_or(&self.model, |source| &source.model),
            choices: vec![choice],
            usage: reply.usage.map(Counted::from),
            pilotlight: Some(PilotlightFields::of(reply)),
        }
    }

    /// The first part of a stream.
    pub(super) fn opening(&self) -> Completion<'_, PartChoice<'_>> {
        self.part(Delta { role: Some("assistant"), content: Some(""), ..Delta::default() }, None)
    }

    /// One piece of text.
    pub(super) fn piece<'a>(&'a self, text: &'a str) -> Completion<'a, PartChoice<'a>> {
        self.part(Delta { content: Some(text), ..Delta::default() }, None)
    }

    /// What comes behind the last piece: the calls of tools, the end, the usage if it is wanted.
    pub(super) fn endings<'a>(
        &'a self,
        reply: &'a Reply,
        with_usage: bool,
    ) -> Vec<Completion<'a, PartChoice<'a>>> {
        let mut last = Vec::new();
        if !reply.tool_calls.is_empty() {
            // each whole, with its place
            let calls = reply.tool_calls.iter().enumerate();
            let tool_calls = calls.map(|(at, call)| Call::of(call, Some(at))).collect();
            last.push(self.part(Delta { tool_calls, ..Delta::default() }, None));
        }
        let end = self.part(Delta::default(), Some(finish_reason(reply)));
        last.push(Completion { pilotlight: Some(PilotlightFields::of(reply)), ..end });
        if with_usage {
            let usage = reply.usage.map(Counted::from);
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
    /// Of this reply.
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

impl From<ReplyUsage> for Counted {
    fn from(usage: ReplyUsage) -> Counted {
        Counted {
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
