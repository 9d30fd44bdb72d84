//! The port: the one trait of everything that can answer a prompt, and how its answer flows.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

use super::context::ModelContext;
use crate::limits::CHUNKS_WAITING_MAX;
use crate::request::job::Job;
use crate::request::labels::Classification;
use crate::request::refusal::Refusal;
use crate::request::tools::ToolCall;

/// A future that can be sent and kept.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Anything that can answer a prompt: an engine, a cloud, a peer, this whole service.
pub trait Generate: Send + Sync {
    /// Writes the answer to `out`, chunk by chunk, in order, and says how it ended.
    ///
    /// Returns [`Fault::Cancelled`] soon after the reader of `out` has gone.
    fn generate<'a>(
        &'a self,
        job: &'a Job,
        out: &'a mut Out,
    ) -> BoxFuture<'a, Result<Usage, Fault>>;

    /// What it is and can do.
    fn context(&self) -> &ModelContext;

    /// From now on it may compute for this share of the time only, 0 ..= 1. What can't be slowed
    /// down takes no notice.
    fn pace(&self, _duty: f32) {}
}

/// A piece of an answer: whole characters, and its place in the answer from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its place.
    pub n: u32,
    /// Its text, valid UTF-8. An empty one is a sign of life and no piece of the answer.
    pub text: String,
}

/// Where a backend writes an answer. It numbers the chunks, so that they can't be out of order.
#[derive(Debug)]
pub struct Out {
    to: mpsc::Sender<Chunk>,
    written: u32,
}

/// The reader has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A bounded line for one answer: the backend's end and the asker's.
pub fn channel() -> (Out, mpsc::Receiver<Chunk>) {
    let (to, from) = mpsc::channel(CHUNKS_WAITING_MAX);
    (Out { to, written: 0 }, from)
}

impl Out {
    /// Writes one piece; waits while the reader is behind.
    ///
    /// # Errors
    /// [`Gone`] if the reader has gone: the backend should stop.
    pub async fn write(&mut self, text: String) -> Result<(), Gone> {
        let chunk = Chunk { n: self.written, text };
        self.to.send(chunk).await.map_err(|_| Gone)?;
        self.written += 1;
        Ok(())
    }

    /// The same from a thread of its own, outside the runtime.
    ///
    /// # Errors
    /// [`Gone`] if the reader has gone: the backend should stop.
    pub fn write_blocking(&mut self, text: String) -> Result<(), Gone> {
        let chunk = Chunk { n: self.written, text };
        self.to.blocking_send(chunk).map_err(|_| Gone)?;
        self.written += 1;
        Ok(())
    }

    /// Shows that work goes on; never waits, and is dropped if the reader is behind.
    pub fn alive(&self) {
        let _ = self.to.try_send(Chunk { n: self.written, text: String::new() });
    }

    /// Whether the reader has gone.
    pub fn is_gone(&self) -> bool {
        self.to.is_closed()
    }

    /// Pieces written so far.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Ends when the reader has gone.
    pub async fn gone(&self) {
        self.to.closed().await;
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It reached its bound of tokens or the end of the context.
    Length,
    /// The model calls tools and waits for what they return.
    ToolCalls,
}

/// What an answer took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt, the template's included.
    pub prompt_tokens: u32,
    /// Of these, tokens that were still in memory from before.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Pieces the answer was sent in; a reader that has fewer has lost some.
    pub chunks: u32,
    /// Milliseconds spent reading the prompt.
    #[serde(default)]
    pub prefill_ms: f64,
    /// Milliseconds spent writing the answer.
    #[serde(default)]
    pub decode_ms: f64,
    /// How likely each token was, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// The tools that it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// What it says of a text that was to be classified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classification: Option<Classification>,
    /// What it cost.
    #[serde(default)]
    pub cost_usd: f64,
    /// The name of the model that answered.
    #[serde(default)]
    pub model: String,
    /// The decision record of a whole service that answered, as it was made there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Value>,
}

/// How likely a token of an answer was, in the words of `OpenAI`'s chat completions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token and its probability.
    #[serde(flatten)]
    pub token: Logprob,
    /// The natural logarithm of its probability among the tokens that the format allowed at its place;
    /// 0 if there was no other, none if every token was allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_logprob: Option<f32>,
    /// The likeliest tokens at its place, the first first.
    pub top_logprobs: Vec<Logprob>,
}

/// A token and its probability as the model gives it, before any sampling setting or constraint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// Its text; what is no whole character is shown as U+FFFD.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

impl Usage {
    /// The usage of an answer of one piece for which nothing was computed yet.
    pub fn one_piece(model: impl Into<String>) -> Usage {
        Usage {
            finish: Finish::Stop,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
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

/// What went wrong at a backend. The scheduler may try another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The asker has gone or the deadline has passed; the work was stopped.
    Cancelled,
    /// The backend can't do this job, and would not on another try: too long, impossible schema.
    Rejected(Refusal),
    /// The backend can't be asked: not started, not reachable, overloaded, out of memory.
    Unavailable {
        /// What went wrong.
        reason: String,
        /// Time before which another attempt makes no sense, if the backend stated it.
        retry_after: Option<Duration>,
    },
    /// The backend ended in the middle of the work.
    Crashed(String),
    /// The backend said nothing for too long.
    TimedOut(String),
    /// The backend broke the protocol.
    ProtocolError(String),
}

impl Fault {
    /// [`Fault::Unavailable`] of a backend that did not state when to try again.
    pub fn unavailable(reason: impl Into<String>) -> Fault {
        Fault::Unavailable { reason: reason.into(), retry_after: None }
    }

    /// The word for it in decision records and metrics.
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
