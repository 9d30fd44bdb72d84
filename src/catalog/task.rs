//! Tasks: prompts with places to fill in, the labels to choose from, and rules that need no model.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::catalog::{Mistake, deadline_range, is_deadline};
use super::rule::TaskRule;
use crate::limits::{NAME_BYTES_MAX, OUTPUT_TOKENS_MAX, RULES_MAX, TASKS_MAX};
use crate::request::job::Strategy;
use crate::request::labels::{Classification, Labels};
use crate::request::refusal::{Code, Refusal};

/// A named prompt with places to fill in.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The prompt; `{{name}}` is replaced by the input of that name. For a task with labels, the
    /// text that is classified.
    pub template: String,
    /// The shape of the answer.
    #[serde(default)]
    pub schema: Option<Value>,
    /// The labels to choose from, each with its examples.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, Vec<String>>>,
    /// See [`Labels::margin`].
    #[serde(default)]
    pub margin: Option<f32>,
    /// Looked at in order before any model is asked; the first that holds gives the answer.
    #[serde(default)]
    pub rules: Vec<TaskRule>,
    /// How models work together on it.
    #[serde(default)]
    pub strategy: Strategy,
    /// With the strategy `cascade`, the mean log-probability of its tokens from which on an answer of
    /// the device is good enough; `pilotlight calibrate` finds it.
    #[serde(default)]
    pub threshold: Option<f32>,
    /// With the strategy `compare`, the model that says which answer is best where none agree.
    #[serde(default)]
    pub judge: Option<String>,
    /// A talent that the model must state.
    #[serde(rename = "talent", default)]
    pub skill: Option<String>,
    /// Most tokens of the answer.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Milliseconds for the answer.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

impl Task {
    /// The prompt with the input's values in their places.
    ///
    /// Text goes in as it is, everything else as JSON. Values are not expanded again.
    ///
    /// # Errors
    /// A refusal that names the value that is missing or has no place in the template and no rule.
    pub fn render(&self, input: &Map<String, Value>) -> Result<String, Refusal> {
        let mut used: Vec<&str> = self.rules.iter().flat_map(|rule| rule.when.names()).collect();
        let mut out = String::with_capacity(self.template.len());
        let mut rest = self.template.as_str();
        // bounded: each turn takes one place off the template
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                break;
            };
            let name = name.trim();
            out.push_str(before);
            match input.get(name) {
                Some(Value::String(text)) => out.push_str(text),
                Some(value) => out.push_str(&value.to_string()),
                None => {
                    let message = format!("missing: the task's template contains {{{{{name}}}}}");
                    return Err(Refusal::field(Code::Invalid, format!("input.{name}"), message));
                }
            }
            used.push(name);
            rest = after;
        }
        out.push_str(rest);
        match input.keys().find(|key| !used.contains(&key.as_str())) {
            None => Ok(out),
            Some(extra) => {
                let message = "unknown value: neither the task's template nor its rules use it";
                Err(Refusal::field(Code::Invalid, format!("input.{extra}"), message))
            }
        }
    }

    /// The answer of the first rule that holds for this input.
    ///
    /// # Errors
    /// A refusal that names a value that a rule can't compare.
    pub fn ruled(&self, input: &Map<String, Value>) -> Result<Option<Classification>, Refusal> {
        for rule in &self.rules {
            if rule.when.holds(input)? {
                return Ok(Some(Classification::certain(&rule.label)));
            }
        }
        Ok(None)
    }

    /// The labels to choose from.
    pub fn labels(&self) -> Option<Labels> {
        let examples = self.labels.clone()?;
        Some(Labels { examples, margin: self.margin.unwrap_or(0.0) })
    }
}

/// Looks at every task and says what is wrong.
pub(super) fn check(tasks: &BTreeMap<String, Task>, mistakes: &mut Vec<Mistake>) {
    let mut mistake = |path: String, message: String| mistakes.push(Mistake { path, message });
    if tasks.len() > TASKS_MAX {
        let message = format!("{} tasks, at most {TASKS_MAX}", tasks.len());
        mistake("pilotlight.tasks".to_owned(), message);
    }
    for (name, task) in tasks {
        let path = format!("pilotlight.tasks.{name}");
        if !crate::request::name::is_name(name) {
            mistake(path.clone(), "a task's name is [A-Za-z0-9_-]{1,64}".to_owned());
        }
        if task.template.trim().is_empty() {
            mistake(format!("{path}.template"), "is empty".to_owned());
        }
        if task.schema.as_ref().is_some_and(|schema| !schema.is_object()) {
            mistake(format!("{path}.schema"), "must be a JSON Schema object".to_owned());
        }
        if task.max_tokens.is_some_and(|n| !(1..=OUTPUT_TOKENS_MAX).contains(&n)) {
            mistake(format!("{path}.max_tokens"), format!("must be 1 to {OUTPUT_TOKENS_MAX}"));
        }
        if task.deadline_ms.is_some_and(|ms| !is_deadline(ms)) {
            mistake(format!("{path}.deadline_ms"), deadline_range());
        }
        if task.skill.as_ref().is_some_and(|t| t.is_empty() || t.len() > NAME_BYTES_MAX) {
            mistake(format!("{path}.talent"), format!("must have 1 to {NAME_BYTES_MAX} bytes"));
        }
        if task.threshold.is_some_and(|t| !(t <= 0.0 && t.is_finite())) {
            let message = "must be a log-probability: 0 or less";
            mistake(format!("{path}.threshold"), message.to_owned());
        }
        if task.threshold.is_some() && task.strategy != Strategy::Cascade {
            let message = "requires \"strategy\": \"cascade\"";
            mistake(format!("{path}.threshold"), message.to_owned());
        }
        if task.judge.is_some() && task.strategy != Strategy::Compare {
            let message = "requires \"strategy\": \"compare\"";
            mistake(format!("{path}.judge"), message.to_owned());
        }
        if task.strategy != Strategy::Single && task.labels.is_some() {
            let message = "applies to text and JSON only; for labels use margin";
            mistake(format!("{path}.strategy"), message.to_owned());
        }
        for (place, message) in task.label_mistakes() {
            mistake(format!("{path}.{place}"), message);
        }
    }
}

impl Task {
    /// What is wrong with labels, margin and rules, each with its place.
    fn label_mistakes(&self) -> Vec<(String, String)> {
        let mut mistakes = Vec::new();
        let mut mistake =
            |place: &str, message: &str| mistakes.push((place.to_owned(), message.to_owned()));
        let Some(labels) = self.labels() else {
            if self.margin.is_some() {
                mistake("margin", "requires labels");
            }
            if !self.rules.is_empty() {
                mistake("rules", "require labels");
            }
            return mistakes;
        };
        if self.schema.is_some() {
            mistake("schema", "cannot be combined with labels; remove it");
        }
        if !(0.0..=1.0).contains(&labels.margin) {
            mistake("margin", "must be 0 to 1");
        }
        if let Err((place, message)) = labels.check() {
            mistake(&format!("labels{place}"), &message);
        }
        if self.rules.len() > RULES_MAX {
            mistake("rules", &format!("{} rules, at most {RULES_MAX}", self.rules.len()));
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if !labels.examples.contains_key(&rule.label) {
                let known: Vec<&str> = labels.names().collect();
                let message = format!(
                    "{:?} is not a label of the task; labels: {}",
                    rule.label,
                    known.join(", ")
                );
                mistake(&format!("rules[{at}].label"), &message);
            }
        }
        mistakes
    }
}
