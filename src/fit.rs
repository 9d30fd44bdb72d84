//! Whether an answer has the shape that was asked for.

use serde_json::Value;

use crate::prompt::Format;

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
    let value: Value = serde_json::from_str(text)
        .map_err(|e| format!("it was asked for JSON and wrote something else: {e}"))?;
    let Some(schema) = schema else { return Ok(()) };
    fits(schema, &value).map_err(|place| format!("its JSON does not fit the schema at {place}"))
}

/// Whether a value fits a schema. One that can't be used binds nobody.
///
/// # Errors
/// The place in the schema that it does not fit.
pub fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let Ok(validator) = jsonschema::validator_for(schema) else { return Ok(()) };
    match validator.iter_errors(value).next() {
        None => Ok(()),
        Some(error) => Err(error.schema_path().to_string()),
    }
}

/// Whether values can be held to this schema.
///
/// # Errors
/// Why not.
pub fn usable(schema: &Value) -> Result<(), String> {
    let made = jsonschema::validator_for(schema);
    made.map(drop).map_err(|e| format!("is no JSON Schema that can be used: {e}"))
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
