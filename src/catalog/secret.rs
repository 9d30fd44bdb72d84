//! Secrets: the wrapper that keeps a value out of logs, and the places of secrets in `mcp.json`.
//!
//! A URL is such a place: its user name and password, its query and its path may be a key.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::expand;
use super::expand::Variables;
use super::mistake::{Mistake, Mistakes};
use super::url;

/// A value that never appears in logs, errors or debug output.
#[derive(Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret<T>(pub T);

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Parts of the names of keys that hold secrets.
const KEY_PARTS: [&str; 6] = ["token", "password", "secret", "authorization", "api_key", "apikey"];

/// Further parts of the names of variables that hold secrets.
const VARIABLE_PARTS: [&str; 4] = ["key", "pass", "pwd", "cred"];
/// The fewest bytes of a value that is concealed: a shorter one is part of most words.
const CONCEALED_BYTES_MIN: usize = 3;

/// Literal secrets in the file: values of secret keys that name neither a variable nor a credential.
pub fn literal(file: &Value) -> Vec<Mistake> {
    let mut found = Mistakes::default();
    each(file, &mut Vec::new(), &mut |path, text| {
        let is_written = !text.contains("${") && !text.starts_with("cred:");
        if is_written && is_secret(path) {
            let message = "looks like a secret; write ${NAME} or cred:NAME instead of the value";
            found.at(&path.join(".")).add(message);
        } else if is_url(path, text)
            && url::has_literal_secret(text, |name| name == "key" || has_key_name(name))
        {
            let message = "the URL contains what looks like a secret; write ${NAME} instead of it";
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
        } else if is_url(path, text) {
            for part in url::secret_parts(text) {
                found.extend(expand::names(part).map(str::to_owned));
            }
        }
    });
    found
}

/// Whether a variable of this name is taken to hold a secret.
pub fn is_secret_variable(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    KEY_PARTS.iter().chain(&VARIABLE_PARTS).any(|part| name.contains(part))
}

/// Replaces every secret in these messages. A parser's message may contain the value that it could not
/// use; secrets are the values of variables that hold one by their name or by their use in the file, and
/// all values at secret keys of the file.
pub fn conceal(mistakes: &mut [Mistake], file: Option<&Value>, by: &Variables) {
    let used = file.map(variables).unwrap_or_default();
    let secret = |name: &&String| is_secret_variable(name) || used.contains(*name);
    let mut values: BTreeSet<String> =
        by.keys().filter(secret).filter_map(|name| by.get(name).cloned()).collect();
    if let Some(file) = file {
        written(file, &mut Vec::new(), &mut values);
    }
    // the longest first: one secret may be a part of another
    let mut values: Vec<String> = values.into_iter().collect();
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values.iter().filter(|value| value.len() >= CONCEALED_BYTES_MIN) {
        // a message shows a text as it is, or with escapes
        let escaped = format!("{value:?}");
        for mistake in &mut *mistakes {
            for shown in [escaped.trim_matches('"'), value] {
                if mistake.message.contains(shown) {
                    mistake.message = mistake.message.replace(shown, "(secret)");
                }
            }
        }
    }
}

/// Adds the literal values below secret keys, whatever their type: a token may be written as a number.
fn written<'v>(value: &'v Value, path: &mut Vec<&'v str>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key);
                written(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) => items.iter().for_each(|item| written(item, path, found)),
        Value::String(text) if is_below_secret(path) && !text.contains("${") => {
            found.insert(text.clone());
        }
        Value::Number(number) if is_below_secret(path) => {
            found.insert(number.to_string());
        }
        Value::String(_) | Value::Number(_) | Value::Null | Value::Bool(_) => {}
    }
}

pub(crate) fn is_below_secret(path: &[&str]) -> bool {
    (1..=path.len()).any(|depth| is_secret(&path[..depth]))
        || path.iter().rev().skip(1).any(|key| *key == "headers")
}

/// Further parts of the names of HTTP headers and query parameters that hold secrets.
const HEADER_PARTS: [&str; 5] = ["auth", "key", "cookie", "session", "signature"];

/// Whether a header or a query parameter holds a secret, by its name or because its value in the file is
/// that of a variable.
pub(super) fn is_secret_field(name: &str, written: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut parts = KEY_PARTS.iter().chain(&HEADER_PARTS);
    written.contains("${") || parts.any(|part| name.contains(part))
}

fn is_url(path: &[&str], text: &str) -> bool {
    match path.last() {
        Some(&("url" | "base_url")) => true,
        // of a model; it may also be a path, whose variables are no secrets
        Some(&"source") => text.starts_with("http"),
        Some(_) | None => false,
    }
}

fn is_secret(path: &[&str]) -> bool {
    matches!(path, ["pilotlight", "providers", _, "key"])
        || path.last().is_some_and(|name| has_key_name(name))
}

fn has_key_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    KEY_PARTS.iter().any(|part| name.contains(part)) && !name.ends_with("_tokens")
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
    fn secrets_are_concealed_in_messages() {
        let file = json!({
            "mcpServers": {"far": {"headers": {"X-Who": 4711}, "env": {"A_TOKEN": ["lit\"eral"]}}},
            "pilotlight": {
                "providers": {"big": {"key": "${WHICH}"}, "other": {"key": {"value": "sk-1"}}},
                "tasks": {"t": {"max_tokens": 250, "template": "plain"}},
            },
        });
        let values = [("WHICH", "abcdef"), ("DB_PASS", "abc"), ("PLACE", "Berlin"), ("A_KEY", "x")];
        let by = values.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let check = |message: &str, expected: &str| {
            let mut found = [Mistake::new("", message)];
            conceal(&mut found, Some(&file), &by);
            assert_eq!(found[0].message, expected);
        };
        check("integer `4711`", "integer `(secret)`");
        check(r#"string "lit\"eral""#, r#"string "(secret)""#);
        check("`sk-1` and abcdef and abc", "`(secret)` and (secret) and (secret)");
        check("Berlin x 250 plain", "Berlin x 250 plain");
    }

    #[test]
    fn secrets_are_found_by_their_keys() {
        let file = json!({
            "mcpServers": {
                "far": {"url": "https://far.example", "headers": {"X-Who": "${WHO}", "Accept": "*/*"}},
                "place": {"url": "https://${HOST}:8443/hooks/${HOOK}?key=${QUERY:-none}"},
                "user": {"url": "https://me:word-1@far.example/mcp"},
                "query": {"url": "https://far.example/mcp?api_key=1234"},
                "tool": {"command": "tool", "args": ["${HOME}/x"], "env": {
                    "GIT_TOKEN": "${GIT:-none}", "PLACE": "${HOME}", "HALF_SECRET": "literal"
                }},
            },
            "pilotlight": {
                "providers": {"big": {"key": "${env:BIG}"}, "other": {"key": "sk-1"}, "c": {"key": "cred:c", "base_url": "${BASE}"}},
                "mqtt": {"key": "client.key", "password": "a$$${PASS}b${WORD}"},
            },
        });
        let named: Vec<String> = variables(&file).into_iter().collect();
        assert_eq!(named, ["BASE", "BIG", "GIT", "HOOK", "PASS", "QUERY", "WHO", "WORD"]);
        let paths: Vec<String> = literal(&file).into_iter().map(|found| found.path).collect();
        let expected = [
            "mcpServers.user.url",
            "mcpServers.query.url",
            "mcpServers.tool.env.HALF_SECRET",
            "pilotlight.providers.other.key",
        ];
        assert_eq!(paths, expected);
    }
}
