//! Answer format of a request, and the check of a complete answer against it.

use std::sync::Arc;

use serde_json::Value;

use super::labels::Labels;
use super::schema::Schema;
use super::skill;

/// Format that the answer must have.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// One JSON value, an object.
    Json,
    /// One JSON value that conforms to this JSON Schema.
    Schema(Schema),
    /// One of these labels.
    Label(Arc<Labels>),
    /// An embedding of each message: a JSON array of unit vectors.
    Embedding,
}

impl Format {
    /// The skill that a model needs for this format, as named in a `ModelContext`.
    pub fn skill(&self) -> &'static str {
        match self {
            Format::Text | Format::Json | Format::Schema(_) => skill::GENERATE,
            Format::Label(_) => skill::CLASSIFY,
            Format::Embedding => skill::EMBED,
        }
    }
}

/// Checks a complete answer. Text always conforms, as do labels and embeddings, which are no
/// generated text.
///
/// # Errors
/// What is wrong, without text of the answer.
pub fn check(format: &Format, text: &str) -> Result<(), String> {
    let schema = match format {
        Format::Text | Format::Label(_) | Format::Embedding => return Ok(()),
        Format::Json => None,
        Format::Schema(schema) => Some(schema),
    };
    let value: Value =
        serde_json::from_str(text).map_err(|e| format!("the answer is not valid JSON: {e}"))?;
    let Some(schema) = schema else { return Ok(()) };
    schema.fits(&value).map_err(|place| format!("the answer does not fit the schema{place}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_json_answer_must_be_valid_and_conform_to_its_schema() {
        let schema = json!({"type": "object", "properties": {"state": {"enum": ["ok", "hot"]}},
                            "required": ["state"]});
        let schema = Format::Schema(schema.into());
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
        let error = super::check(&schema, r#"{"state": "secret"}"#).unwrap_err();
        assert!(!error.contains("secret") && error.contains("/properties/state/enum"), "{error}");
    }
}
