//! The one answer to a request, as it is written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::generate::{Finish, TokenLogprob, Usage};
use crate::request::refusal::{Code, Refusal};
use crate::request::tools::ToolCall;
use crate::scheduler::decision::Decision;

/// The one answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The asker's name for the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How it ended.
    pub status: Status,
    /// The answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The answer as a value, if JSON was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// How sure the model is of the label, 0 ..= 1, if labels were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// The probability of each label, if labels were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<BTreeMap<String, f32>>,
    /// How likely each token was, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// The tools that the model calls: carry them out, and ask again with what they returned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Why the answer ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// What it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<ReplyUsage>,
    /// Who answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Why it went there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// When to come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<WireError>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Answered.
    Ok,
    /// No room; come back.
    Busy,
    /// Its deadline passed.
    Expired,
    /// It can't be served.
    Refused,
    /// The same key came before with another request.
    Conflict,
    /// It broke.
    Failed,
}

/// What an answer took, as the asker sees it.
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

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The server's name in `mcp.json`.
    pub server: String,
    /// The model's own name.
    pub model: String,
    /// `device`, `peer` or `cloud`.
    #[serde(rename = "where")]
    pub location: String,
}

/// How long an answer took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Before it started.
    pub queued_ms: u64,
    /// Until the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    /// Until the end.
    pub total_ms: u64,
}

/// What was wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// A word from a closed list.
    pub code: String,
    /// What it was and what to do.
    pub message: String,
    /// The field it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl From<&Refusal> for WireError {
    fn from(refusal: &Refusal) -> WireError {
        WireError {
            code: refusal.code.name().to_owned(),
            message: refusal.message.clone(),
            field: refusal.field.clone(),
        }
    }
}

impl Reply {
    /// The reply to a request that never became a job.
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
        let retry =
            refusal.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
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
