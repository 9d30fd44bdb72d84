//! Edits of the text of an `mcp.json` that preserve every other byte.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A byte order mark, which some editors write.
const MARK: &str = "\u{feff}";

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    pilotlight: PilotlightPart<'a>,
}

#[derive(Deserialize)]
struct PilotlightPart<'a> {
    #[serde(borrow)]
    tasks: BTreeMap<String, &'a RawValue>,
}

/// Sets members of a task to these values, each a text of JSON, and returns the edited text.
///
/// # Errors
/// A message if the text is not JSON, or has no such task.
pub fn set_in_task(text: &str, task: &str, values: &[(&str, &str)]) -> Result<String, String> {
    let (mark, text) = match text.strip_prefix(MARK) {
        Some(text) => (MARK, text),
        None => ("", text),
    };
    let mut text = text.to_owned();
    for (name, value) in values {
        text = set_one(&text, task, name, value)?;
    }
    Ok(format!("{mark}{text}"))
}

fn set_one(text: &str, task: &str, name: &str, value: &str) -> Result<String, String> {
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let whole = *file.pilotlight.tasks.get(task).ok_or("there is no such task")?;
    let members: BTreeMap<String, &RawValue> =
        serde_json::from_str(whole.get()).map_err(|e| e.to_string())?;
    let (from, to, put) = match members.get(name) {
        Some(old) => {
            let from = offset(text, old.get());
            (from, from + old.get().len(), value.to_owned())
        }
        None => {
            let from = offset(text, whole.get()) + 1;
            // inserted as the first member, after the same white space as the former first one
            let inside = &whole.get()[1..];
            let space = &inside[..inside.len() - inside.trim_start().len()];
            let comma = if members.is_empty() { "" } else { "," };
            (from, from, format!("{space}{name:?}: {value}{comma}"))
        }
    };
    Ok(format!("{}{put}{}", &text[..from], &text[to..]))
}

/// The offset of a slice in the text that it borrows from.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_given_members_change() {
        let text = "{\n  \"pilotlight\": {\"tasks\": {\n    \"a\": {},\n    \"b\" : {\n      \
                    \"template\": \"x\\u0041 \u{fc}\",\n      \"threshold\":  -1.50\n    }\n  }}\n}\n";
        let values = [("strategy", "\"cascade\""), ("threshold", "-0.2")];
        assert_eq!(
            set_in_task(text, "b", &values).unwrap(),
            text.replace("-1.50", "-0.2").replace(
                "\n      \"template\"",
                "\n      \"strategy\": \"cascade\",\n      \"template\""
            )
        );
        let set = set_in_task(text, "a", &values).unwrap();
        let first = r#""a": {"threshold": -0.2,"strategy": "cascade"}"#;
        assert!(set.contains(first), "{set}");
        let marked = format!("\u{feff}{text}");
        assert_eq!(set_in_task(&marked, "a", &values).unwrap(), format!("\u{feff}{set}"));
        assert!(set_in_task(text, "c", &values).unwrap_err().contains("no such task"));
        assert!(set_in_task("{", "c", &values).is_err());
    }
}
