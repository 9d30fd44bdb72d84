//! Deserialization of one part of the file that finds every mistake of shape, not only the first.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Error as _, IntoDeserializer, Unexpected, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::mistake::Scope;
use crate::request::numbers::whole_of;
use crate::request::wording::{in_words, with_nearest};

/// One step of a path within a part.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Item(usize),
}

/// Deserializes a part of the file, and adds every mistake of shape with its path.
///
/// Serde stops at the first mistake. The value at its path is removed and the rest is deserialized
/// again until no mistake is left. None if there was a mistake.
pub(crate) fn read<T: DeserializeOwned>(mut value: Value, scope: &mut Scope<'_>) -> Option<T> {
    let mut removed: Vec<Vec<Step>> = Vec::new();
    // bounded: each turn removes a member or an item of the value, or returns
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(Strict(&value)) {
            Ok(part) => return removed.is_empty().then_some(part),
            Err(error) => error,
        };
        let steps: Vec<Step> = error.path().iter().map_while(step).collect();
        // the content of an externally tagged enum can't be removed by itself
        let is_outside = |segment: &&Segment| !matches!(segment, Segment::Enum { .. });
        let outside = error.path().iter().take_while(is_outside).count().min(steps.len());
        let (original, steps) = (original(&steps, &removed), &steps[..outside]);
        let message = error.inner().to_string();
        if !is_consequence(&message, &original, &removed) {
            add(with_nearest(in_words(without_text(message))), &original, scope);
        }
        if scope.is_full() || !remove(&mut value, steps) {
            return None;
        }
        removed.push(original[..outside].to_vec());
    }
}

/// A value whose objects are written as such: serde takes an array of values for a struct, too.
#[derive(Clone, Copy)]
struct Strict<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Strict<'de> {
    type Deserializer = Strict<'de>;

    fn into_deserializer(self) -> Strict<'de> {
        self
    }
}

