//! Tests of bounds and costs of schemas.
#![expect(clippy::disallowed_methods, reason = "costs are measured")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// Far above what each of these takes, in an unoptimized build on a busy machine too, and far below
/// what they took without bounds: from 40 s to hours.
const QUICK: Duration = Duration::from_secs(5);

fn bounded(schema: &Value) -> Result<(), SchemaMistake> {
    SchemaBounds::default().check(schema)
}

/// One object schema with `n` properties of different patterns.
fn with_patterns(n: usize, pattern: impl Fn(usize) -> String) -> Value {
    let property = |i| (format!("p{i}"), json!({"type": "string", "pattern": pattern(i)}));
    json!({"type": "object", "properties": Value::Object((0..n).map(property).collect())})
}

#[test]
fn patterns_are_bounded_in_number_and_size() {
    let large = |message: &str| Err(SchemaMistake::TooLarge(message.to_owned()));
    let count = "more than 64 patterns in one request";
    assert_eq!(bounded(&with_patterns(300, |i| format!("^\\pL{{200}}{i}$"))), large(count));
    assert_eq!(bounded(&with_patterns(65, |i| format!("^a{i}$"))), large(count));
    assert_eq!(bounded(&with_patterns(64, |i| format!("^a{i}$"))), Ok(()));
    let names: Value = (0..65).map(|i| (format!("^x{i}"), json!(true))).collect();
    assert_eq!(bounded(&json!({"patternProperties": names})), large(count));
    // all schemas of a request share one bound
    let mut request = SchemaBounds::default();
    assert_eq!(request.check(&with_patterns(40, |i| format!("a{i}"))), Ok(()));
    assert_eq!(request.check(&with_patterns(40, |i| format!("a{i}"))), large(count));
    let long = json!({"pattern": "a".repeat(513)});
    assert_eq!(bounded(&long), large("a pattern of 513 bytes, at most 512"));
}

#[test]
fn size_depth_and_references_are_bounded() {
    assert!(matches!(bounded(&json!([])), Err(SchemaMistake::Invalid(_))));
    let large = json!({"enum": ["x".repeat(65 * 1024)]});
    assert!(matches!(bounded(&large), Err(SchemaMistake::TooLarge(_))));
    let deep = |n| (0..n).fold(json!(true), |inner, _| json!({ "not": inner }));
    assert_eq!(bounded(&deep(32)), Ok(()));
    assert!(matches!(bounded(&deep(33)), Err(SchemaMistake::TooLarge(_))));
    for to in ["http://127.0.0.1/a.json", "file:///etc/passwd", "other.json", "a#/b"] {
        let error = bounded(&json!({"items": {"$ref": to}})).unwrap_err().message();
        assert!(error.contains("leaves the schema"), "{error}");
    }
    // a property of that name is no reference
    assert_eq!(bounded(&json!({"properties": {"$ref": {"type": "string"}}})), Ok(()));
}

#[test]
fn a_pattern_that_compiles_to_too_much_is_refused_at_once() {
    let started = Instant::now();
    for pattern in [r"^\pL{200}7$", r"(\w{100}){100}", r"(((a{100}){100}){100})", r"(?=\pL{300})a"]
    {
        let schema = Schema::from(json!({"pattern": pattern}));
        assert_eq!(bounded(&schema), Ok(()), "{pattern}");
        let error = schema.compile().unwrap_err();
        assert!(error.contains("at most 65536 bytes when compiled"), "{error}");
    }
    // the most that one request may ask for
    let most = Schema::from(with_patterns(64, |i| format!("^\\pL{{3}}.{{100}}{i}$")));
    assert_eq!(bounded(&most), Ok(()));
    drop(most.compile());
    assert!(started.elapsed() < QUICK, "{:?}", started.elapsed());
}

