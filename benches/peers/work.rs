//! The work that the servers are given.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::load::{Request, chat, chat_of};
use crate::servers::Kind;

/// Templates in rotation.
const TEMPLATES: usize = 8;
/// What the requests of one kind have in common: about 145 tokens.
const SENTENCES: usize = 9;

/// A text of about `words` words that no other number has, from its first word on.
fn story(number: usize, words: usize) -> String {
    const WORDS: [&str; 12] = [
        "pump", "valve", "motor", "sensor", "gauge", "filter", "boiler", "tank", "fan", "relay",
        "meter", "switch",
    ];
    let mut text = format!("Report {number}.");
    for at in 0..words / 6 {
        let word = WORDS[(number * 7 + at * 5) % WORDS.len()];
        let _ = write!(text, " The {word} number {} is well.", (number + at * 13) % 97);
    }
    text
}

fn template(number: usize) -> String {
    let room = ["kitchen", "cellar", "garage", "office", "attic", "workshop", "hall", "studio"];
    let room = room[number % TEMPLATES];
    let mut text = format!("You look after the {room} of a small house.");
    for at in 0..SENTENCES {
        let _ = write!(text, " In the {room} there are {} shelves, and on each a box.", at + 2);
    }
    text
}

fn question(n: usize) -> String {
    format!("Question {n}: what is on shelf {}? Tell a long story about it.", n * 7 % 13)
}

/// A prompt of about 180 tokens, of which most are those of the others.
pub fn shared() -> Request {
    Arc::new(|n| chat(&template(0), &question(n), 32))
}

/// The same with eight beginnings in rotation.
pub fn rotating() -> Request {
    Arc::new(|n| chat(&template(n), &question(n), 32))
}

/// A prompt of this many words that has nothing in common with another.
pub fn unique(words: usize, max_tokens: u32) -> Request {
    Arc::new(move |n| chat(&story(n, words), "Write a long summary of the report.", max_tokens))
}

/// A short question.
pub fn short() -> Request {
    Arc::new(|n| chat("You are brief.", &format!("What is {n} plus 7? Explain."), 16))
}

pub fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "device": {"type": "string", "maxLength": 24},
            "state": {"enum": ["ok", "warning", "fault"]},
            "reading": {"type": "integer", "minimum": 0, "maximum": 100},
            "alarm": {"type": "boolean"},
        },
        "required": ["device", "state", "reading", "alarm"],
        "additionalProperties": false,
    })
}

/// An answer by a schema.
pub fn by_schema() -> Request {
    Arc::new(|n| {
        let mut body = chat(&template(0), &story(n, 12), 96);
        let format = json!({"name": "state", "strict": true, "schema": schema()});
        body["response_format"] = json!({"type": "json_schema", "json_schema": format});
        body
    })
}

pub const TOPIC: &str = "What is the report about: climate, network, power or water?";
const LABELS: [&str; 4] = ["climate", "network", "power", "water"];

/// The labels of the task `topic`, without examples.
pub fn labels() -> Value {
    Value::Object(LABELS.into_iter().map(|label| (label.to_owned(), json!([]))).collect())
}

/// One of four labels: by their scores, or, where a server has none, by a grammar.
pub fn labelled(kind: Kind) -> Request {
    Arc::new(move |n| {
        let story = story(n, 18);
        let asked = |content: String| chat_of(&json!([{"role": "user", "content": content}]), 8);
        match kind {
            Kind::Ours => {
                let mut body = asked(story);
                body["metadata"] = json!({"task": "topic"});
                body
            }
            Kind::Peer => {
                let mut body = asked(format!("{TOPIC} {story}"));
                body["grammar"] = json!(format!("root ::= \"{}\"", LABELS.join("\" | \"")));
                body
            }
        }
    })
}
