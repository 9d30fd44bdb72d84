//! [`Generate`], the one trait of everything that answers a prompt: usage of an answer, faults.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::context::ModelContext;
use super::out::Out;
use crate::request::job::Job;
use crate::request::labels::Classification;
use crate::request::refusal::Refusal;
use crate::request::tools::ToolCall;

/// A future that can be sent and stored.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Anything that can answer a prompt: an engine, a cloud, a peer, this whole service.
pub trait Generate: Send + Sync {
    /// Writes the answer to `out`, piece by piece, in order, and returns how it ended. It drops `out`
    /// before it returns.
    ///
    /// Returns [`Fault::Cancelled`] soon after the reader of `out` has gone.
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>>;

    /// What the model is and can do.
    fn context(&self) -> &ModelContext;

    /// Limits how the model computes. A model that can't be limited ignores it.
    fn pace(&self, _pace: Pace) {}
}

/// Limits of the computing of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Share of the time in which it may compute, 0 ..= 1.
    pub duty: f32,
    /// Most answers that it computes at once, at least 1: the most urgent ones.
    pub width: u32,
}

impl Default for Pace {
    /// No limits.
    fn default() -> Pace {
        Pace { duty: 1.0, width: u32::MAX }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached its maximum of tokens or the end of the context.
    Length,
    /// The model calls tools and waits for what they return.
    ToolCalls,
}

/// What an answer took: tokens, time and money.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt, the chat template's included.
    pub prompt_tokens: u32,
    /// Of these, tokens that were in the key-value cache already.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Of these, tokens for which the format left no choice: they take an engine the time of reading.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub forced_tokens: u32,
    /// Number of pieces of the answer; a reader that received fewer has lost some.
    pub chunks: u32,
    /// Milliseconds spent reading the prompt, and the forced tokens.
    #[serde(default)]
    pub prefill_ms: f64,
    /// Milliseconds spent writing the answer.
    #[serde(default)]
    pub decode_ms: f64,
    /// The probability of each token, if the request asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// The tools that it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The label of a text that was to be classified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// Cost in US dollars.
    #[serde(default)]
    pub cost_usd: f64,
    /// The name of the model that answered.
    #[serde(default)]
    pub model: String,
    /// The decision record of a remote service that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Value>,
}

/// The probability of a token of an answer, in the fields of `OpenAI`'s chat completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token and its probability.
    #[serde(flatten)]
    pub token: Logprob,
    /// The natural logarithm of its probability among the tokens that the format allowed at its place;
    /// 0 if there was no other, none if every token was allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_logprob: Option<f32>,
    /// The likeliest tokens at its place, in falling order.
    pub top_logprobs: Vec<Logprob>,
}

/// A token and its probability as the model gives it, before any sampling setting or constraint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// Its text; an incomplete character is shown as U+FFFD.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Usage {
    /// The usage of an answer in one piece, all counters zero.
    pub fn one_piece(model: impl Into<String>) -> Usage {
        Usage {
            finish: Finish::Stop,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            forced_tokens: 0,
            chunks: 1,
            prefill_ms: 0.0,
            decode_ms: 0.0,
            logprobs: Vec::new(),
            tool_calls: Vec::new(),
            classification: None,
            cost_usd: 0.0,
            model: model.into(),
            decision: None,
        }
    }
}

/// A failed attempt at a backend. The scheduler may try another backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The client has gone or the deadline has passed; the work was stopped.
    Cancelled,
    /// The backend can't do this job, on another try neither: prompt too long, impossible schema.
    Rejected(Refusal),
    /// The backend takes no requests: not started, not reachable, overloaded, out of memory.
    Unavailable {
        /// What went wrong.
        reason: String,
        /// Time before which another attempt makes no sense, if the backend stated it.
        retry_after: Option<Duration>,
    },
    /// The backend ended in the middle of the work.
    Crashed(String),
    /// The backend sent nothing for too long.
    TimedOut(String),
    /// The backend violated the protocol.
    ProtocolError(String),
}

impl Fault {
    /// [`Fault::Unavailable`] of a backend that did not state when to try again.
    pub fn unavailable(reason: impl Into<String>) -> Fault {
        Fault::Unavailable { reason: reason.into(), retry_after: None }
    }

    /// The fault with its message changed.
    #[must_use]
    pub fn map_text(self, change: impl Fn(&str) -> String) -> Fault {
        match self {
            Fault::Cancelled => Fault::Cancelled,
            Fault::Rejected(refusal) => {
                Fault::Rejected(Refusal { message: change(&refusal.message), ..refusal })
            }
            Fault::Unavailable { reason, retry_after } => {
                Fault::Unavailable { reason: change(&reason), retry_after }
            }
            Fault::Crashed(why) => Fault::Crashed(change(&why)),
            Fault::TimedOut(why) => Fault::TimedOut(change(&why)),
            Fault::ProtocolError(why) => Fault::ProtocolError(change(&why)),
        }
    }

    /// Its name in decision records and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Cancelled => "cancelled",
            Fault::Rejected(_) => "unfit",
            Fault::Unavailable { .. } => "away",
            Fault::Crashed(_) => "crashed",
            Fault::TimedOut(_) => "hung",
            Fault::ProtocolError(_) => "broken",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Cancelled => f.write_str("cancelled"),
            Fault::Rejected(refusal) => write!(f, "rejected: {refusal}"),
            Fault::Unavailable { reason, .. } => write!(f, "unavailable: {reason}"),
            Fault::Crashed(why) => write!(f, "crashed: {why}"),
            Fault::TimedOut(why) => write!(f, "timed out: {why}"),
            Fault::ProtocolError(why) => write!(f, "protocol error: {why}"),
        }
    }
}

impl std::error::Error for Fault {}
