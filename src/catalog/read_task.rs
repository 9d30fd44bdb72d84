//! The reader of `pilotlight.tasks`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::golden;
use super::mistake::Scope;
use super::read_policy::{deadline_range, is_deadline};
use super::shape;
use super::task::Task;
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
            golden::check(&task, &mut scope);
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
