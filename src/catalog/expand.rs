//! Expansion of `${VAR}`, `${VAR:-default}` and `${env:VAR}` in the strings of `mcp.json`.

use std::collections::BTreeMap;

use crate::limits::config::VARIABLE_NAME_BYTES_MAX;

/// The values of variables by name.
pub type Variables = BTreeMap<String, String>;

/// Expands the variables in one string; `$$` is a dollar sign.
///
/// An empty variable counts as not set.
///
/// # Errors
/// A message that names the variable that is not set, or tells of an unclosed brace, without the text.
pub fn expand(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // bounded: each turn consumes at least one byte of `rest`
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let Some(end) = after.find('}') else {
                // without the text, which may be a secret
                return Err("has a ${ that is not closed; write $$ for a dollar sign".to_owned());
            };
            out.push_str(&value_of(&after[..end], variables)?);
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The names of the variables in a string.
pub(crate) fn names(text: &str) -> impl Iterator<Item = &str> {
    let inside = text.split("${").skip(1).filter_map(|rest| rest.split_once('}'));
    inside.map(|(inside, _)| split(inside).0)
}

/// The name of a variable and its default.
fn split(inside: &str) -> (&str, Option<&str>) {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    (name.strip_prefix("env:").unwrap_or(name), default)
}

fn value_of(inside: &str, variables: &Variables) -> Result<String, String> {
    let (name, default) = split(inside);
    match (variables.get(name).filter(|value| !value.is_empty()), default) {
        (Some(value), _) => Ok(value.clone()),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) if !is_variable(name) => {
            Err("has a `${…}` that holds no name of a variable; `$$` is a dollar sign".to_owned())
        }
        (None, None) => Err(format!(
            "the variable {name} is not set; set it in the environment or in .env, or write \
             ${{{name}:-default}}"
        )),
    }
}

/// Whether this can be the name of a variable, of at most [`VARIABLE_NAME_BYTES_MAX`]: messages repeat it.
pub(super) fn is_variable(name: &str) -> bool {
    name.len() <= VARIABLE_NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let variables =
            Variables::from([("A".into(), "1".into()), ("EMPTY".into(), String::new())]);
        match (expand(text, &variables), expected) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{text}: {got}"),
            (got, want) => panic!("{text}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn variables_and_defaults_are_expanded() {
        check("plain", Ok("plain"));
        check("${A}", Ok("1"));
        check("x${A}y${A}", Ok("x1y1"));
        check("${env:A}", Ok("1"));
        check("${B:-two}", Ok("two"));
        check("${EMPTY:-two}", Ok("two"));
        check("${B:-}", Ok(""));
        check("$$${A}", Ok("$1"));
        check("5$ and $", Ok("5$ and $"));
        check("${B}", Err("B is not set"));
        check("${EMPTY}", Err("EMPTY is not set"));
        check("${A", Err("not closed"));
        check("${sk-123}", Err("holds no name"));
        let longest = "N".repeat(VARIABLE_NAME_BYTES_MAX);
        check(&format!("${{{longest}}}"), Err("N is not set"));
        check(&format!("${{{longest}N}}"), Err("holds no name"));
    }
}
