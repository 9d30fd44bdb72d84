//! Errors of reading JSON in the words of its author, who knows JSON and not Rust.

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
/// Serde names in backticks first the unknown name, then all known ones.
pub fn with_nearest(message: String) -> String {
    if !message.starts_with("unknown ") {
        return message;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(unknown) = names.next() else { return message };
    match nearest(unknown, names) {
        Some(known) => format!("{message}; the nearest is `{known}`"),
        None => message,
    }
}

/// The known name that is nearest to an unknown one, if one is near: a third of the name may differ, so that
/// `max_token` is near to `max_tokens`, and `colour` to nothing.
pub fn nearest<'n>(unknown: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let distance = |known: &str| strsim::damerau_levenshtein(unknown, known);
    let nearest = known.map(|known| (distance(known), known)).min();
    let (_, known) = nearest.filter(|(distance, _)| *distance <= (unknown.len() / 3).max(1))?;
    Some(known)
}