impl<'de> Strict<'de> {
    /// A whole number, which may be written with a fraction of zero.
    fn whole<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, serde_json::Error> {
        match self.0.as_f64().filter(|_| self.0.is_f64()).and_then(whole_of) {
            Some(number) => visitor.visit_u64(number),
            None => self.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Strict));
                let read = visitor.visit_seq(&mut items)?;
                items.end().map(|()| read)
            }
            Value::Object(map) => {
                let members = map.iter().map(|(key, value)| (key.as_str(), Strict(value)));
                visitor.visit_map(MapDeserializer::new(members))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                self.0.deserialize_any(visitor)
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(_) => Err(Self::Error::invalid_type(Unexpected::Seq, &visitor)),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.whole(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.whole(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.whole(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.whole(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// Like [`read`]; the default if the part is absent or has a mistake.
pub(crate) fn read_or_default<T: DeserializeOwned + Default>(
    value: Option<Value>,
    scope: &mut Scope<'_>,
) -> T {
    value.and_then(|value| read(value, scope)).unwrap_or_default()
}

/// The members of an object, in the order of the file; none if the part is absent or no object.
pub(crate) fn entries(value: Option<Value>, scope: &mut Scope<'_>) -> Vec<(String, Value)> {
    let map: Map<String, Value> = read_or_default(value, scope);
    map.into_iter().collect()
}

/// An object whose members are deserialized one by one.
pub(crate) struct Members(Map<String, Value>);

impl Members {
    /// The members of an object; one that is not known is a mistake, in the words of serde.
    pub(crate) fn read(value: Value, known: &[&str], scope: &mut Scope<'_>) -> Members {
        let parts: Map<String, Value> = read_or_default(Some(value), scope);
        for key in parts.keys().filter(|key| !known.contains(&key.as_str())) {
            let all = known.join("`, `");
            let message = format!("unknown field `{key}`, expected one of `{all}`");
            scope.at(key).add(with_nearest(message));
        }
        Members(parts)
    }

    /// Takes a member out; none if it is absent.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }
}

/// Adds a mistake for each of these members that the value lacks, in the words of serde.
pub(crate) fn require(value: &Value, keys: &[&str], scope: &mut Scope<'_>) {
    let Value::Object(map) = value else { return };
    for key in keys.iter().filter(|key| !map.contains_key(**key)) {
        scope.add(format!("missing field `{key}`"));
    }
}

fn step(segment: &Segment) -> Option<Step> {
    match segment {
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Key(key.clone())),
        Segment::Unknown => None,
    }
}

/// The path as it is in the file: items that were removed before it shift its indices.
fn original(steps: &[Step], removed: &[Vec<Step>]) -> Vec<Step> {
    let mut path: Vec<Step> = Vec::with_capacity(steps.len());
    for step in steps {
        let step = match step {
            Step::Key(key) => Step::Key(key.clone()),
            Step::Item(index) => {
                let removed = removed.iter().filter_map(|other| match other.split_last() {
                    Some((Step::Item(index), parent)) if parent == path => Some(*index),
                    Some((Step::Item(_) | Step::Key(_), _)) | None => None,
                });
                let mut removed: Vec<usize> = removed.collect();
                removed.sort_unstable();
                Step::Item(
                    removed.iter().fold(*index, |index, gone| index + usize::from(*gone <= index)),
                )
            }
        };
        path.push(step);
    }
    path
}

/// Whether a field is missing only because its value was removed.
fn is_consequence(message: &str, path: &[Step], removed: &[Vec<Step>]) -> bool {
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
    missing.is_some_and(|key| {
        removed.iter().any(|gone| gone.split_last() == Some((&Step::Key(key.to_owned()), path)))
    })
}

fn add(message: String, path: &[Step], scope: &mut Scope<'_>) {
    match path {
        [] => scope.add(message),
        [Step::Key(key), rest @ ..] => add(message, rest, &mut scope.at(key)),
        [Step::Item(index), rest @ ..] => add(message, rest, &mut scope.item(*index)),
    }
}

/// Removes the value at this path; false if it is the whole part or not there.
fn remove(value: &mut Value, path: &[Step]) -> bool {
    match (path, value) {
        ([Step::Key(key)], Value::Object(map)) => map.shift_remove(key).is_some(),
        ([Step::Item(index)], Value::Array(items)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        ([Step::Key(key), rest @ ..], Value::Object(map)) => {
            map.get_mut(key).is_some_and(|value| remove(value, rest))
        }
        ([Step::Item(index), rest @ ..], Value::Array(items)) => {
            items.get_mut(*index).is_some_and(|value| remove(value, rest))
        }
        (_, _) => false,
    }
}

/// The message without the text that has the wrong type: it may be a secret, which a variable has put
/// into the wrong place.
fn without_text(message: String) -> String {
    for kind in ["invalid type: string", "invalid value: string"] {
        // what is expected is in serde's words, and may be quoted
        let end = message.starts_with(kind).then(|| message.rfind(", expected ")).flatten();
        if let Some(end) = end {
            return format!("{kind}{}", &message[end..]);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::super::mistake::Mistakes;
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Part {
        count: u32,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        inner: BTreeMap<String, Vec<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its shape counts")]
    struct Inner {
        size: u32,
    }

    fn check(value: Value, expected: &[&str]) {
        let mut mistakes = Mistakes::default();
        let part: Option<Part> = read(value, &mut mistakes.at("part"));
        assert_eq!(part.is_some(), expected.is_empty());
        let found: Vec<String> = mistakes.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }

    #[test]
    fn every_mistake_of_a_part_is_found_with_its_path() {
        check(json!({"count": 1}), &[]);
        check(json!(5), &["part: invalid type: integer `5`, expected an object in { }"]);
        check(json!({}), &["part: missing field `count`"]);
        check(
            json!({
                "cuont": 1, "names": ["a", 2, "b", 4],
                "inner": {"x": [{"size": 1}, {"size": -1}, {}, {"size": "x"}], "y": 3},
            }),
            &[
                "part.cuont: unknown field `cuont`, expected one of `count`, `names`, `inner`; the \
                 nearest is `count`",
                "part.names[1]: invalid type: integer `2`",
                "part.names[3]: invalid type: integer `4`",
                "part.inner.x[1].size: invalid value: integer `-1`",
                "part.inner.x[2]: missing field `size`",
                "part.inner.x[3].size: invalid type: string, expected a whole number, 0 or more",
                "part.inner.y: invalid type: integer `3`",
                "part: missing field `count`",
            ],
        );
    }

    #[test]
    fn a_removed_value_is_not_also_missing() {
        check(
            json!({"count": "one"}),
            &["part.count: invalid type: string, expected a whole number, 0 or more"],
        );
    }
}
