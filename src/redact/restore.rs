//! Restoration: the values in place of their placeholders, in streamed text, in calls of tools and in
//! labels.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Hidden;
use crate::limits::REDACT_NAME_BYTES_MAX;
use crate::request::labels::Classification;
use crate::request::tools::ToolCall;

/// The longest placeholder: brackets, a rule's name and two numbers.
const PLACEHOLDER_BYTES_MAX: usize = REDACT_NAME_BYTES_MAX + 48;

impl Hidden {
    /// A restorer for one answer.
    pub fn restorer(&self) -> Restorer {
        Restorer::new(&self.back)
    }

    /// Restores the values in the names and the arguments of calls.
    pub fn restore_calls(&self, calls: &mut [ToolCall]) {
        for call in calls {
            if let Some(name) = self.plain.get(&format!("[{}]", call.name)) {
                call.name.clone_from(name);
            }
            call.arguments = each_text(&call.arguments, &mut |text| self.restored(text));
        }
    }

    /// Restores the values in labels.
    pub fn restore_labels(&self, found: &mut Classification) {
        found.label = self.restored(&found.label);
        let scores = std::mem::take(&mut found.scores);
        found.scores =
            scores.into_iter().map(|(label, score)| (self.restored(&label), score)).collect();
    }

    fn restored(&self, text: &str) -> String {
        let mut restorer = Restorer::new(&self.plain);
        restorer.push(text) + &restorer.finish()
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

/// Restores the values in a streamed answer.
pub struct Restorer {
    back: Arc<BTreeMap<String, String>>,
    /// The end of the text so far, if a placeholder may begin there.
    waiting: String,
}

impl Restorer {
    fn new(back: &Arc<BTreeMap<String, String>>) -> Restorer {
        Restorer { back: Arc::clone(back), waiting: String::new() }
    }

    /// Takes a piece of the answer and returns the text that is complete with it.
    pub fn push(&mut self, piece: &str) -> String {
        self.waiting.push_str(piece);
        let text = std::mem::take(&mut self.waiting);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(at) = rest.find('[') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some((placeholder, value)) = self.placeholder_at(rest) {
                out.push_str(value);
                rest = &rest[placeholder..];
            } else if self.is_begun(rest) {
                rest.clone_into(&mut self.waiting);
                return out;
            } else {
                out.push('[');
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        out
    }

    /// The length and the value of the placeholder at the beginning of this text.
    fn placeholder_at(&self, text: &str) -> Option<(usize, &str)> {
        let end = text.bytes().take(PLACEHOLDER_BYTES_MAX).position(|b| b == b']')?;
        let value = self.back.get(text.get(..=end)?)?;
        Some((end + 1, value))
    }

    /// Whether this whole text is the beginning of a placeholder.
    fn is_begun(&self, text: &str) -> bool {
        let next = self.back.range::<str, _>((Bound::Included(text), Bound::Unbounded)).next();
        next.is_some_and(|(placeholder, _)| placeholder.starts_with(text))
    }

    /// The rest of the text at the end of the answer.
    pub fn finish(self) -> String {
        self.waiting
    }
}
