//! The reason that a provider states for an error, in a body or within a stream, whatever its form.

use reqwest::Response;
use serde_json::Value;

use crate::limits::ERROR_BYTES_MAX;

/// Most characters of a provider's error message that a fault repeats.
const ERROR_CHARS_MAX: usize = 300;

/// Members of an error that may hold its reason, the most telling first.
const MEMBERS: [&str; 4] = ["message", "Message", "error", "detail"];

/// The reason of an error: a text, the text of one of its [`MEMBERS`], or else its JSON. `None` for an
/// empty value, which is no error.
pub(super) fn of(error: &Value) -> Option<String> {
    let reason = match error {
        Value::Null | Value::Bool(false) => return None,
        Value::Number(number) if number.as_f64() == Some(0.0) => return None,
        Value::String(text) => text.trim().to_owned(),
        // bounded by the depth of JSON that is parsed
        Value::Object(map) => match MEMBERS.iter().find_map(|name| of(map.get(*name)?)) {
            Some(reason) => return Some(reason),
            None if map.is_empty() => return None,
            None => error.to_string(),
        },
        Value::Array(all) => return all.iter().find_map(of),
        Value::Bool(true) | Value::Number(_) => error.to_string(),
    };
    Some(shown(&reason)).filter(|reason| !reason.is_empty())
}

/// The reason of an event that is an error by its form: with an `error`, of the type `error`, or with
/// nothing but a message.
pub(super) fn of_event(data: &str) -> Option<String> {
    let event: Value = serde_json::from_str(data).ok()?;
    match (event.get("error"), event.get("type").and_then(Value::as_str)) {
        (Some(error), _) if of(error).is_some() => of(&event),
        (_, Some("error")) => of(&event),
        (_, Some(_)) => None,
        (_, None) => {
            let stated = ["message", "detail"].into_iter().filter_map(|name| event.get(name));
            stated.filter(|value| value.is_string() || value.is_array()).find_map(of)
        }
    }
}

/// The reason of an error response.
pub(super) async fn of_response(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        body.extend_from_slice(&part);
        if body.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    let stated = serde_json::from_slice(&body).ok().and_then(|json| of(&json));
    stated.unwrap_or_else(|| shown(&String::from_utf8_lossy(&body)))
}

/// A provider's text as a message repeats it: at most [`ERROR_CHARS_MAX`] characters, none of control.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_form_of_an_error_is_its_reason() {
        let check = |error: Value, expected: Option<&str>| {
            assert_eq!(of(&error).as_deref(), expected, "{error}");
        };
        check(json!({"error": {"message": "no memory", "code": 1}}), Some("no memory"));
        check(json!({"error": "no memory"}), Some("no memory"));
        check(json!({"error": {"type": "overloaded"}}), Some(r#"{"type":"overloaded"}"#));
        check(json!({"error": {"message": null, "detail": "full"}}), Some("full"));
        check(json!({"error": true, "message": "full"}), Some("full"));
        check(json!({"error": "Bad Request", "message": "too long"}), Some("too long"));
        check(json!({"message": "full"}), Some("full"));
        check(json!({"Message": "full"}), Some("full"));
        check(json!({"detail": "full"}), Some("full"));
        check(
            json!({"detail": [{"loc": ["n"], "msg": "no"}]}),
            Some(r#"{"loc":["n"],"msg":"no"}"#),
        );
        check(json!([{"error": {"message": "full"}}]), Some("full"));
        check(json!({"code": 7}), Some(r#"{"code":7}"#));
        check(json!(503), Some("503"));
        check(json!("a\u{1b}[2Jb\n"), Some("a[2Jb"));
        for none in [json!(null), json!(""), json!(" "), json!({}), json!([]), json!(false)] {
            check(none, None);
        }
        assert_eq!(of(&json!("x".repeat(400))).map(|text| text.len()), Some(ERROR_CHARS_MAX));
    }

    #[test]
    fn an_event_is_an_error_by_its_form() {
        let check = |data: &str, expected: Option<&str>| {
            assert_eq!(of_event(data).as_deref(), expected, "{data}");
        };
        check(r#"{"error": "full"}"#, Some("full"));
        check(r#"{"type": "error", "error": {"message": "full"}}"#, Some("full"));
        check(r#"{"type": "error", "message": "full"}"#, Some("full"));
        check(r#"{"message": "full"}"#, Some("full"));
        check(r#"{"detail": "full"}"#, Some("full"));
        check(r#"{"type": "message_start", "message": "x"}"#, None);
        check(r#"{"message": {"content": []}}"#, None);
        check(r#"{"error": null}"#, None);
        check(r#"{"type": "ping"}"#, None);
        check("{", None);
    }
}
