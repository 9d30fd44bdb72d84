//! Strict JSON: a parser that refuses duplicate keys at every level, too deep values and trailing bytes.
//!
//! RFC 8259, section 4, leaves open which of two members with one name counts; two programs that read
//! one signed file must not read it differently.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::reason::shortened;

/// The value of a JSON text. White space may follow it, nothing else.
///
/// # Errors
/// What is wrong, with the path of a duplicate key or of a value beyond `depth_max` levels.
pub(super) fn parse(text: &str, depth_max: usize) -> Result<Value, String> {
    let path = RefCell::new(Vec::new());
    let mut json = serde_json::Deserializer::from_str(text);
    let value = StrictValue { path: &path, levels: depth_max }.deserialize(&mut json);
    let value = value.map_err(|error| match joined(&path.borrow()) {
        at if at.is_empty() => format!("not valid JSON: {}", shortened(&error.to_string())),
        at => format!("not valid JSON at {}: {}", shortened(&at), shortened(&error.to_string())),
    })?;
    json.end().map_err(|error| format!("has more than one JSON value: {error}"))?;
    Ok(value)
}

fn joined(path: &[String]) -> String {
    path.join(".").replace(".[", "[")
}

/// The parser of one value, and the place of the value.
#[derive(Clone, Copy)]
struct StrictValue<'p> {
    path: &'p RefCell<Vec<String>>,
    /// Levels that the value may have.
    levels: usize,
}

impl StrictValue<'_> {
    fn inside<E: Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        let levels = levels.ok_or_else(|| E::custom("has too many levels of nesting"))?;
        Ok(StrictValue { levels, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(number.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut all = Vec::new();
        self.path.borrow_mut().push("[0]".to_owned());
        // bounded by the length of the text
        while let Some(item) = items.next_element_seed(inside)? {
            all.push(item);
            if let Some(last) = self.path.borrow_mut().last_mut() {
                *last = format!("[{}]", all.len());
            }
        }
        self.path.borrow_mut().pop();
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut all = Map::new();
        // bounded by the length of the text
        while let Some(key) = members.next_key::<String>()? {
            if all.contains_key(&key) {
                return Err(A::Error::custom(format!("duplicate key {key:?}; remove one of them")));
            }
            self.path.borrow_mut().push(key.clone());
            let value = members.next_value_seed(inside)?;
            self.path.borrow_mut().pop();
            all.insert(key, value);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        for text in [
            "null",
            "[]",
            "{}",
            r#"{"a": [1, -2, 1.5, "x", true, null, {"b": {}}], "c": "\u00e9"}"#,
            "18446744073709551615",
            " [1] \n",
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text, 8).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused_with_its_place() {
        let check = |text: &str, expected: &str| {
            let error = parse(text, 4).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check(r#"{"a": 1, "a": 1}"#, "duplicate key \"a\"");
        check(r#"{"a": 1, "\u0061": 2}"#, "duplicate key \"a\"");
        check(r#"{"x": [0, {"a": {"b": 1, "b": 2}}]}"#, "at x[1].a: duplicate key \"b\"");
        check("[[[[[]]]]]", "too many levels");
        check(&"[".repeat(10_000), "too many levels");
        check(&"{\"a\":".repeat(10_000), "too many levels");
        check("{} {}", "more than one JSON value");
        check("{}\0", "more than one JSON value");
        check("\u{feff}{}", "not valid JSON");
        check("{\"a\": \"\n\"}", "not valid JSON at a");
        check("", "not valid JSON");
        check("1e999", "not valid JSON");
    }
}
