//! Names of devices, tasks and applications.

use crate::limits::NAME_BYTES_MAX;

/// The pattern of [`is_name`], as JSON Schema writes it.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9_-]{1,64}$";

/// Whether the name is valid as a topic level, a label and a file name: `[A-Za-z0-9_-]{1,64}`.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// The pattern of [`is_app_name`] or `+`; it counts characters, not bytes.
pub const APP_NAME_PATTERN: &str = r"^([^/+#\x00-\x1f\x7f-\x9f]{1,64}|\+)$";

/// Whether the name is valid for an application: one level of an MQTT topic of at most 64 bytes
/// without control characters, such as `home.assistant` or `My App`.
pub fn is_app_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(['/', '+', '#'])
        && !name.chars().any(char::is_control)
}
