//! Patterns and bounds of values of `mcp.json`, in the form of its JSON Schema.

use serde_json::{Value, json};

use crate::limits::DEADLINE_MAX;

/// The topic prefix of a service.
pub(super) const TOPIC_PATTERN: &str = "^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64})*$";

/// The longest deadline, in milliseconds.
pub(super) fn deadline_ms_max() -> u64 {
    u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX)
}

/// Two temperatures, in degrees Celsius.
pub(super) fn temperatures() -> Value {
    let one = json!({"type": "number", "minimum": 20, "maximum": 120});
    json!([one, one])
}
