//! What a JSON Schema costs as a constraint of an engine: parts whose compilation the library does not bound.

use serde_json::{Map, Value};

use crate::limits::engine::{MULTIPLE_OF_MAX, PATTERN_PROPERTIES_MAX, PATTERNS_JOINED_MAX};

/// Most schemas that are looked at for the patterns of one `allOf`: references can lead to any number.
const VISITS_MAX: usize = 256;

/// The first part of a schema that costs too much to compile: where it is, and what to do.
///
/// The depth of a schema is bounded by its reader.
pub(crate) fn excess(schema: &Value) -> Option<String> {
    Cost { root: schema, pattern_properties: 0 }.excess_below(schema, "schema")
}

struct Cost<'s> {
    root: &'s Value,
    /// Members of all `patternProperties`: each is compared with each other one.
    pattern_properties: usize,
}

impl Cost<'_> {
    fn excess_below(&mut self, schema: &Value, path: &str) -> Option<String> {
        match schema {
            Value::Object(members) => wide_multiple(members, path)
                .or_else(|| self.many_pattern_properties(members, path))
                .or_else(|| self.many_patterns_at_once(members, path))
                .or_else(|| {
                    let mut members = members.iter().filter(|(key, _)| is_schema(key));
                    members
                        .find_map(|(key, value)| self.excess_below(value, &format!("{path}.{key}")))
                }),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .find_map(|(n, item)| self.excess_below(item, &format!("{path}[{n}]"))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    }

    fn many_pattern_properties(
        &mut self,
        members: &Map<String, Value>,
        path: &str,
    ) -> Option<String> {
        self.pattern_properties += members.get("patternProperties")?.as_object()?.len();
        (self.pattern_properties > PATTERN_PROPERTIES_MAX).then(|| {
            format!(
                "{path}.patternProperties: a constraint can have at most {PATTERN_PROPERTIES_MAX} \
                 patterns of properties; name the properties"
            )
        })
    }

    /// Patterns that one text must match together: their product grows with the power of their number.
    fn many_patterns_at_once(&self, members: &Map<String, Value>, path: &str) -> Option<String> {
        if !members.contains_key("allOf") {
            return None;
        }
        let mut visits = VISITS_MAX;
        let joined = self.patterns_joined(members, &mut visits);
        (joined > PATTERNS_JOINED_MAX).then(|| {
            format!(
                "{path}.allOf joins {joined} patterns: a constraint can have at most \
                 {PATTERNS_JOINED_MAX} for one text; write one pattern"
            )
        })
    }

    fn patterns_joined(&self, members: &Map<String, Value>, visits: &mut usize) -> usize {
        if *visits == 0 {
            return 0;
        }
        *visits -= 1;
        let own = ["pattern", "format"].iter().filter(|key| members.contains_key(**key)).count();
        let target = members.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|target| self.root.pointer(target.strip_prefix('#')?));
        let all = members.get("allOf").and_then(Value::as_array).into_iter().flatten();
        let all = all.chain(target).filter_map(Value::as_object);
        own + all.map(|part| self.patterns_joined(part, visits)).sum::<usize>()
    }
}

/// Whether the value of a keyword can contain schemas, and not only values.
pub(super) fn is_schema(key: &str) -> bool {
    !matches!(key, "const" | "enum" | "default" | "examples")
}

fn wide_multiple(members: &Map<String, Value>, path: &str) -> Option<String> {
    let divisor = members.get("multipleOf")?.as_f64()?;
    (!is_narrow(divisor)).then(|| {
        format!(
            "{path}.multipleOf is {divisor}: a constraint can have at most {MULTIPLE_OF_MAX} units of \
             its last decimal place; use a smaller one, or check the number in the application"
        )
    })
}

/// Whether a divisor has at most [`MULTIPLE_OF_MAX`] remainders, in units of its last decimal place.
fn is_narrow(divisor: f64) -> bool {
    let mut units = divisor.abs();
    // a number in JSON has at most 17 significant digits
    for _ in 0..=17 {
        if units > f64::from(MULTIPLE_OF_MAX) {
            return false;
        }
        if units.fract() == 0.0 {
            return true;
        }
        units *= 10.0;
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_that_cost_too_much_are_named() {
        let check = |schema: Value, expected: Option<&str>| {
            let found = excess(&schema);
            let fits = match (&found, expected) {
                (Some(found), Some(expected)) => found.starts_with(expected),
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(fits, "{schema}: {found:?}");
        };
        let multiple =
            |divisor: f64| json!({"properties": {"n": {"items": [{"multipleOf": divisor}]}}});
        for divisor in [1.0, 5.0, 0.01, 0.001, 0.25, 1000.0, 99.9] {
            check(multiple(divisor), None);
        }
        for divisor in [99_999_989.0, 1001.0, 0.12345, 1e-17, 1e300] {
            check(multiple(divisor), Some("schema.properties.n.items[0].multipleOf is "));
        }
        // a value, and the name of a property
        check(json!({"enum": [{"multipleOf": 1e9}], "const": {"multipleOf": 1e9}}), None);
        check(json!({"properties": {"multipleOf": {"type": "integer"}}}), None);
        let joined = |n: usize| json!({"allOf": vec![json!({"allOf": [{"pattern": "a"}]}); n]});
        check(joined(PATTERNS_JOINED_MAX), None);
        check(joined(PATTERNS_JOINED_MAX + 1), Some("schema.allOf joins 7 patterns"));
        let referred = json!({"allOf": vec![json!({"$ref": "#/$defs/a"}); 7], "$defs": {"a": {"pattern": "a"}}});
        check(referred, Some("schema.allOf joins 7 patterns"));
        let endless = json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}], "pattern": "a"});
        check(endless, Some("schema.allOf joins "));
        let named = |n: usize| {
            let all: Map<String, Value> = (0..n).map(|n| (format!("^{n}"), json!({}))).collect();
            json!({"items": {"patternProperties": all}})
        };
        check(named(PATTERN_PROPERTIES_MAX), None);
        check(
            named(PATTERN_PROPERTIES_MAX + 1),
            Some("schema.items.patternProperties: a constraint can have at most 32"),
        );
    }
}
