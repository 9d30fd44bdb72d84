//! The differences of two configurations by path, without secrets.

use serde::Serialize;
use serde_json::Value;

use crate::catalog::secret::is_below_secret;
use crate::catalog::url::without_secrets;
use crate::limits::fleet::DIFFERENCES_MAX;

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path of the value.
    pub path: String,
    /// The value before; none if it was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// The value after; none if it is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

/// What differs between two files, in the order of the first one, at most [`DIFFERENCES_MAX`] values.
pub fn between(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(Some(old), Some(new), &mut Vec::new(), &mut found);
    found.truncate(DIFFERENCES_MAX);
    found
}

fn compare<'v>(
    old: Option<&'v Value>,
    new: Option<&'v Value>,
    path: &mut Vec<&'v str>,
    found: &mut Vec<Difference>,
) {
    if old == new || found.len() >= DIFFERENCES_MAX {
        return;
    }
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (old, new) {
        let added = new.keys().filter(|key| !old.contains_key(*key));
        for key in old.keys().chain(added) {
            path.push(key);
            compare(old.get(key), new.get(key), path, found);
            path.pop();
        }
        return;
    }
    let shown = |value: &Value| shown(value, path);
    found.push(Difference { path: path.join("."), old: old.map(shown), new: new.map(shown) });
}

/// A configuration in which secrets are concealed.
pub fn without_secrets_in(config: &Value) -> Value {
    concealed(config, &[])
}

/// The value as JSON in which secrets are concealed.
fn shown(value: &Value, path: &[&str]) -> String {
    concealed(value, path).to_string()
}

fn concealed(value: &Value, path: &[&str]) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, member)| {
                let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                (without_secrets(key), concealed(member, &path))
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| concealed(item, path)).collect(),
        Value::Number(_) | Value::String(_) if is_below_secret(path) => "(secret)".into(),
        Value::String(text) => without_secrets(text).into(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}
