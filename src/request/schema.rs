//! Whether an answer has the shape that was asked for.

use serde_json::Value;

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
    made.map(drop).map_err(|e| format!("is not a supported JSON Schema: {e}"))
}
