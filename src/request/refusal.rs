//! Refusal: why a request is not served, as reported to the client.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::REASON_BYTES_MAX;

/// Longest message of a refusal, and longest path of its field, in bytes: they may repeat names of the
/// request, and are sent and logged. Our longest list of known names is the fields of a request, 700 bytes.
const REFUSAL_BYTES_MAX: usize = 2 * REASON_BYTES_MAX;

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
    /// A refusal about the request as a whole. A message may repeat a part of the request, so it is cut
    /// off at a kilobyte, as one line.
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        let message = one_line(&message.into(), REFUSAL_BYTES_MAX);
        Refusal { code, message, field: None, retry_after: None }
    }

    /// A refusal about one field; about the whole if its name is empty.
    pub fn field(code: Code, field: impl Into<String>, message: impl Into<String>) -> Refusal {
        let field = one_line(&field.into(), REFUSAL_BYTES_MAX);
        Refusal {
            field: Some(field).filter(|field| !field.is_empty()),
            ..Refusal::new(code, message)
        }
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

/// A text of a client or a remote server as one line of at most `most` bytes, without control characters: it is
/// shown in logs and on terminals.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for shown in text.chars().filter(|c| !c.is_control() && !is_direction(*c)) {
        if line.len() + shown.len_utf8() > most {
            break;
        }
        line.push(shown);
    }
    line
}

/// Whether the character changes the direction in which a terminal shows the text around it.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_are_one_line() {
        assert_eq!(one_line("a\u{1b}[2Jb\r\nc\u{202E}d", 64), "a[2Jbcd");
        assert_eq!(one_line("ääää", 5), "ää");
    }

    #[test]
    fn a_refusal_repeats_little_of_a_request() {
        let long = "ä\u{1b}[2J\n".repeat(REFUSAL_BYTES_MAX);
        let refusal = Refusal::field(Code::Invalid, long.clone(), long);
        for text in [&refusal.message, refusal.field.as_ref().unwrap()] {
            assert!((1..=REFUSAL_BYTES_MAX).contains(&text.len()), "{}", text.len());
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        // the name of a member may be empty
        assert_eq!(Refusal::field(Code::Invalid, "\0", "unknown").field, None);
    }
}
