//! Redaction of tool calls: placeholders in the arguments of earlier calls, and their restoration in
//! the arguments of later ones.

use serde_json::{Map, Value};

use super::{Hidden, Placeholders, Redactor, Restorer};
use crate::request::tools::ToolCall;

/// The member that holds the arguments of a call as text, if they are no JSON after redaction.
const AS_TEXT: &str = "arguments";

impl Redactor {
    pub(super) fn hide_in_calls(
        &self,
        calls: &[ToolCall],
        placeholders: &mut Placeholders,
    ) -> Vec<ToolCall> {
        let hide = |call: &ToolCall| ToolCall {
            arguments: self.hide_in_arguments(&call.arguments, placeholders),
            ..call.clone()
        };
        calls.iter().map(hide).collect()
    }

    /// Redacts each string, then the serialized object: a pair of numbers is found only there.
    fn hide_in_arguments(
        &self,
        arguments: &Map<String, Value>,
        placeholders: &mut Placeholders,
    ) -> Map<String, Value> {
        let by_string = each_text(arguments, &mut |text| self.hide_in(text, placeholders));
        let text = Value::Object(by_string.clone()).to_string();
        let hidden = self.hide_in(&text, placeholders);
        if hidden == text {
            return by_string;
        }
        let read = serde_json::from_str(&hidden);
        read.unwrap_or_else(|_| Map::from_iter([(AS_TEXT.to_owned(), Value::from(hidden))]))
    }
}

impl Hidden {
    /// Restores the values in the arguments of calls.
    pub fn restore(&self, calls: &mut [ToolCall]) {
        for call in calls {
            call.arguments = each_text(&call.arguments, &mut |text| {
                let mut restorer = Restorer::new(&self.plain);
                restorer.push(text) + &restorer.finish()
            });
        }
    }
}

/// The object with each string changed, the names of its members included.
fn each_text(
    object: &Map<String, Value>,
    change: &mut impl FnMut(&str) -> String,
) -> Map<String, Value> {
    let mut changed = Map::new();
    for (name, value) in object {
        changed.insert(change(name), in_value(value, change));
    }
    changed
}

fn in_value(value: &Value, change: &mut impl FnMut(&str) -> String) -> Value {
    match value {
        Value::String(text) => Value::from(change(text)),
        Value::Array(items) => items.iter().map(|item| in_value(item, change)).collect(),
        Value::Object(object) => Value::Object(each_text(object, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
