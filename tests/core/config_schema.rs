//! The JSON Schema of `mcp.json`: it knows the keys that the reader knows, and the examples fit it.

use std::collections::BTreeSet;
use std::path::Path;

use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::json_schema;
use pilotlight::catalog::mistake::Mistake;
use pilotlight::catalog::read::read;
use serde_json::{Map, Value, json};

/// One step from the top of a file to a value.
#[derive(Debug, Clone)]
enum Step {
    /// A member, and what the object must have besides it.
    Key(String, Map<String, Value>),
    Item,
}

/// A place of the schema: the way to a value, and what the schema states of it.
struct Part {
    way: Vec<Step>,
    schema: Value,
}

/// The schema that a reference stands for.
fn resolved(root: &Value, schema: &Value) -> Value {
    match schema["$ref"].as_str() {
        Some(to) => root.pointer(to.trim_start_matches('#')).expect("a broken reference").clone(),
        None => schema.clone(),
    }
}

/// The schema and its alternatives.
fn alternatives(root: &Value, schema: &Value) -> Vec<Value> {
    let schema = resolved(root, schema);
    let all = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array());
    let all: Vec<Value> = all.flatten().flat_map(|one| alternatives(root, one)).collect();
    std::iter::once(schema).chain(all).collect()
}

/// Every value that the schema describes.
fn parts(root: &Value) -> Vec<Part> {
    let mut found = Vec::new();
    let mut left = vec![Part { way: Vec::new(), schema: root.clone() }];
    while let Some(part) = left.pop() {
        for schema in alternatives(root, &part.schema) {
            // what only restricts the keys of the object around it describes no value
            if schema["type"] == Value::Null && !schema["$ref"].is_string() {
                continue;
            }
            let mut next = |step: Step, schema: &Value| {
                let way = part.way.iter().cloned().chain([step]).collect();
                left.push(Part { way, schema: schema.clone() });
            };
            let required = schema["required"].as_array().into_iter().flatten();
            let required = required.map(|key| (key.as_str().unwrap().to_owned(), json!("x")));
            let required: Map<String, Value> = required.collect();
            for (key, value) in schema["properties"].as_object().into_iter().flatten() {
                next(Step::Key(key.clone(), required.clone()), value);
            }
            if schema["additionalProperties"].is_object() {
                next(Step::Key("a".to_owned(), Map::new()), &schema["additionalProperties"]);
            }
            if schema["items"].is_object() {
                next(Step::Item, &schema["items"]);
            }
        }
        found.push(part);
    }
    found
}

/// A file with this value at the end of the way.
fn file(way: &[Step], value: Value) -> Value {
    way.iter().rev().fold(value, |inside, step| match step {
        Step::Key(key, others) => {
            let mut object = others.clone();
            object.insert(key.clone(), inside);
            Value::Object(object)
        }
        Step::Item => json!([inside]),
    })
}

fn path(way: &[Step]) -> String {
    let path = way.iter().fold(String::new(), |path, step| match step {
        Step::Key(key, _) => format!("{path}.{key}"),
        Step::Item => format!("{path}[0]"),
    });
    path.trim_start_matches('.').to_owned()
}

fn mistakes(file: &Value) -> Vec<Mistake> {
    read(&file.to_string(), &Variables::new()).1
}

fn is_unknown(mistake: &Mistake) -> bool {
    mistake.message.starts_with("unknown field") || mistake.message.starts_with("unknown key")
}

