//! The one traversal of a job: every text that a backend beyond this device is sent, piece by piece.
//!
//! [`rebuilt`] takes a job apart without `..`, so that the compiler asks of each new field whether it
//! leaves the device, and makes the job that is sent from what it is given for each piece.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::job::{Job, Message, Role, Sampling};
use crate::request::labels::Labels;
use crate::request::schema::Schema;
use crate::request::tools::{Name, Tool, ToolCall, ToolChoice, Tools};

/// What may stand in place of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text: a placeholder for each value in it.
    Text,
    /// A JSON number: one placeholder, as a JSON string.
    Number,
    /// A name or an id, which providers accept with letters and digits only: another name.
    Name,
    /// Nothing: the part of a schema that this names has a meaning for the program that checks it.
    Fixed(&'static str),
}

/// The field of a request that a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Message(usize),
    Schema,
    Labels,
    Tool(usize),
    ToolChoice,
    Stop,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Id => f.write_str("id"),
            Field::Message(n) => write!(f, "messages[{n}]"),
            Field::Schema => f.write_str("schema"),
            Field::Labels => f.write_str("labels"),
            Field::Tool(n) => write!(f, "tools[{n}]"),
            Field::ToolChoice => f.write_str("tool_choice"),
            Field::Stop => f.write_str("stop"),
        }
    }
}

/// Takes the pieces of a job in their order.
pub(super) trait Pieces {
    /// Begins a document: pieces that are matched together. With a role, a value may be continued in
    /// the next document that has one.
    fn begin(&mut self, field: Field, role: Option<Role>);
    /// Takes a piece and returns what stands in its place.
    fn piece(&mut self, text: &str, kind: Kind) -> String;
    /// Takes the text between two pieces.
    fn between(&mut self, text: &str);
}

/// The job as it is sent, with each of its texts as `pieces` returns it.
pub(super) fn rebuilt(job: &Job, pieces: &mut impl Pieces) -> Job {
    // what is ignored here does not leave the device, and is left out of the job that is sent
    let Job {
        id,
        client: _,
        key,
        task: _,
        cache_group,
        open_bytes: _,
        messages,
        format,
        tools,
        sampling,
        time_left,
        priority,
        mode,
        furthest,
        model: _,
        skill: _,
        ruled: _,
        strategy,
        threshold,
        judge: _,
        hops,
        streamed,
    } = job;
    Job {
        id: *id,
        client: Client::default(),
        task: None,
        cache_group: cache_group.clone(),
        // the texts have other lengths
        open_bytes: 0,
        messages: messages.iter().enumerate().map(|turn| message(turn, pieces)).collect(),
        format: format_of(format, pieces),
        tools: tools.as_ref().map(|tools| Arc::new(tools_of(tools, pieces))),
        sampling: sampling_of(sampling, pieces),
        key: key.as_ref().map(|key| single(key, Field::Id, Kind::Name, pieces)),
        time_left: *time_left,
        priority: *priority,
        mode: *mode,
        furthest: *furthest,
        model: None,
        skill: None,
        ruled: None,
        strategy: *strategy,
        threshold: *threshold,
        judge: None,
        hops: *hops,
        streamed: *streamed,
    }
}

/// A document of one piece.
fn single(text: &str, field: Field, kind: Kind, pieces: &mut impl Pieces) -> String {
    pieces.begin(field, None);
    pieces.piece(text, kind)
}

fn message((n, message): (usize, &Message), pieces: &mut impl Pieces) -> Message {
    let Message { role, content, tool_calls, tool_call_id } = message;
    let field = Field::Message(n);
    pieces.begin(field, Some(*role));
    let content = pieces.piece(content, Kind::Text);
    let mut call = |call: &ToolCall| {
        let ToolCall { id, name, arguments } = call;
        let id = single(id, field, Kind::Name, pieces);
        let name = single(name, field, Kind::Name, pieces);
        pieces.begin(field, Some(*role));
        ToolCall { id, name, arguments: object(arguments, Kind::Number, pieces) }
    };
    Message {
        role: *role,
        content,
        tool_calls: tool_calls.iter().map(&mut call).collect(),
        tool_call_id: tool_call_id.as_ref().map(|id| single(id, field, Kind::Name, pieces)),
    }
}

