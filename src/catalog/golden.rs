//! The golden set of a task: inputs with their right answers, by which a changed configuration is
//! measured before it counts.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::mistake::Scope;
use super::task::Task;
use crate::limits::golden::GOLDEN_CASES_MAX;

/// The golden set of a task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenSet {
    /// The cases, at least 1 and at most [`GOLDEN_CASES_MAX`].
    pub cases: Vec<GoldenCase>,
    /// The largest loss against the configuration before, in percent of the cases, 0 to 100.
    #[serde(default = "loss_percent")]
    pub loss_percent: u8,
}

/// The loss of a set that states none: one case in fifty.
fn loss_percent() -> u8 {
    2
}

/// One case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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

/// Checks the number of cases, and that each input and answer is one of the task.
pub(super) fn check(task: &Task, scope: &mut Scope<'_>) {
    let Some(GoldenSet { cases, loss_percent }) = &task.golden else { return };
    let mut scope = scope.at("golden");
    if cases.is_empty() || cases.len() > GOLDEN_CASES_MAX {
        let count = cases.len();
        scope.at("cases").add(format!("has {count} cases, must have 1 to {GOLDEN_CASES_MAX}"));
    }
    if *loss_percent > 100 {
        scope.at("loss_percent").add("must be 0 to 100");
    }
    let labels = task.labels.as_ref();
    for (at, case) in cases.iter().enumerate() {
        let mut cases = scope.at("cases");
        let mut scope = cases.item(at);
        if let Err(refusal) =
            task.render(&case.input).map(|_| ()).and(task.ruled(&case.input).map(|_| ()))
        {
            let field = refusal.field.as_deref().unwrap_or("input");
            scope.at(field).add(refusal.message);
        }
        let is_label = |answer: &str| labels.is_none_or(|labels| labels.contains_key(answer));
        let known =
            || labels.into_iter().flat_map(|l| l.keys()).cloned().collect::<Vec<_>>().join(", ");
        match case.answer.as_str() {
            Some(answer) if !is_label(answer) => {
                scope
                    .at("answer")
                    .add(format!("{answer:?} is not a label of the task; labels: {}", known()));
            }
            None if labels.is_some() => {
                scope.at("answer").add(format!("must be a label of the task; labels: {}", known()));
            }
            Some(_) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::expand::Variables;

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

    #[test]
    fn mistakes_of_a_golden_set_are_named() {
        let check = |golden: Value, expected: &[&str]| {
            let file = json!({
                "mcpServers": {"a": {"command": "x"}},
                "pilotlight": {"tasks": {"t": {
                    "template": "{{word}}", "labels": {"hot": [], "cold": []}, "golden": golden,
                }}},
            });
            let (_, found) = super::super::read::read(&file.to_string(), &Variables::new());
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found} is not {expected}");
            }
        };
        let path = "pilotlight.tasks.t.golden";
        check(json!({"cases": [{"input": {"word": "a"}, "answer": "hot"}]}), &[]);
        check(json!({"cases": []}), &[&format!("{path}.cases: has 0 cases")]);
        check(
            json!({"cases": [{"input": {"wort": "a"}, "answer": "warm"}], "loss_percent": 101}),
            &[
                &format!("{path}.loss_percent: must be 0 to 100"),
                &format!("{path}.cases[0].input.word: missing"),
                &format!("{path}.cases[0].answer: \"warm\" is not a label"),
            ],
        );
        check(
            json!({"cases": [{"input": {"word": "a"}, "answer": 4}], "more": 1}),
            &[&format!("{path}.more: unknown field `more`")],
        );
    }
}
