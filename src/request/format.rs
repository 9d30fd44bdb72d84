//! Answer format: what a request asks for, and whether a complete answer conforms to it.

use std::sync::Arc;

use serde_json::Value;

use super::labels::Labels;
use super::{schema, skill};

/// What shape the answer must have.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// One JSON value, an object.
    Json,
    /// One JSON value that fits this JSON Schema.
    Schema(Arc<Value>),
    /// One of these labels.
    Label(Arc<Labels>),
    /// No text but the meaning of each message, as a JSON array of vectors of length 1.
    Embedding,
}

impl Format {
    /// The talent that a model needs for it, by its name in a `ModelContext`.
    pub fn skill(&self) -> &'static str {
        match self {
            Format::Text | Format::Json | Format::Schema(_) => skill::GENERATE,
            Format::Label(_) => skill::CLASSIFY,
            Format::Embedding => skill::EMBED,
        }
    }
}

/// Looks at a whole answer; text fits always, as do labels and vectors, which are no model's text.
///
/// # Errors
/// What is wrong with it, without the answer's own words.
pub fn check(format: &Format, text: &str) -> Result<(), String> {
    let schema = match format {
        Format::Text | Format::Label(_) | Format::Embedding => return Ok(()),
        Format::Json => None,
        Format::Schema(schema) => Some(schema),
    };
    let value: Value =
        serde_json::from_str(text).map_err(|e| format!("the answer is not valid JSON: {e}"))?;
    let Some(schema) = schema else { return Ok(()) };
    schema::fits(schema, &value)
        .map_err(|place| format!("the answer does not fit the schema at {place}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_fits_and_what_does_not() {
        let schema = json!({"type": "object", "properties": {"state": {"enum": ["ok", "hot"]}},
                            "required": ["state"]});
        let schema = Format::Schema(Arc::new(schema));
        let check = |format: &Format, text: &str, fits: bool| {
            assert_eq!(super::check(format, text).is_ok(), fits, "{format:?} {text}");
        };
        check(&Format::Text, "{", true);
        check(&Format::Json, "{", false);
        check(&Format::Json, "{}", true);
        check(&schema, r#"{"state": "hot"}"#, true);
        check(&schema, r#"{"state": "cold"}"#, false);
        check(&schema, "{}", false);
        check(&schema, "hot", false);
        let told = super::check(&schema, r#"{"state": "secret"}"#).unwrap_err();
        assert!(!told.contains("secret") && told.contains("/properties/state/enum"), "{told}");
    }
}
