//! Upper bound of the work to validate one value: how often subschemas are applied to its parts.
//!
//! A validator that tries all alternatives at each level takes time exponential in the depth of the
//! value, for example for `anyOf` of two arrays whose items refer back to the `anyOf`. This module
//! counts these applications without making them: for each part of the value it keeps each subschema
//! once, with the number of times that it applies.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::limits::{SCHEMA_ACTIVE_MAX, SCHEMA_STEPS_MAX};

/// Keywords with one subschema for the same part.
const SAME: [&str; 4] = ["not", "if", "then", "else"];
/// Keywords with an array of subschemas for the same part.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords with named subschemas for the same part.
const SAME_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
/// Keywords whose subschema applies to each property.
const PROPERTIES: [&str; 2] = ["additionalProperties", "unevaluatedProperties"];
/// Keywords whose subschema applies to each item.
const ITEMS: [&str; 4] = ["items", "additionalItems", "contains", "unevaluatedItems"];
/// Keywords that refer to another place of the schema.
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Subschemas that apply to one part, by address, each with its count.
type Active<'a> = BTreeMap<*const Value, (&'a Value, u64)>;

/// The number of applications, as far as [`SCHEMA_STEPS_MAX`]: beyond that the count ends.
pub(super) fn steps_max(schema: &Value, value: &Value) -> u64 {
    let mut anchors = BTreeMap::new();
    anchors_of(schema, &mut anchors);
    let mut count = StepCount { root: schema, anchors, steps: 0 };
    let mut active = Active::new();
    add(&mut active, schema, 1);
    count.part(&active, value);
    count.steps
}

struct StepCount<'a> {
    root: &'a Value,
    anchors: BTreeMap<&'a str, &'a Value>,
    steps: u64,
}

impl<'a> StepCount<'a> {
    /// Counts one part of the value and the parts below it. The depth is that of the value, which
    /// `serde_json` bounds.
    fn part(&mut self, asked: &Active<'a>, value: &Value) {
        let active = self.with_same(asked);
        let here = active.values().fold(0_u64, |sum, (_, n)| sum.saturating_add(*n));
        self.steps = self.steps.saturating_add(here);
        match value {
            Value::Object(map) => {
                for (name, child) in map {
                    if self.is_over() {
                        return;
                    }
                    self.part(&property(&active, name), child);
                }
            }
            Value::Array(items) => {
                for (n, child) in items.iter().enumerate() {
                    if self.is_over() {
                        return;
                    }
                    self.part(&item(&active, n), child);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn is_over(&self) -> bool {
        self.steps > SCHEMA_STEPS_MAX
    }

    /// Adds the subschemas that apply to the same part. Each round follows one more level of keywords
    /// and references; more levels than subschemas are references in a circle.
    fn with_same(&mut self, asked: &Active<'a>) -> Active<'a> {
        let mut all = Active::new();
        let mut front = asked.clone();
        let mut reached = 0_u64;
        for levels in 0..SCHEMA_ACTIVE_MAX {
            let is_over = reached > SCHEMA_STEPS_MAX || all.len() > SCHEMA_ACTIVE_MAX;
            if front.is_empty() || is_over || all.len() < levels {
                break;
            }
            let mut next = Active::new();
            for (schema, n) in front.values().copied() {
                reached = reached.saturating_add(n);
                self.each_same(schema, &mut |inner| add(&mut next, inner, n));
                add(&mut all, schema, n);
            }
            front = next;
        }
        if !front.is_empty() {
            self.steps = u64::MAX;
        }
        all
    }

    fn each_same(&self, schema: &'a Value, take: &mut dyn FnMut(&'a Value)) {
        let Value::Object(map) = schema else { return };
        let single = SAME.iter().filter_map(|key| map.get(*key));
        let lists = SAME_LISTS.iter().filter_map(|key| map.get(*key)?.as_array()).flatten();
        let maps = SAME_MAPS.iter().filter_map(|key| map.get(*key)?.as_object());
        single.chain(lists).chain(maps.flat_map(Map::values)).for_each(&mut *take);
        let references = REFERENCES.iter().filter_map(|key| map.get(*key)?.as_str());
        references.filter_map(|to| self.target(to)).for_each(take);
    }

    /// The subschema that a reference names; none if there is none, which the compiler refuses.
    fn target(&self, to: &str) -> Option<&'a Value> {
        let place = to.strip_prefix('#')?;
        match place {
            "" => Some(self.root),
            // a fragment is percent-encoded (RFC 6901, section 6)
            _ if place.starts_with('/') => {
                let place = percent_decode_str(place).decode_utf8_lossy();
                self.root.pointer(&place)
            }
            _ => self.anchors.get(place).copied(),
        }
    }
}

fn add<'a>(active: &mut Active<'a>, schema: &'a Value, n: u64) {
    let (_, count) = active.entry(std::ptr::from_ref(schema)).or_insert((schema, 0));
    *count = count.saturating_add(n);
}

/// The subschemas for one property. Patterns and names count whether they match or not.
fn property<'a>(active: &Active<'a>, name: &str) -> Active<'a> {
    let mut below = Active::new();
    for (schema, n) in active.values().copied() {
        let named = schema.get("properties").and_then(|all| all.get(name));
        let by_pattern = schema.get("patternProperties").and_then(Value::as_object);
        let others = PROPERTIES.iter().filter_map(|key| schema.get(*key));
        let all = named.into_iter().chain(others);
        all.chain(by_pattern.into_iter().flat_map(Map::values))
            .for_each(|inner| add(&mut below, inner, n));
    }
    below
}

/// The subschemas for one item of an array.
fn item<'a>(active: &Active<'a>, at: usize) -> Active<'a> {
    let mut below = Active::new();
    for (schema, n) in active.values().copied() {
        for inner in ITEMS.iter().filter_map(|key| schema.get(*key)) {
            match inner {
                Value::Array(positions) => {
                    positions.get(at).into_iter().for_each(|inner| add(&mut below, inner, n));
                }
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Object(_) => add(&mut below, inner, n),
            }
        }
        let positions = schema.get("prefixItems").and_then(Value::as_array);
        positions.and_then(|all| all.get(at)).into_iter().for_each(|one| add(&mut below, one, n));
    }
    below
}

/// Every `$anchor` of the schema. The depth was checked.
fn anchors_of<'a>(schema: &'a Value, anchors: &mut BTreeMap<&'a str, &'a Value>) {
    match schema {
        Value::Object(map) => {
            for key in ["$anchor", "$dynamicAnchor"] {
                if let Some(Value::String(name)) = map.get(key) {
                    anchors.insert(name, schema);
                }
            }
            map.values().for_each(|inner| anchors_of(inner, anchors));
        }
        Value::Array(items) => items.iter().for_each(|inner| anchors_of(inner, anchors)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
