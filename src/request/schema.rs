//! JSON Schema: validation of values, and of schemas.

use serde_json::Value;

/// Validates a value against a schema. A schema that is not supported accepts every value.
///
/// # Errors
/// The path in the schema that the value violates.
pub fn fits(schema: &Value, value: &Value) -> Result<(), String> {
    let Ok(validator) = jsonschema::validator_for(schema) else { return Ok(()) };
    match validator.iter_errors(value).next() {
        None => Ok(()),
        Some(error) => Err(error.schema_path().to_string()),
    }
}

/// Whether values can be validated against this schema.
///
/// # Errors
/// Why the schema is not supported.
pub fn usable(schema: &Value) -> Result<(), String> {
    let made = jsonschema::validator_for(schema);
    made.map(drop).map_err(|e| format!("is not a supported JSON Schema: {e}"))
}