fn format_of(format: &Format, pieces: &mut impl Pieces) -> Format {
    match format {
        Format::Text => Format::Text,
        Format::Json => Format::Json,
        Format::Embedding => Format::Embedding,
        Format::Schema(asked) => {
            pieces.begin(Field::Schema, None);
            Format::Schema(same_or_new(asked, schema(asked, pieces)))
        }
        Format::Label(labels) => {
            let Labels { examples, margin } = labels.as_ref();
            let mut text = |text: &String| single(text, Field::Labels, Kind::Text, pieces);
            let mut label = |(label, texts): (&String, &Vec<String>)| {
                (text(label), texts.iter().map(&mut text).collect())
            };
            let examples = examples.iter().map(&mut label).collect();
            Format::Label(Arc::new(Labels { examples, margin: *margin }))
        }
    }
}

/// A schema that is sent as it is stays compiled.
fn same_or_new(asked: &Schema, sent: Value) -> Schema {
    if **asked == sent { asked.clone() } else { sent.into() }
}

fn tools_of(tools: &Tools, pieces: &mut impl Pieces) -> Tools {
    let Tools { offered, choice, parallel } = tools;
    let mut tool = |(n, tool): (usize, &Tool)| {
        let Tool { name, description, input_schema } = tool;
        let field = Field::Tool(n);
        let name = single(name, field, Kind::Name, pieces);
        let description = description.as_ref().map(|text| single(text, field, Kind::Text, pieces));
        pieces.begin(field, None);
        let sent = schema(input_schema, pieces);
        Tool { name, description, input_schema: same_or_new(input_schema, sent) }
    };
    let offered = offered.iter().enumerate().map(&mut tool).collect();
    let choice = match choice {
        ToolChoice::Auto => ToolChoice::Auto,
        ToolChoice::None => ToolChoice::None,
        ToolChoice::Required => ToolChoice::Required,
        ToolChoice::Named(Name { name }) => {
            let name = single(name, Field::ToolChoice, Kind::Name, pieces);
            ToolChoice::Named(Name { name })
        }
    };
    Tools { offered, choice, parallel: *parallel }
}

fn sampling_of(sampling: &Sampling, pieces: &mut impl Pieces) -> Sampling {
    let Sampling {
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        repeat_penalty,
        seed,
        deterministic,
        stop,
        logprobs,
    } = sampling;
    Sampling {
        max_tokens: *max_tokens,
        temperature: *temperature,
        top_p: *top_p,
        top_k: *top_k,
        min_p: *min_p,
        repeat_penalty: *repeat_penalty,
        seed: *seed,
        deterministic: *deterministic,
        stop: stop.iter().map(|text| single(text, Field::Stop, Kind::Text, pieces)).collect(),
        logprobs: *logprobs,
    }
}

/// A JSON Schema. What describes a value, and the values and names that an answer repeats, may hold
/// placeholders; patterns, references and bounds may not.
fn schema(schema_value: &Value, pieces: &mut impl Pieces) -> Value {
    match schema_value {
        Value::Object(members) => {
            let mut changed = Map::new();
            pieces.between("{");
            for (keyword, value) in members {
                let (keyword, value) = keyword_of(keyword, value, pieces);
                changed.insert(keyword, value);
                pieces.between(",");
            }
            pieces.between("}");
            Value::Object(changed)
        }
        Value::Array(items) => list(items, pieces, schema),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {
            data(schema_value, Kind::Fixed("a number"), pieces)
        }
    }
}