#[test]
fn the_reader_knows_each_key_of_the_schema() {
    let root = json_schema::value();
    let validator = jsonschema::validator_for(&root).unwrap();
    let parts = parts(&root);
    assert!(parts.len() > 100, "{} parts", parts.len());
    for part in parts.iter().filter(|part| !part.way.is_empty()) {
        let at = path(&part.way);
        // a value of another type than the schema allows there
        let is_wrong = |value: &Value| {
            let kinds = alternatives(&root, &part.schema);
            let kinds = kinds.iter().flat_map(|one| match &one["type"] {
                Value::Array(all) => all.clone(),
                kind => vec![kind.clone()],
            });
            let kinds: BTreeSet<String> =
                kinds.filter_map(|kind| kind.as_str().map(str::to_owned)).collect();
            // any value is right, such as the answer of a golden case
            !kinds.is_empty()
                && !kinds.contains(match value {
                    Value::Bool(_) => "boolean",
                    Value::Number(_) if kinds.contains("number") => "number",
                    Value::Number(_) => "integer",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    Value::Null | Value::Object(_) => "object",
                })
        };
        let values = [json!(true), json!(5), json!("x"), json!([]), json!({})];
        let wrong = values.into_iter().filter(is_wrong).collect::<Vec<_>>();
        for value in wrong {
            let file = file(&part.way, value);
            let found = mistakes(&file);
            let is_there = |mistake: &&Mistake| {
                mistake.path == at
                    // an alternative without a tag is refused as a whole
                    || at.starts_with(&mistake.path) && mistake.message.contains("must be a name, or")
            };
            let mistake = found.iter().find(is_there);
            let mistake =
                mistake.unwrap_or_else(|| panic!("{file} has no mistake {at}: {found:#?}"));
            assert!(!is_unknown(mistake), "{mistake}");
            assert!(!validator.is_valid(&file), "the schema accepts {file}");
        }
        assert!(
            part.schema["description"].as_str().is_some_and(|text| !text.contains("[`"))
                || !matches!(part.way.last(), Some(Step::Key(key, _)) if key != "a"),
            "{at} has no description"
        );
    }
}

