//! Bounds of the schemas of one request, checked in one pass before anything is compiled.

use serde_json::{Map, Value};

use crate::limits::{
    SCHEMA_BYTES_MAX, SCHEMA_DEPTH_MAX, SCHEMA_PATTERN_BYTES_MAX, SCHEMA_PATTERNS_MAX,
};

/// The bounds that all schemas of one request share, and what is used of them.
#[derive(Debug, Default)]
pub struct SchemaBounds {
    patterns: usize,
}

/// Why a schema is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaMistake {
    /// It is beyond a bound.
    TooLarge(String),
    /// It is none, or uses a feature that is not supported.
    Invalid(String),
}

impl SchemaMistake {
    /// What is wrong: lower case, no full stop.
    pub fn message(self) -> String {
        match self {
            SchemaMistake::TooLarge(message) | SchemaMistake::Invalid(message) => message,
        }
    }
}

impl SchemaBounds {
    /// Checks one more schema of the request: its size and depth, its patterns, and its references,
    /// which must stay inside it.
    ///
    /// # Errors
    /// The first bound that it exceeds.
    pub fn check(&mut self, schema: &Value) -> Result<(), SchemaMistake> {
        if !schema.is_object() {
            return Err(SchemaMistake::Invalid("must be a JSON object".to_owned()));
        }
        let bytes = schema.to_string().len();
        if bytes > SCHEMA_BYTES_MAX {
            let message = format!("{bytes} bytes, at most {SCHEMA_BYTES_MAX}");
            return Err(SchemaMistake::TooLarge(message));
        }
        self.visit(schema, SCHEMA_DEPTH_MAX)
    }

    /// Looks at every object, whether it is a schema or data such as an example. `depth` is the
    /// nesting that is left.
    fn visit(&mut self, value: &Value, depth: usize) -> Result<(), SchemaMistake> {
        let none_left =
            || SchemaMistake::TooLarge(format!("nested deeper than {SCHEMA_DEPTH_MAX}"));
        match value {
            Value::Object(map) => {
                let depth = depth.checked_sub(1).ok_or_else(none_left)?;
                self.patterns_of(map)?;
                references_of(map)?;
                map.values().try_for_each(|value| self.visit(value, depth))
            }
            Value::Array(items) => {
                let depth = depth.checked_sub(1).ok_or_else(none_left)?;
                items.iter().try_for_each(|value| self.visit(value, depth))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn patterns_of(&mut self, map: &Map<String, Value>) -> Result<(), SchemaMistake> {
        let own = map.get("pattern").and_then(Value::as_str);
        let of_names = map.get("patternProperties").and_then(Value::as_object);
        let names = of_names.into_iter().flat_map(Map::keys).map(String::as_str);
        for pattern in own.into_iter().chain(names) {
            self.patterns += 1;
            if self.patterns > SCHEMA_PATTERNS_MAX {
                let message = format!("more than {SCHEMA_PATTERNS_MAX} patterns in one request");
                return Err(SchemaMistake::TooLarge(message));
            }
            if pattern.len() > SCHEMA_PATTERN_BYTES_MAX {
                let bytes = pattern.len();
                let message =
                    format!("a pattern of {bytes} bytes, at most {SCHEMA_PATTERN_BYTES_MAX}");
                return Err(SchemaMistake::TooLarge(message));
            }
        }
        Ok(())
    }
}

/// References that [`super::steps`] follows: to the schema itself, and to a place or an anchor in it.
fn references_of(map: &Map<String, Value>) -> Result<(), SchemaMistake> {
    for keyword in ["$ref", "$dynamicRef", "$recursiveRef"] {
        if let Some(Value::String(to)) = map.get(keyword)
            && !to.starts_with('#')
        {
            let message = format!("{keyword} {to:?} leaves the schema; use \"#/$defs/NAME\"");
            return Err(SchemaMistake::Invalid(message));
        }
    }
    Ok(())
}