/// One keyword of a schema with its value.
fn keyword_of(keyword: &str, value: &Value, pieces: &mut impl Pieces) -> (String, Value) {
    let fixed = match keyword {
        "pattern" => "pattern",
        "format" => "format",
        "$ref" | "$dynamicRef" | "$recursiveRef" => "$ref",
        "$id" | "id" | "$anchor" | "$dynamicAnchor" | "$schema" | "$vocabulary" => "$id",
        "patternProperties" => "patternProperties",
        "$defs" | "definitions" => "$defs",
        _ => "",
    };
    let value = match (keyword, value) {
        ("properties" | "dependentSchemas" | "dependencies", Value::Object(members)) => {
            keyed(keyword, members, Kind::Text, pieces)
        }
        ("patternProperties" | "$defs" | "definitions", Value::Object(members)) => {
            keyed(keyword, members, Kind::Fixed(fixed), pieces)
        }
        (_, Value::String(text)) if !fixed.is_empty() => {
            pieces.between(keyword);
            pieces.between(":");
            Value::from(pieces.piece(text, Kind::Fixed(fixed)))
        }
        ("enum" | "const" | "required" | "dependentRequired", _) => {
            pieces.between(keyword);
            pieces.between(":");
            data(value, Kind::Fixed("a number of enum or const"), pieces)
        }
        ("default" | "examples" | "example", _) => {
            pieces.between(keyword);
            pieces.between(":");
            data(value, Kind::Number, pieces)
        }
        (
            "type"
            | "items"
            | "prefixItems"
            | "additionalProperties"
            | "anyOf"
            | "oneOf"
            | "allOf"
            | "not"
            | "if"
            | "then"
            | "else"
            | "description"
            | "title",
            _,
        ) => {
            pieces.between(keyword);
            pieces.between(":");
            schema(value, pieces)
        }
        (_, _) => {
            // a keyword that is not known may be any text
            let keyword = key(keyword, Kind::Text, pieces);
            return (keyword, schema(value, pieces));
        }
    };
    (keyword.to_owned(), value)
}

/// The schemas of a keyword by name; the names are of this kind.
fn keyed(
    keyword: &str,
    members: &Map<String, Value>,
    names: Kind,
    pieces: &mut impl Pieces,
) -> Value {
    let mut changed = Map::new();
    pieces.between(keyword);
    pieces.between(":{");
    for (name, value) in members {
        let name = key(name, names, pieces);
        changed.insert(name, schema(value, pieces));
        pieces.between(",");
    }
    pieces.between("}");
    Value::Object(changed)
}

/// JSON with texts that may hold placeholders; its numbers are of this kind.
fn data(value: &Value, numbers: Kind, pieces: &mut impl Pieces) -> Value {
    match value {
        Value::String(text) => {
            pieces.between("\"");
            let text = pieces.piece(text, Kind::Text);
            pieces.between("\"");
            Value::from(text)
        }
        Value::Number(number) => {
            let text = number.to_string();
            let changed = pieces.piece(&text, numbers);
            if changed == text { value.clone() } else { Value::from(changed) }
        }
        Value::Array(items) => list(items, pieces, |item, pieces| data(item, numbers, pieces)),
        Value::Object(members) => Value::Object(object(members, numbers, pieces)),
        Value::Null | Value::Bool(_) => {
            pieces.between("null");
            value.clone()
        }
    }
}

fn object(
    members: &Map<String, Value>,
    numbers: Kind,
    pieces: &mut impl Pieces,
) -> Map<String, Value> {
    let mut changed = Map::new();
    pieces.between("{");
    for (name, value) in members {
        let name = key(name, Kind::Text, pieces);
        changed.insert(name, data(value, numbers, pieces));
        pieces.between(",");
    }
    pieces.between("}");
    changed
}

fn list<P: Pieces>(
    items: &[Value],
    pieces: &mut P,
    item: impl Fn(&Value, &mut P) -> Value,
) -> Value {
    let mut changed = Vec::with_capacity(items.len());
    pieces.between("[");
    for value in items {
        changed.push(item(value, pieces));
        pieces.between(",");
    }
    pieces.between("]");
    Value::Array(changed)
}

/// The name of a member with what separates it from its value.
fn key(name: &str, kind: Kind, pieces: &mut impl Pieces) -> String {
    pieces.between("\"");
    let name = pieces.piece(name, kind);
    pieces.between("\":");
    name
}
