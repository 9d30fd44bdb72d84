//! Reply to a request, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::generate::{Finish, TokenLogprob, Usage};
use crate::request::refusal::{Code, Refusal};
use crate::request::tools::ToolCall;
use crate::scheduler::decision::Decision;
use crate::time::millis;

/// Reply to a request; each request gets exactly one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The client's id of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How the request ended.
    pub status: Status,
    /// Text of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer as a JSON value, if the format is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// Confidence of the label, 0 ..= 1, if the request has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// Probability of each label, if the request has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<BTreeMap<String, f32>>,
    /// Log-probability of each token, if requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Tool calls of the model: execute them, and send a request with the results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Finish reason of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// Tokens and cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<ReplyUsage>,
    /// The model that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Decision record of the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Times of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// Time after which to retry, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// The error, if the request was not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The request was answered.
    Ok,
    /// The service is full or unavailable; retry later.
    Busy,
    /// The deadline passed.
    Expired,
    /// The request cannot be served.
    Refused,
    /// The id was already used for a different request.
    Conflict,
    /// A model or the service failed.
    Failed,
}

/// Tokens and cost of an answer, as reported to the client.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReplyUsage {
    /// See [`Usage`].
    pub prompt_tokens: u32,
    /// See [`Usage`].
    pub cached_tokens: u32,
    /// See [`Usage`].
    pub completion_tokens: u32,
    /// See [`Usage`].
    pub cost_usd: f64,
}

impl From<&Usage> for ReplyUsage {
    fn from(usage: &Usage) -> ReplyUsage {
        ReplyUsage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            cost_usd: usage.cost_usd,
        }
    }
}

/// The model that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name of the server in `mcp.json`.
    pub server: String,
    /// Name of the model.
    pub model: String,
    /// `device`, `peer` or `cloud`.
    #[serde(rename = "where")]
    pub location: String,
}

/// Times of an answer in milliseconds since the request arrived.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Until the first attempt started.
    pub queued_ms: u64,
    /// Until the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// Until the end of the answer.
    pub total_ms: u64,
}

/// Error of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// Error code from a closed list.
    pub code: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// The invalid field, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Milliseconds before which another attempt makes no sense, if a backend stated that over MCP;
    /// in a [`Reply`] it is a field of the reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl WireError {
    /// An error that is about no field.
    pub fn new(code: &str, message: &str) -> WireError {
        let (code, message) = (code.to_owned(), message.to_owned());
        WireError { code, message, field: None, retry_after_ms: None }
    }
}

impl From<&Refusal> for WireError {
    fn from(refusal: &Refusal) -> WireError {
        let field = refusal.field.clone();
        WireError { field, ..WireError::new(refusal.code.name(), &refusal.message) }
    }
}

impl Reply {
    /// The reply to a request that was refused before it became a job.
    pub fn refused(id: Option<String>, refusal: &Refusal) -> Reply {
        let status = match refusal.code {
            Code::Busy | Code::Unavailable => Status::Busy,
            Code::Conflict => Status::Conflict,
            Code::Malformed
            | Code::Invalid
            | Code::TooLarge
            | Code::Unknown
            | Code::Forbidden
            | Code::Incapable => Status::Refused,
        };
        let retry = refusal.retry_after.map(millis);
        Reply {
            id,
            status,
            text: None,
            json: None,
            confidence: None,
            scores: None,
            logprobs: Vec::new(),
            tool_calls: Vec::new(),
            finish: None,
            usage: None,
            source: None,
            decision: None,
            timing: None,
            retry_after_ms: retry,
            error: Some(refusal.into()),
        }
    }
}

impl Status {
    /// The word for it in JSON, metrics and log.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Busy => "busy",
            Status::Expired => "expired",
            Status::Refused => "refused",
            Status::Conflict => "conflict",
            Status::Failed => "failed",
        }
    }
}
