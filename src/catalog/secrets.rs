//! Where secrets stand in `mcp.json`, and which variables hold them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::catalog::Mistake;
use super::expand;

/// Words in the name of what is a secret.
const WORDS: [&str; 6] = ["token", "password", "secret", "authorization", "api_key", "apikey"];

/// Places in the file that hold what looks like a secret itself instead of its name.
pub fn literal(file: &Value) -> Vec<Mistake> {
    let mut found = Vec::new();
    each(file, &mut Vec::new(), &mut |path, text| {
        if is_secret(path) && !text.contains("${") && !text.starts_with("cred:") {
            let message = "looks like a secret; write ${NAME} or cred:NAME instead of the value";
            found.push(Mistake { path: path.join("."), message: message.to_owned() });
        }
    });
    found
}

/// The variables whose values stand where secrets do, in headers too.
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
        || WORDS.iter().any(|word| name.contains(word))
}

/// Every string that stands under a name, with the names on the way to it.
fn each<'v>(value: &'v Value, path: &mut Vec<&'v str>, tell: &mut impl FnMut(&[&str], &'v str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key);
                each(value, path, tell);
                path.pop();
            }
        }
        Value::Array(items) => items.iter().for_each(|item| each(item, path, tell)),
        Value::String(text) => tell(path, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_is_known_by_its_place() {
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
