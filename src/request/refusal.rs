//! Refusal: why a request is not served, as reported to the client.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a request is not served, as reported to the client. It has no status code: each client
/// protocol maps it to its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kind of refusal.
    pub code: Code,
    /// What is wrong and what to do about it: lower case, no full stop.
    pub message: String,
    /// The field of the request that is wrong, if one is.
    pub field: Option<String>,
    /// Time after which to retry, for [`Code::Busy`] and [`Code::Unavailable`].
    pub retry_after: Option<Duration>,
}

/// Kinds of refusals; a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request cannot be parsed or violates its format.
    Malformed,
    /// A field has an invalid value.
    Invalid,
    /// A size exceeds its bound.
    TooLarge,
    /// The request names a task, model or tool that does not exist.
    Unknown,
    /// The client is not allowed to do this.
    Forbidden,
    /// No allowed model can do this.
    Incapable,
    /// The same key was used for a different request.
    Conflict,
    /// The queue or a connection limit is full.
    Busy,
    /// The service, or every model that could answer, is unavailable.
    Unavailable,
}

impl Code {
    /// The code in replies and logs.
    pub fn name(self) -> &'static str {
        match self {
            Code::Malformed => "malformed",
            Code::Invalid => "invalid",
            Code::TooLarge => "too_large",
            Code::Unknown => "unknown",
            Code::Forbidden => "forbidden",
            Code::Incapable => "incapable",
            Code::Conflict => "conflict",
            Code::Busy => "busy",
            Code::Unavailable => "unavailable",
        }
    }
}

impl Refusal {
    /// A refusal about the request as a whole.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), field: None, retry_after: None }
    }

    /// A refusal about one field.
    pub fn field(code: Code, field: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { field: Some(field.into()), ..Refusal::new(code, message) }
    }

    /// The same refusal with the time after which to retry.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Refusal {
        Refusal { retry_after: Some(wait), ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}: {field}: {}", self.code.name(), self.message),
            None => write!(f, "{}: {}", self.code.name(), self.message),
        }
    }
}

impl std::error::Error for Refusal {}