/// What the message of an unknown field lists.
fn listed(message: &str) -> BTreeSet<String> {
    let expected = message.split_once("expected ").expect("no list").1;
    let expected = expected.split("; the nearest").next().unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_schema_knows_each_key_of_the_reader() {
    let root = json_schema::value();
    let validator = jsonschema::validator_for(&root).unwrap();
    let mut objects = 0;
    for part in parts(&root) {
        for schema in alternatives(&root, &part.schema) {
            let Some(known) = schema["properties"].as_object() else { continue };
            if schema["additionalProperties"] != false {
                continue;
            }
            objects += 1;
            let mut inside = Map::from_iter([("unknwon".to_owned(), json!({}))]);
            let required = schema["required"].as_array().into_iter().flatten();
            inside.extend(required.map(|key| (key.as_str().unwrap().to_owned(), json!("a"))));
            let file = file(&part.way, Value::Object(inside));
            assert!(!validator.is_valid(&file), "the schema accepts {file}");
            let found = mistakes(&file);
            let at = path(&part.way);
            let full = if at.is_empty() { "unknwon".to_owned() } else { format!("{at}.unknwon") };
            let Some(mistake) = found.iter().find(|m| m.path == full) else {
                let is_whole =
                    |m: &Mistake| m.path == at && m.message.contains("must be a name, or");
                let is_whole = found.iter().any(is_whole);
                let is_single =
                    |m: &Mistake| m.path == at && m.message.contains("map with a single key");
                assert!(is_whole || found.iter().any(is_single), "{file}: {found:#?}");
                continue;
            };
            if mistake.message.starts_with("unknown field") {
                let known: BTreeSet<String> = known.keys().cloned().collect();
                assert_eq!(listed(&mistake.message), known, "{at}");
            }
        }
    }
    assert!(objects > 15, "{objects} objects");
}

#[test]
fn a_variable_is_accepted_in_the_place_of_each_text() {
    let root = json_schema::value();
    let variables = Variables::from([("V".to_owned(), String::new())]);
    let mut texts = 0;
    for part in parts(&root) {
        let is_text = |one: &Value| one["type"] == "string" || one["type"][0] == "string";
        if !alternatives(&root, &part.schema).iter().any(is_text) {
            continue;
        }
        texts += 1;
        // the schema of the value alone, with the definitions that it refers to
        let mut alone = part.schema.clone();
        alone["$defs"] = root["$defs"].clone();
        let value = json!("x${V:-abc}$$");
        assert!(jsonschema::is_valid(&alone, &value), "{}: {}", path(&part.way), part.schema);
        let found = read(&file(&part.way, json!("${V:-")).to_string(), &variables).1;
        let at = path(&part.way);
        assert!(
            found.iter().any(|m| m.path == at && m.message.contains("not closed")),
            "{at} is not expanded: {found:#?}"
        );
    }
    assert!(texts > 40, "{texts} texts");
}

/// The blocks of JSON in a document.
fn blocks(text: &str) -> Vec<&str> {
    text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn the_examples_of_the_documents_fit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let validator = jsonschema::validator_for(&json_schema::value()).unwrap();
    let mut tried = 0;
    let mut check = |from: &str, file: &Value| {
        let fits: Vec<String> = validator
            .iter_errors(file)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(fits.is_empty(), "{from}: {fits:#?}\n{file:#}");
        let names = file.to_string();
        let names = names.split("${").skip(1).filter_map(|rest| rest.split(['}', ':']).next());
        let variables = names.map(|name| (name.to_owned(), "https://x.example".to_owned()));
        let found = read(&file.to_string(), &variables.collect()).1;
        assert!(found.is_empty(), "{from}: {found:#?}");
        tried += 1;
    };
    let example = std::fs::read_to_string(root.join("mcp.json")).unwrap();
    check("mcp.json", &serde_json::from_str(&example).unwrap());
    let fuzzed = std::fs::read_to_string(root.join("fuzz/src/mcp.json")).unwrap();
    check("fuzz/src/mcp.json", &serde_json::from_str(&fuzzed).unwrap());
    for name in
        ["README.md", "docs/configuration.md", "docs/architecture.md", "docs/mcp-over-mqtt.md"]
    {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        for block in blocks(&text) {
            if let Some(file) = completed(block) {
                check(name, &file);
            }
        }
    }
    assert!(tried >= 10, "{tried} examples");
}

/// A whole file with the parts of an example; none for an example of something else.
fn completed(block: &str) -> Option<Value> {
    // a key or digest that is not written out
    if block.contains("...\"") || block.contains("…\"") {
        return None;
    }
    let value: Value = match serde_json::from_str(block) {
        Ok(value) => value,
        Err(_) => serde_json::from_str(&format!("{{{block}}}")).ok()?,
    };
    let root = json_schema::value();
    let ours = root["$defs"]["Pilotlight"]["properties"].as_object().unwrap();
    let mut whole = json!({"mcpServers": {}, "pilotlight": {}});
    for (key, part) in value.as_object()? {
        if root["properties"].get(key).is_some() && key != "servers" {
            whole[key] = part.clone();
        } else if ours.contains_key(key) {
            whole["pilotlight"][key] = part.clone();
        } else {
            return None;
        }
    }
    for name in whole["pilotlight"]["servers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect::<Vec<_>>()
    {
        if whole["mcpServers"].get(&name).is_none() {
            whole["mcpServers"][name] = json!({"command": "x"});
        }
    }
    if whole["mcpServers"].as_object().unwrap().is_empty() {
        whole["mcpServers"]["local"] = json!({"command": "x"});
    }
    Some(whole)
}

#[cfg(feature = "bedrock")]
#[test]
fn the_copy_in_the_documents_is_the_schema() {
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mcp.schema.json");
    let copy = std::fs::read_to_string(copy).unwrap();
    assert!(
        copy == json_schema::text() + "\n",
        "the schema has changed: run `pilotlight schema > docs/mcp.schema.json`"
    );
}

#[test]
fn the_schema_is_one_of_draft_2020_12() {
    let root = json_schema::value();
    assert_eq!(root["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(jsonschema::meta::is_valid(&root));
}
