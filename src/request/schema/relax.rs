//! A schema without the keywords that a constraint of an engine does not implement: the complete answer is checked
//! against the schema itself.

use serde_json::{Map, Value};

use super::constraint::is_schema;

/// Formats of strings that the constraint implements; each other one is an annotation (JSON Schema 2020-12, section 7.2.1
/// of its validation vocabulary).
const FORMATS: [&str; 11] = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "unknown",
    "uri",
    "uuid",
];
/// Keywords that only a complete answer can be checked against.
const CHECKED_AFTERWARDS: [&str; 16] = [
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "$dynamicRef",
    "$recursiveRef",
];
/// Keywords beside which another schema states properties of the same object.
const COMBINING: [&str; 11] = [
    "$dynamicRef",
    "$recursiveRef",
    "$ref",
    "allOf",
    "anyOf",
    "dependencies",
    "dependentSchemas",
    "else",
    "if",
    "oneOf",
    "then",
];

/// The schema as a constraint.
pub(crate) fn relaxed(schema: Value) -> Value {
    match schema {
        Value::Object(members) => Value::Object(relaxed_members(members)),
        Value::Array(items) => items.into_iter().map(relaxed).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema,
    }
}

/// The members of a schema; those of `properties` and the like are schemas by name.
fn relaxed_members(mut members: Map<String, Value>) -> Map<String, Value> {
    let is_combined = COMBINING.iter().any(|key| members.contains_key(*key));
    if let (Some(closed), false) = (members.get("unevaluatedProperties").cloned(), is_combined) {
        members.entry("additionalProperties").or_insert(closed);
    }
    members.retain(|key, value| {
        let is_annotation =
            key == "format" && value.as_str().is_some_and(|format| !FORMATS.contains(&format));
        !is_annotation && !CHECKED_AFTERWARDS.contains(&key.as_str())
    });
    let relaxed_member = |(key, value): (String, Value)| {
        let value = if !is_schema(&key) {
            value
        } else if has_names(&key) {
            relaxed_by_name(value)
        } else {
            relaxed(value)
        };
        (key, value)
    };
    members.into_iter().map(relaxed_member).collect()
}

/// The schemas of an object, by a name each.
fn relaxed_by_name(mut named: Value) -> Value {
    if let Value::Object(named) = &mut named {
        named.values_mut().for_each(|value| *value = relaxed(value.take()));
    }
    named
}

/// Whether the members of this keyword's object are schemas by a name, which may be that of a keyword.
fn has_names(key: &str) -> bool {
    matches!(key, "properties" | "patternProperties" | "$defs" | "definitions")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_formats_are_annotations() {
        let schema = json!({"type": "object", "properties": {
            "path": {"type": "string", "format": "path"},
            "when": {"type": "string", "format": "date-time"},
            "format": {"type": "string", "format": "password"},
            "kind": {"const": {"format": "path"}},
        }});
        let expected = json!({"type": "object", "properties": {
            "path": {"type": "string"},
            "when": {"type": "string", "format": "date-time"},
            "format": {"type": "string"},
            "kind": {"const": {"format": "path"}},
        }});
        assert_eq!(relaxed(schema), expected);
    }

    #[test]
    fn keywords_that_only_a_complete_answer_has_are_left_out() {
        let schema = json!({
            "type": "array", "uniqueItems": true, "contains": {"const": 1},
            "items": {"anyOf": [{"type": "string", "not": {"const": ""}}, {"$ref": "#/$defs/not"}]},
            "$defs": {"not": {"type": "object", "propertyNames": {"pattern": "^a"}, "if": {}, "then": {}}},
        });
        let expected = json!({
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/not"}]},
            "$defs": {"not": {"type": "object"}},
        });
        assert_eq!(relaxed(schema), expected);
    }

    #[test]
    fn a_closed_object_stays_closed() {
        let schema = json!({"properties": {"a": {}}, "unevaluatedProperties": false});
        let expected = json!({"properties": {"a": {}}, "additionalProperties": false});
        assert_eq!(relaxed(schema), expected);
        let combined =
            json!({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": false});
        assert_eq!(relaxed(combined), json!({"allOf": [{"properties": {"a": {}}}]}));
        let conditional =
            json!({"if": {}, "then": {"properties": {"a": {}}}, "unevaluatedProperties": false});
        assert_eq!(relaxed(conditional), json!({}));
    }
}
