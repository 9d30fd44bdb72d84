//! The content of a message, as a text or as a list of parts.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The text of a content: the text itself, or the texts of its parts. Parts of other types, such as
/// the model's reasoning, are left out. `None` without any text.
pub(super) fn text_of(content: &Value) -> Option<String> {
    let text = match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(text_of).collect(),
        Value::Object(part) => match part.get("type").and_then(Value::as_str) {
            None | Some("text" | "output_text" | "text_delta") => {
                part.get("text").and_then(Value::as_str).unwrap_or_default().to_owned()
            }
            Some(_) => return None,
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => return None,
    };
    Some(text).filter(|text| !text.is_empty())
}

/// Deserializes a content as its text, see [`text_of`].
pub(super) fn text<'de, D: Deserializer<'de>>(content: D) -> Result<Option<String>, D::Error> {
    Value::deserialize(content).map(|content| text_of(&content))
}

/// Deserializes a text that is absent if it is empty.
pub(super) fn not_empty<'de, D: Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(text)?;
    Ok(text.filter(|text| !text.is_empty()))
}

/// Deserializes a part of a call's arguments: the text of JSON, or JSON itself.
pub(super) fn arguments<'de, D: Deserializer<'de>>(
    arguments: D,
) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(arguments)? {
        Value::Null => None,
        Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        // empty at the start of a streamed call
        Value::Object(map) if map.is_empty() => None,
        json @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Some(json.to_string())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_of_each_form_of_a_content() {
        let check = |content: Value, expected: Option<&str>| {
            assert_eq!(text_of(&content).as_deref(), expected, "{content}");
        };
        check(json!("a"), Some("a"));
        check(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), Some("ab"));
        check(json!([{"text": "a"}, "b"]), Some("ab"));
        check(
            json!([{"type": "thinking", "text": "hm"}, {"type": "text", "text": "a"}]),
            Some("a"),
        );
        check(json!([{"type": "image_url", "image_url": {}}]), None);
        check(json!([{"type": "text"}]), None);
        check(json!({"type": "text", "text": "a"}), Some("a"));
        for none in [json!(null), json!(""), json!([]), json!(5)] {
            check(none, None);
        }
    }
}
