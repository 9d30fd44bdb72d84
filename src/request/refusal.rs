//! Refusal: why a request is not served, as the client is told.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a request is not served, as the asker is told. It has no status code: each door says it
/// in its own protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of no.
    pub code: Code,
    /// What was wrong and what to do about it: lower case, no full stop.
    pub message: String,
    /// The field of the request that it is about.
    pub field: Option<String>,
    /// When to come back, for [`Code::Busy`] and [`Code::Unavailable`].
    pub retry_after: Option<Duration>,
}

/// The closed list of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request can't be read or breaks a rule of its format.
    Malformed,
    /// A field has a value that is not possible.
    Invalid,
    /// Larger than a bound allows.
    TooLarge,
    /// Names a task, model or tool that is not there.
    Unknown,
    /// The asker may not do this.
    Forbidden,
    /// No model that may be used can do this.
    Incapable,
    /// The same key came before with another request.
    Conflict,
    /// There is no room now.
    Busy,
    /// The service or every model that could answer is away now.
    Unavailable,
}

impl Code {
    /// The word for it in replies and logs.
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

    /// The same refusal, with the time after which another attempt makes sense.
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
