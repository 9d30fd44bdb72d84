//! Reading of JSON into a type, with errors that name the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::request::refusal::{Code, Refusal};
use crate::request::wording::{in_words, with_nearest};

/// Parses JSON into a type; an error names the field.
///
/// # Errors
/// [`Code::Malformed`] if it is not JSON, [`Code::Invalid`] with the field if a value is wrong.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    // parsed again to find the field
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut text).map_err(|e| misread(&e))?;
    text.end().map_err(|e| Refusal::new(Code::Malformed, format!("not valid JSON: {e}")))?;
    Ok(value)
}

/// Like [`read`], for a parsed JSON value.
///
/// # Errors
/// [`Code::Invalid`] with the field if a value is wrong.
pub fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|e| misread(&e))
}

fn misread(error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let inner = error.inner();
    match inner.classify() {
        serde_json::error::Category::Data => {
            let path = error.path().to_string();
            // the place is that of the request's text, in which nobody looks for it
            let message = inner.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            let message = with_nearest(in_words(message));
            match path.as_str() {
                "." => Refusal::new(Code::Invalid, message),
                _ => Refusal::field(Code::Invalid, path, message),
            }
        }
        serde_json::error::Category::Io
        | serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof => {
            Refusal::new(Code::Malformed, format!("not valid JSON: {inner}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Ask;

    fn refused(text: &str) -> (String, String) {
        let refusal = read::<Ask>(text.as_bytes()).unwrap_err();
        (refusal.field.unwrap_or_default(), refusal.message)
    }

    #[test]
    fn an_error_names_the_field_in_words() {
        let (field, message) = refused(r#"{"prompt": "x", "temperature": "hot"}"#);
        assert_eq!(field, "temperature");
        assert_eq!(message, "invalid type: string \"hot\", expected a number");
        let (field, message) = refused(r#"{"prompt": "x", "stream": 1}"#);
        assert_eq!((field.as_str(), message.ends_with("expected true or false")), ("stream", true));
        let (_, message) = refused(r#"{"prompt": "x", "max_token": 4}"#);
        assert!(message.ends_with("; the nearest is `max_tokens`"), "{message}");
        assert!(refused("{").1.starts_with("not valid JSON"));
    }

    #[test]
    fn whole_numbers_may_have_a_fraction_of_zero() {
        let ask: Ask =
            read(br#"{"max_tokens": 16.0, "seed": 1.0, "deadline_ms": 5e3, "top_k": 40.0}"#)
                .unwrap();
        assert_eq!(
            (ask.max_tokens, ask.seed, ask.deadline_ms, ask.top_k),
            (Some(16), Some(1), Some(5000), Some(40))
        );
        assert_eq!(refused(r#"{"max_tokens": 1.5}"#).0, "max_tokens");
    }
}
