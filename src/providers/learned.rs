//! What is known from a provider's refusals about the form of its requests.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::StatusCode;
use serde_json::Value;

use crate::catalog::provider::{MaxTokensField, Provider, ProviderKind};

/// Parts of the messages that refuse a field by its name, in lower case.
const REFUSES: [&str; 8] = [
    "deprecated",
    "instead",
    "not allowed",
    "not permitted",
    "support",
    "unexpected",
    "unknown",
    "unrecognized",
];

/// What was learned of one provider.
#[derive(Default)]
pub(super) struct LearnedForm {
    /// The provider takes the token limit under the name that its entry does not state.
    takes_other: AtomicBool,
}

impl LearnedForm {
    /// The field of the token limit for this provider; `None` for a protocol with one name alone.
    pub(super) fn max_tokens_field(&self, entry: &Provider) -> Option<MaxTokensField> {
        let stated = entry.max_tokens_field;
        let takes_other = self.takes_other.load(Ordering::Relaxed);
        (entry.kind == ProviderKind::OpenAi)
            .then(|| if takes_other { stated.other() } else { stated })
    }

    /// Remembers the field that the provider has taken.
    pub(super) fn keep(&self, entry: &Provider, taken: MaxTokensField) {
        self.takes_other.store(taken != entry.max_tokens_field, Ordering::Relaxed);
    }
}

/// Whether this response refuses the field with the token limit and proposes the other one.
pub(super) fn proposes_other(status: StatusCode, sent: MaxTokensField, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    status == StatusCode::BAD_REQUEST
        && message.contains(sent.name())
        && message.contains(sent.other().name())
        && REFUSES.iter().any(|part| message.contains(part))
}

/// Gives the token limit of a request this name.
pub(super) fn rename(body: &mut Value, to: MaxTokensField) {
    let Value::Object(fields) = body else { return };
    if let Some(limit) = fields.shift_remove(to.other().name()) {
        fields.insert(to.name().to_owned(), limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_that_names_both_fields_proposes_the_other() {
        let (old, new) = (MaxTokensField::MaxTokens, MaxTokensField::MaxCompletionTokens);
        let check = |sent: MaxTokensField, message: &str, expected: bool| {
            let proposes = proposes_other(StatusCode::BAD_REQUEST, sent, message);
            assert_eq!(proposes, expected, "{message}");
        };
        let unsupported = "Unsupported parameter: 'max_tokens' is not supported with this model. \
                           Use 'max_completion_tokens' instead.";
        check(old, unsupported, true);
        check(new, "Unknown field max_completion_tokens, expected max_tokens", true);
        check(old, "Unsupported parameter: max_tokens", false);
        check(old, "max_completion_tokens is not supported", false);
        check(old, "max_tokens (max_completion_tokens) must be 4096 at most", false);
        check(new, "Extra inputs are not permitted: max_completion_tokens", false);
        assert!(!proposes_other(StatusCode::NOT_FOUND, old, unsupported));
    }
}
