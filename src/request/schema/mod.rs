//! JSON Schema of an answer or of a tool's arguments: bounds, compilation, and validation of values.

mod bounds;
#[cfg(feature = "engine")]
pub(crate) mod constraint;
#[cfg(feature = "engine")]
pub(crate) mod relax;
mod steps;

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::bounds::{SchemaBounds, SchemaMistake};
use crate::limits::{
    SCHEMA_BACKTRACK_MAX, SCHEMA_PLACE_STEPS_MAX, SCHEMA_PROGRAM_BYTES_MAX, SCHEMA_STEPS_MAX,
};

/// A JSON Schema; cheap to clone. It is compiled at most once, whichever clone is used first.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Value", into = "Value")]
pub struct Schema(Arc<Inner>);

struct Inner {
    value: Value,
    compiled: OnceLock<Result<Validator, String>>,
}

impl Schema {
    /// Whether [`Schema::compile`] has run.
    pub fn is_compiled(&self) -> bool {
        self.0.compiled.get().is_some()
    }

    /// Compiles the schema. With the bounds of [`SchemaBounds`] this takes at most some tens of
    /// milliseconds and megabytes.
    ///
    /// # Errors
    /// Why the schema is not supported.
    pub fn compile(&self) -> Result<(), String> {
        self.validator().map(drop).map_err(str::to_owned)
    }

    /// Validates a value. A schema that is not supported accepts every value.
    ///
    /// # Errors
    /// The place in the schema that the value violates, as the end of a sentence: ` at /path`.
    pub fn fits(&self, value: &Value) -> Result<(), String> {
        let Ok(validator) = self.validator() else { return Ok(()) };
        let steps = steps::steps_max(&self.0.value, value);
        if steps > SCHEMA_STEPS_MAX {
            return Err(": it has too many alternatives for this value to be checked".to_owned());
        }
        if validator.is_valid(value) {
            return Ok(());
        }
        // finding the place builds the errors of all alternatives
        let error = (steps <= SCHEMA_PLACE_STEPS_MAX)
            .then(|| validator.iter_errors(value).next())
            .flatten();
        Err(error.map(|error| format!(" at {}", error.schema_path())).unwrap_or_default())
    }

    fn validator(&self) -> Result<&Validator, &str> {
        let compiled = self.0.compiled.get_or_init(|| {
            let patterns = PatternOptions::fancy_regex()
                .backtrack_limit(SCHEMA_BACKTRACK_MAX)
                .size_limit(SCHEMA_PROGRAM_BYTES_MAX)
                .dfa_size_limit(SCHEMA_PROGRAM_BYTES_MAX);
            jsonschema::options()
                .offline()
                .with_pattern_options(patterns)
                // it would compile text of the answer
                .with_format("regex", |_: &str| true)
                .build(&self.0.value)
                .map_err(|e| unsupported(&e.instance_path().to_string(), &e.to_string()))
        });
        compiled.as_ref().map_err(String::as_str)
    }
}

/// Which part of a schema is not supported, and why. The library calls a pattern that is too large no regular expression.
fn unsupported(place: &str, error: &str) -> String {
    let hint = if error.contains("regex") {
        format!(" of at most {SCHEMA_PROGRAM_BYTES_MAX} bytes when compiled")
    } else {
        String::new()
    };
    let place = if place.is_empty() { String::new() } else { format!(" at {place}") };
    format!("is not a supported JSON Schema{place}: {error}{hint}")
}

impl From<Value> for Schema {
    fn from(value: Value) -> Schema {
        Schema(Arc::new(Inner { value, compiled: OnceLock::new() }))
    }
}

impl From<Schema> for Value {
    fn from(schema: Schema) -> Value {
        schema.0.value.clone()
    }
}

impl Deref for Schema {
    type Target = Value;

    fn deref(&self) -> &Value {
        &self.0.value
    }
}

impl PartialEq for Schema {
    fn eq(&self, other: &Schema) -> bool {
        self.0.value == other.0.value
    }
}

impl Eq for Schema {}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

#[cfg(test)]
mod tests;
