//! Names that are valid as one level of an MQTT topic.

use crate::limits::NAME_BYTES_MAX;

/// Whether the name is valid as a topic level: `[A-Za-z0-9_-]{1,64}`.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
