//! The reader of `pilotlight.tasks`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::golden::GoldenSet;
use super::mistake::Scope;
use super::read_policy::{deadline_range, is_deadline};
use super::shape;
use super::task::Task;
use crate::limits::golden::GOLDEN_CASES_MAX;
use crate::limits::{NAME_BYTES_MAX, OUTPUT_TOKENS_MAX, RULES_MAX, TASKS_MAX};
use crate::request::job::Strategy;
use crate::request::name::is_name;
use crate::request::schema::{SchemaBounds, SchemaMistake};

/// The tasks whose shape is right, with a mistake for each value that is not.
pub(super) fn read(entries: Vec<(String, Value)>, scope: &mut Scope<'_>) -> BTreeMap<String, Task> {
    if entries.len() > TASKS_MAX {
        scope.add(format!("{} tasks, at most {TASKS_MAX}", entries.len()));
    }
    let mut tasks = BTreeMap::new();
    for (name, value) in entries {
        let mut scope = scope.at(&name);
        if !is_name(&name) {
            scope.add("a task's name is [A-Za-z0-9_-]{1,64}");
        }
        if let Some(task) = shape::read::<Task>(value, &mut scope) {
            check(&task, &mut scope);
            check_labels(&task, &mut scope);
            check_golden(&task, &mut scope);
            tasks.insert(name, task);
        }
    }
    tasks
}

fn check(task: &Task, scope: &mut Scope<'_>) {
    let mut mistake = |key: &str, message: &str| scope.at(key).add(message);
    if task.template.trim().is_empty() {
        mistake("template", "is empty");
    }
    if let Some(schema) = &task.schema {
        let bounded = SchemaBounds::default().check(schema).map_err(SchemaMistake::message);
        if let Err(message) = bounded.and_then(|()| schema.compile()) {
            mistake("schema", &message);
        }
    }
    if task.max_tokens.is_some_and(|n| !(1..=OUTPUT_TOKENS_MAX).contains(&n)) {
        mistake("max_tokens", &format!("must be 1 to {OUTPUT_TOKENS_MAX}"));
    }
    if task.deadline_ms.is_some_and(|ms| !is_deadline(ms)) {
        mistake("deadline_ms", &deadline_range());
    }
    if task.skill.as_ref().is_some_and(|skill| skill.is_empty() || skill.len() > NAME_BYTES_MAX) {
        mistake("talent", &format!("must have 1 to {NAME_BYTES_MAX} bytes"));
    }
    if task.threshold.is_some_and(|t| !(t <= 0.0 && t.is_finite())) {
        mistake("threshold", "must be a log-probability: 0 or less");
    }
    if task.threshold.is_some() && task.strategy != Strategy::Cascade {
        mistake("threshold", "requires \"strategy\": \"cascade\"");
    }
    if task.judge.is_some() && task.strategy != Strategy::Compare {
        mistake("judge", "requires \"strategy\": \"compare\"");
    }
    if task.strategy != Strategy::Single && task.labels.is_some() {
        mistake("strategy", "applies to text and JSON only; for labels use margin");
    }
}

/// Checks labels, margin and rules.
fn check_labels(task: &Task, scope: &mut Scope<'_>) {
    let Some(labels) = task.labels() else {
        if task.margin.is_some() {
            scope.at("margin").add("requires labels");
        }
        if !task.rules.is_empty() {
            let message = "require labels";
            scope.at("rules").add(message);
        }
        return;
    };
    if task.schema.is_some() {
        scope.at("schema").add("cannot be combined with labels; remove it");
    }
    if !(0.0..=1.0).contains(&labels.margin) {
        scope.at("margin").add("must be 0 to 1");
    }
    if let Err((place, message)) = labels.check() {
        scope.at(&format!("labels{place}")).add(message);
    }
    if task.rules.len() > RULES_MAX {
        scope.at("rules").add(format!("{} rules, at most {RULES_MAX}", task.rules.len()));
    }
    for (at, rule) in task.rules.iter().enumerate() {
        if !labels.examples.contains_key(&rule.label) {
            let known: Vec<&str> = labels.names().collect();
            let message = format!(
                "{:?} is not a label of the task; labels: {}",
                rule.label,
                known.join(", ")
            );
            scope.at("rules").item(at).at("label").add(message);
        }
    }
}

/// Checks the golden set: the number of cases, and that each input and answer is one of the task.
fn check_golden(task: &Task, scope: &mut Scope<'_>) {
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
    fn mistakes_of_a_golden_set_are_named() {
        let check = |golden: Value, expected: &[&str]| {
            let file = json!({
                "mcpServers": {"a": {"command": "x"}},
                "pilotlight": {"tasks": {"t": {
                    "template": "{{word}}", "labels": {"hot": [], "cold": []}, "golden": golden,
                }}},
            });
            let (_, found) = super::super::read::read(&file.to_string(), &Variables::new());
            let named = found.iter().map(|one| format!("{}: {}", one.path, one.message));
            let found: Vec<String> = named.collect();
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