#[test]
fn common_patterns_are_supported() {
    for (pattern, good, bad) in [
        (r"^\p{L}+$", "Zoë", "7"),
        (r"^.{1,255}$", "x", ""),
        (r"^[0-9a-f]{8}-[0-9a-f]{4}$", "0123abcd-0123", "0123"),
        (r"^([01]?\d|2[0-3]):[0-5]\d$", "23:59", "24:00"),
        (r"^[\w.+-]+@[\w-]+\.[\w.-]+$", "a.b@c.de", "a.b"),
        (r"^(?!admin)\w+$", "user", "admin1"),
        (r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$", "2026-01-31T00:00:00Z", "2026"),
    ] {
        let schema = Schema::from(json!({"type": "string", "pattern": pattern}));
        assert_eq!(schema.compile(), Ok(()), "{pattern}");
        assert_eq!(schema.fits(&json!(good)), Ok(()), "{pattern}");
        assert_eq!(schema.fits(&json!(bad)), Err(" at /pattern".to_owned()), "{pattern}");
    }
}

#[test]
fn a_clone_shares_the_compiled_schema() {
    let schema = Schema::from(json!({"type": "object"}));
    let clone = schema.clone();
    assert!(!clone.is_compiled());
    schema.compile().unwrap();
    assert!(clone.is_compiled());
    assert!(Schema::from(json!({"type": "nothing"})).compile().is_err());
}

/// Schemas that take time exponential in the depth of a value, each with that value.
fn exponential() -> Vec<(Value, Value)> {
    let nested = (0..60).fold(json!("leaf"), |inner, _| json!([inner]));
    let object = (0..60).fold(json!("leaf"), |inner, _| json!({ "a": inner }));
    let two = |one: Value, other: Value| json!({"anyOf": [one, other]});
    let list = |extra: &str| json!({"type": "array", "items": {"$ref": "#"}, extra: 1});
    let chain = |keyword: &str| {
        let link = |i: usize| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({keyword: [next, next]}))
        };
        let mut links: serde_json::Map<String, Value> = (0..60).map(link).collect();
        links.insert("d60".to_owned(), json!({"type": "object"}));
        json!({"$defs": links, "$ref": "#/$defs/d0"})
    };
    let mut circle = chain("anyOf");
    circle["$defs"]["d8"]["anyOf"][0]["$ref"] = json!("#/$defs/d8");
    // each of many refers to the next two, so that they apply at many levels
    let next_two = |i: usize| {
        let next = [1, 2].map(|n| json!({"$ref": format!("#/$defs/{}", i + n)}));
        (i.to_string(), json!({"anyOf": next}))
    };
    let mut many: serde_json::Map<String, Value> = (0..800).map(next_two).collect();
    many.extend([800, 801].map(|i| (i.to_string(), json!({"type": "object"}))));
    vec![
        (circle, json!(1)),
        (json!({"$defs": many, "$ref": "#/$defs/0"}), json!(1)),
        (two(list("minItems"), list("maxItems")), nested.clone()),
        (json!({"oneOf": [list("minItems"), list("maxItems")]}), nested.clone()),
        (json!({"allOf": [list("minItems"), list("maxItems")]}), nested.clone()),
        (json!({"not": list("minItems"), "items": {"$ref": "#"}}), nested.clone()),
        (json!({"if": list("minItems"), "else": list("maxItems")}), nested.clone()),
        (json!({"prefixItems": [{"$ref": "#"}], "contains": {"$ref": "#"}}), nested.clone()),
        (json!({"$anchor": "me", "items": {"$ref": "#me"}, "contains": {"$ref": "#"}}), nested),
        (
            json!({"properties": {"a": {"$ref": "#"}}, "patternProperties": {"a": {"$ref": "#"}}}),
            object.clone(),
        ),
        (
            json!({"properties": {"a": {"$ref": "#"}},
                   "dependentSchemas": {"a": {"properties": {"a": {"$ref": "#"}}}}}),
            object.clone(),
        ),
        (
            json!({"additionalProperties": {"$ref": "#"},
                   "allOf": [{"additionalProperties": {"$ref": "#"}}]}),
            object,
        ),
        (chain("allOf"), json!({})),
        (chain("anyOf"), json!(1)),
        (json!({"allOf": [{"$ref": "#"}]}), json!(1)),
    ]
}

#[test]
fn a_value_with_exponential_cost_is_refused_and_not_tried() {
    for (schema, value) in exponential() {
        let started = Instant::now();
        assert_eq!(bounded(&schema), Ok(()), "{schema}");
        let schema = Schema::from(schema);
        let misfit = schema.fits(&value).unwrap_err();
        assert!(misfit.contains("too many alternatives"), "{schema:?}: {misfit}");
        assert!(started.elapsed() < QUICK, "{schema:?}: {:?}", started.elapsed());
    }
}

#[test]
fn recursive_schemas_of_ordinary_values_are_checked() {
    let tree = Schema::from(json!({
        "$defs": {"node": {"type": "object", "properties": {
            "value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        }, "required": ["value"]}},
        "$ref": "#/$defs/node",
    }));
    let leaf = json!({"value": 1, "children": []});
    let deep = (0..40).fold(leaf, |inner, _| json!({"value": 1, "children": [inner]}));
    assert_eq!(tree.fits(&deep), Ok(()));
    let wrong = json!({"value": 1, "children": [{"value": "secret"}]});
    let misfit = tree.fits(&wrong).unwrap_err();
    assert!(misfit.contains("/properties/value/type") && !misfit.contains("secret"), "{misfit}");
    // one branch for each kind of node: the alternatives multiply with the depth
    let kind = |kind: &str| {
        json!({"type": "object", "properties": {"kind": {"const": kind},
               "left": {"$ref": "#"}, "right": {"$ref": "#"}}, "required": ["kind"]})
    };
    let expression = Schema::from(json!({"oneOf": [kind("add"), kind("mul"), kind("sub")]}));
    let leaf = json!({"kind": "mul"});
    let value = (0..6).fold(leaf, |inner, _| json!({"kind": "add", "left": inner, "right": inner}));
    assert_eq!(expression.fits(&value), Ok(()));
}

#[test]
fn text_of_an_answer_is_never_compiled() {
    let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "format": "regex"});
    let started = Instant::now();
    drop(Schema::from(schema).fits(&json!(r"(((\pL{1000}){1000}){1000})")));
    assert!(started.elapsed() < QUICK, "{:?}", started.elapsed());
}
