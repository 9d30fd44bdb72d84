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

/// A name from that of a host: its first label, in which other characters are replaced by `-`. None if there is none;
/// Linux calls a host without a name `(none)`.
pub fn of_host(host: &str) -> Option<String> {
    let label = host.split('.').next().filter(|label| *label != "(none)")?;
    let name = label.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "-");
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name[..name.len().min(NAME_BYTES_MAX)].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_any_name_gives_a_device_name() {
        let long = "x".repeat(80);
        for (host, name) in [
            ("raspberrypi", Some("raspberrypi")),
            ("pump-3.plant.example", Some("pump-3")),
            ("my_board", Some("my_board")),
            ("küche (links)", Some("k-che--links")),
            ("(none)", None),
            ("", None),
            ("---", None),
            (&long, Some(&long[..64])),
        ] {
            let found = of_host(host);
            assert_eq!(found.as_deref(), name, "{host}");
            assert!(found.is_none_or(|name| is_name(&name)));
        }
    }
}
