//! Errors of reading JSON in the words of its author, who knows JSON and not Rust.

/// Longest name that is compared with others, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The message of serde with words for Rust's types.
pub fn in_words(message: String) -> String {
    let parts = message.rsplit_once(", expected ").filter(|_| message.starts_with("invalid "));
    let Some((found, expected)) = parts else { return message };
    let words = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list in [ ]",
        "a map" => "an object in { }",
        _ if expected.starts_with("struct ") => "an object in { }",
        _ => return message,
    };
    format!("{found}, expected {words}")
}

/// The message of an unknown field or variant with the nearest known name, if one is near.
///
/// Serde names in backticks first the unknown name, which may have some itself, then all known ones.
pub fn with_nearest(message: String) -> String {
    let parts = message.strip_prefix("unknown ").and_then(|rest| rest.rsplit_once("`, expected "));
    let Some((unknown, known)) = parts else { return message };
    let Some((_, unknown)) = unknown.split_once('`') else { return message };
    match nearest(unknown, known.split('`').skip(1).step_by(2)) {
        Some(known) => format!("{message}; the nearest is `{known}`"),
        None => message,
    }
}

/// The known name that is nearest to an unknown one, if one is near: a third of the name may differ, so that
/// `max_token` is near to `max_tokens`, and `colour` to nothing. Names of more than 64 bytes are near to none: the
/// work grows with the product of the lengths, and a client writes the unknown one.
pub fn nearest<'n>(unknown: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    if unknown.len() > NAME_BYTES_MAX {
        return None;
    }
    let known = known.filter(|known| known.len() <= NAME_BYTES_MAX);
    let distance = |known: &str| strsim::damerau_levenshtein(unknown, known);
    let nearest = known.map(|known| (distance(known), known)).min();
    let (_, known) = nearest.filter(|(distance, _)| *distance <= (unknown.len() / 3).max(1))?;
    Some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_told() {
        let message = "unknown field `max_token`, expected one of `model`, `max_tokens`".to_owned();
        assert!(with_nearest(message).ends_with("; the nearest is `max_tokens`"));
        let message = "unknown field `colour`, expected `model`".to_owned();
        assert_eq!(with_nearest(message.clone()), message);
        assert_eq!(with_nearest("invalid type".to_owned()), "invalid type");
    }

    /// A client writes the unknown name.
    #[test]
    fn long_names_and_backticks_cost_nothing() {
        let long = "a".repeat(500_000);
        for unknown in
            [long.clone(), format!("{long}`x`{long}"), format!("{long}`, expected `{long}")]
        {
            let message = format!("unknown field `{unknown}`, expected `model` or `{long}`");
            assert_eq!(with_nearest(message.clone()), message);
        }
    }
}
