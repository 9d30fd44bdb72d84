//! A task: a prompt template with its output format, and rules that answer without a model.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::golden::GoldenSet;
use super::rule::TaskRule;
use crate::model::context::Locality;
use crate::request::job::Strategy;
use crate::request::labels::{Classification, Labels};
use crate::request::refusal::{Code, Refusal};
use crate::request::schema::Schema;

/// A named prompt template.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The prompt; `{{name}}` is replaced by the input value of that name. With labels, this is the
    /// text that is classified.
    pub template: String,
    /// The JSON Schema of the answer.
    #[serde(default)]
    pub schema: Option<Schema>,
    /// The labels of a classification, each with its examples.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, Vec<String>>>,
    /// The least margin of a classification, 0 to 1; see [`Labels::margin`].
    #[serde(default)]
    pub margin: Option<f32>,
    /// Rules that are evaluated in order before any model is called; the first that holds gives the
    /// answer.
    #[serde(default)]
    pub rules: Vec<TaskRule>,
    /// The strategy by which several models cooperate on an answer.
    #[serde(default)]
    pub strategy: Strategy,
    /// With the strategy `cascade`, the mean log-probability per token at or above which an answer
    /// of the device is accepted, 0 at most; `pilotlight calibrate` determines it.
    #[serde(default)]
    pub threshold: Option<f32>,
    /// With the strategy `compare`, the model that selects an answer when no two answers agree.
    #[serde(default)]
    pub judge: Option<String>,
    /// A skill that the model must state.
    #[serde(rename = "talent", default)]
    pub skill: Option<String>,
    /// The furthest locality that may read its requests, if that is nearer than the policy's.
    #[serde(rename = "reach", default)]
    pub furthest: Option<Locality>,
    /// The most tokens of the answer.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// The deadline of a request that states none, in milliseconds.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Cases with right answers, by which a changed configuration is measured.
    #[serde(default)]
    pub golden: Option<GoldenSet>,
}

impl Task {
    /// Renders the prompt: the template with the input's values.
    ///
    /// Strings are inserted as they are, other values as JSON. Values are not expanded themselves.
    ///
    /// # Errors
    /// A refusal that names a value that is missing, or that neither the template nor a rule uses.
    pub fn render(&self, input: &Map<String, Value>) -> Result<String, Refusal> {
        let mut used: Vec<&str> = self.rules.iter().flat_map(|rule| rule.when.names()).collect();
        let mut out = String::with_capacity(self.template.len());
        let mut rest = self.template.as_str();
        // bounded: each turn consumes one placeholder of the template
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

    /// Leading bytes of every rendered prompt that are the template's own: those before its first value.
    /// With labels, 1 instead: their examples, which are the task's own, stand before the text.
    pub fn open_bytes(&self) -> usize {
        if self.labels.is_some() {
            return 1;
        }
        self.template.split_once("{{").map_or(self.template.len(), |(before, _)| before.len())
    }

    /// The label of the first rule that holds for this input; none if no rule holds.
    ///
    /// # Errors
    /// A refusal that names a value that a rule can't compare with its number.
    pub fn ruled(&self, input: &Map<String, Value>) -> Result<Option<Classification>, Refusal> {
        for rule in &self.rules {
            if rule.when.holds(input)? {
                return Ok(Some(Classification::certain(&rule.label)));
            }
        }
        Ok(None)
    }

    /// The labels with their examples and margin; none for a task without labels.
    pub fn labels(&self) -> Option<Labels> {
        let examples = self.labels.clone()?;
        Some(Labels { examples, margin: self.margin.unwrap_or(0.0) })
    }
}
