//! Secrets: the wrapper that keeps a value out of logs, and the places of secrets in `mcp.json`.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::expand;
use super::mistake::{Mistake, Mistakes};

/// A value that never appears in logs, errors or debug output.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(pub T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Parts of the names of keys that hold secrets.
const KEY_PARTS: [&str; 6] = ["token", "password", "secret", "authorization", "api_key", "apikey"];

/// Literal secrets in the file: values of secret keys that name neither a variable nor a credential.
pub fn literal(file: &Value) -> Vec<Mistake> {
    let mut found = Mistakes::default();
    each(file, &mut Vec::new(), &mut |path, text| {
        if is_secret(path) && !text.contains("${") && !text.starts_with("cred:") {
            let message = "looks like a secret; write ${NAME} or cred:NAME instead of the value";
            found.at(&path.join(".")).add(message);
        }
    });
    found.into_vec()
}

/// The names of the variables that secret keys and headers are written with.
pub(super) fn variables(file: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    each(file, &mut Vec::new(), &mut |path, text| {
        if is_secret(path) || path.iter().rev().nth(1) == Some(&"headers") {
            found.extend(expand::names(text).map(str::to_owned));
        }
    });
    found
}

fn is_secret(path: &[&str]) -> bool {
    let name = path.last().copied().unwrap_or_default().to_ascii_lowercase();
    matches!(path, ["pilotlight", "providers", _, "key"])
        || KEY_PARTS.iter().any(|part| name.contains(part))
}

/// Calls `visit` with every string below an object's key, and with the keys on its path.
fn each<'v>(value: &'v Value, path: &mut Vec<&'v str>, visit: &mut impl FnMut(&[&str], &'v str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key);
                each(value, path, visit);
                path.pop();
            }
        }
        Value::Array(items) => items.iter().for_each(|item| each(item, path, visit)),
        Value::String(text) => visit(path, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_found_by_their_keys() {
        let file = json!({
            "mcpServers": {
                "far": {"url": "https://far.example", "headers": {"X-Who": "${WHO}", "Accept": "*/*"}},
                "tool": {"command": "tool", "args": ["${HOME}/x"], "env": {
                    "GIT_TOKEN": "${GIT:-none}", "PLACE": "${HOME}", "HALF_SECRET": "literal"
                }},
            },
            "pilotlight": {
                "providers": {"big": {"key": "${env:BIG}"}, "other": {"key": "sk-1"}, "c": {"key": "cred:c"}},
                "mqtt": {"key": "client.key", "password": "a$$${PASS}b${WORD}"},
            },
        });
        let named: Vec<String> = variables(&file).into_iter().collect();
        assert_eq!(named, ["BIG", "GIT", "PASS", "WHO", "WORD"]);
        let paths: Vec<String> = literal(&file).into_iter().map(|found| found.path).collect();
        assert_eq!(paths, ["mcpServers.tool.env.HALF_SECRET", "pilotlight.providers.other.key"]);
    }
}
