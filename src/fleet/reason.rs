//! Reasons that are kept and reported, with a bound.

use crate::limits::fleet::UPDATE_REASON_BYTES_MAX;

/// The beginning of a text, at most [`UPDATE_REASON_BYTES_MAX`] bytes: a key of the signed file, which has
/// no bound of its own, may stand in a message.
pub fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(UPDATE_REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_kept_or_left_out() {
        for (text, bytes) in [
            ("", 0),
            ("short", 5),
            ("x".repeat(600).as_str(), 512),
            (format!("{}é", "x".repeat(511)).as_str(), 511),
        ] {
            assert_eq!(shortened(text).len(), bytes);
        }
    }
}
