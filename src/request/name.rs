//! Names that are used as one level of an MQTT topic.

use crate::limits::NAME_BYTES_MAX;

/// Whether a name may stand in a topic: `[A-Za-z0-9_-]{1,64}`.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
