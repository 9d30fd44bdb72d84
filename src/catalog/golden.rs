//! The golden set of a task: inputs with their right answers, by which a changed configuration is
//! measured before it counts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::limits::golden::GOLDEN_CASES_MAX;

/// The golden set of a task.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GoldenSet {
    /// The cases, at least one.
    #[schemars(length(min = 1, max = GOLDEN_CASES_MAX))]
    pub cases: Vec<GoldenCase>,
    /// The largest loss against the configuration before, in percent of the cases, 0 to 100.
    #[serde(default = "loss_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub loss_percent: u8,
}

/// The loss of a set that states none: one case in fifty.
fn loss_percent() -> u8 {
    2
}

/// One case.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GoldenCase {
    /// The input of the task.
    pub input: Map<String, Value>,
    /// The right answer: a text or a label, or a JSON value.
    pub answer: Value,
}

impl GoldenCase {
    /// Whether this answer of a model is right.
    pub fn is_answered_by(&self, text: &str) -> bool {
        is_same(&self.answer, text)
    }
}

/// Whether a text equals the right answer: as text but for case, surrounding white space and a full stop,
/// or as JSON.
pub fn is_same(right: &Value, text: &str) -> bool {
    let plain = |text: &str| text.trim().trim_end_matches('.').trim_end().to_lowercase();
    right.as_str().is_some_and(|right| plain(right) == plain(text))
        || serde_json::from_str::<Value>(text).is_ok_and(|value| value == *right)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_compared_as_text_or_json() {
        for (right, text, same) in [
            (json!("Hall 4"), " hall 4.\n", true),
            (json!("Hall 4"), "hall 40", false),
            (json!({"a": 1, "b": 2}), r#"{"b": 2, "a": 1}"#, true),
            (json!({"a": 1}), r#"{"a": 2}"#, false),
            (json!({"a": 1}), "a: 1", false),
            (json!(4), "4", true),
            (json!("4"), "4", true),
        ] {
            assert_eq!(is_same(&right, text), same, "{right} {text}");
        }
    }
}
