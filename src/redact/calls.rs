//! The same for tools: what stands in the arguments of earlier calls is hidden, and put back into those
//! of new ones.

use serde_json::{Map, Value};

use super::{Hidden, Marks, Redactor, Restorer};
use crate::request::tools::ToolCall;

/// Under this name the arguments of a call stand as a text, if what was hidden of them leaves no JSON.
const AS_TEXT: &str = "arguments";

impl Redactor {
    pub(super) fn hide_in_calls(&self, calls: &[ToolCall], marks: &mut Marks) -> Vec<ToolCall> {
        let hide = |call: &ToolCall| ToolCall {
            arguments: self.hide_in_arguments(&call.arguments, marks),
            ..call.clone()
        };
        calls.iter().map(hide).collect()
    }

    /// First the strings one by one, then what only shows in all of it together, such as a pair of
    /// numbers.
    fn hide_in_arguments(
        &self,
        arguments: &Map<String, Value>,
        marks: &mut Marks,
    ) -> Map<String, Value> {
        let apart = each_text(arguments, &mut |text| self.hide_in(text, marks));
        let text = Value::Object(apart.clone()).to_string();
        let hidden = self.hide_in(&text, marks);
        if hidden == text {
            return apart;
        }
        let read = serde_json::from_str(&hidden);
        read.unwrap_or_else(|_| Map::from_iter([(AS_TEXT.to_owned(), Value::from(hidden))]))
    }
}

impl Hidden {
    /// Puts the values back into the arguments of calls.
    pub fn restore(&self, calls: &mut [ToolCall]) {
        for call in calls {
            call.arguments = each_text(&call.arguments, &mut |text| {
                let mut restorer = Restorer::new(&self.plain);
                restorer.push(text) + &restorer.finish()
            });
        }
    }
}

/// The same object with each of its texts changed, names of fields included.
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
