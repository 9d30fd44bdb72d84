//! Redaction by proptest: a value leaves in no spelling and from no field.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pilotlight::redact::{KnownPattern, Redaction, Redactor};
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role};
use pilotlight::request::labels::Labels;
use pilotlight::request::tools::{Tool, ToolCall, ToolChoice, Tools};
use pilotlight::wire::Ask;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| {
    let mut redactor = Redactor::default();
    for (_, known) in KnownPattern::ALL {
        redactor.add_known(known).unwrap();
    }
    redactor.add("badge", "B-[0-9]{5}").unwrap();
    redactor
});

fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{3,8}[.][a-z]{2,5}@[a-z]{4,8}[.]example",
        "[+]49 30 90[0-9]{5}",
        "0[0-9]{3}/[0-9]{6}",
        "B-[0-9]{5}",
        "[1-8][0-9][.][0-9]{4}, 1[0-9][.][0-9]{4}",
    ]
}

/// One of the spellings of a character.
fn spelled(c: char, way: u8) -> String {
    let code = u32::from(c);
    let digit = |zero: u32| c.to_digit(10).and_then(|n| char::from_u32(zero + n)).unwrap_or(c);
    match way {
        0 => format!("%{code:02X}"),
        1 => format!("%{code:02x}"),
        2 => format!("&#{code};"),
        3 => format!("&#x{code:x};"),
        4 => format!("\\u{code:04x}"),
        5 => format!("\\x{code:02x}"),
        6 if c.is_ascii_graphic() => char::from_u32(code + 0xfee0).unwrap().to_string(),
        7 => digit(0x660).to_string(),
        8 => digit(0x966).to_string(),
        9 if c.is_ascii_punctuation() => format!("={code:02X}"),
        10 if c.is_ascii_punctuation() => format!("\\{c}"),
        11 => format!("{c}\u{ad}"),
        12 => format!("\u{200b}{c}"),
        13 => char::from_u32(code + 0xe0000).unwrap().to_string(),
        14 => format!("%25{code:02X}"),
        15 => format!("&amp;#{code};"),
        16 if c == ' ' => "\u{a0}".to_owned(),
        16 if c == '-' => "\u{2011}".to_owned(),
        _ => c.to_string(),
    }
}

/// A secret with some of its characters in another spelling.
fn spelled_secret() -> impl Strategy<Value = String> {
    (secret(), proptest::collection::vec(0..24_u8, 40)).prop_map(|(secret, ways)| {
        secret.chars().zip(ways).map(|(c, way)| spelled(c, way)).collect()
    })
}

/// The same in several programs' escapes is one spelling too, but in one kind only.
fn any_secret() -> impl Strategy<Value = String> {
    let uniform = (secret(), 0..24_u8)
        .prop_map(|(secret, way)| secret.chars().map(|c| spelled(c, way)).collect());
    prop_oneof![spelled_secret(), uniform, secret()]
}

/// A job with this text in one of its fields.
fn job(field: usize, text: &str) -> Job {
    let mut job = Job::plain("What is it?", Duration::from_secs(1));
    let text = text.to_owned();
    let arguments = |value: Value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let calling = |id: &str, arguments| Message {
        tool_calls: vec![ToolCall { id: id.to_owned(), name: "write".to_owned(), arguments }],
        ..Message::new(Role::Assistant, "")
    };
    let tools = |description: &str, input_schema: Value| {
        let (name, description) = ("write".to_owned(), Some(description.to_owned()));
        let offered = vec![Tool { name, description, input_schema: input_schema.into() }];
        Some(Arc::new(Tools { offered, choice: ToolChoice::Auto, parallel: true }))
    };
    let property = |schema: Value| json!({"type": "object", "properties": {"x": schema}});
    let labels = |label: &str, example: &str| {
        let label = (label.to_owned(), vec![example.to_owned()]);
        let examples = [label, ("other".to_owned(), Vec::new())].into_iter().collect();
        Format::Label(Arc::new(Labels { examples, margin: 0.0 }))
    };
    match field {
        0 => job.messages[0].content = format!("It is {text}."),
        1 => job.messages.insert(0, Message::new(Role::System, text)),
        2 => job.messages.push(Message::new(Role::Tool, format!("found: {text}"))),
        3 => job.messages.push(calling("c", arguments(json!({"to": [text, 3]})))),
        4 => {
            let mut members = Map::new();
            members.insert(text, json!({"n": 1}));
            job.messages.push(calling("c", members));
        }
        5 => job.messages.push(calling(&text, Map::new())),
        6 => job.messages[0].tool_call_id = Some(text),
        7 => job.sampling.stop = vec![text],
        8 => job.format = Format::Schema(property(json!({"enum": [text, "none"]})).into()),
        9 => job.format = Format::Schema(property(json!({"const": text})).into()),
        10 => job.format = Format::Schema(property(json!({"description": text})).into()),
        11 => job.format = Format::Schema(property(json!({"examples": [text]})).into()),
        12 => job.format = Format::Schema(json!({"required": [text]}).into()),
        13 => job.format = Format::Schema(property(json!({"x-note": {"of": text}})).into()),
        14 => job.format = Format::Schema(property(json!({"pattern": text})).into()),
        15 => job.format = Format::Schema(property(json!({"default": text})).into()),
        16 => job.tools = tools(&text, property(json!({}))),
        17 => job.tools = tools("Writes.", property(json!({"title": text}))),
        18 => job.format = labels(&text, "as an example"),
        19 => job.format = labels("it", &text),
        20 => job.key = Some(text),
        _ => job.messages[0].content = text,
    }
    job
}

/// Every text of a JSON value.
fn texts(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::String(text) => all.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
        Value::Object(members) => {
            for (name, value) in members {
                all.push(name.clone());
                texts(value, all);
            }
        }
        Value::Number(number) => all.push(number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// What is sent to another service, text by text; none if nothing may be sent.
fn sent(job: &Job) -> Option<(Vec<String>, usize)> {
    let (job, count) = match REDACTOR.hide(job) {
        Redaction::Done(hidden) => (hidden.job().clone(), hidden.count()),
        Redaction::Unneeded => (job.clone(), 0),
        Redaction::Impossible(_) => return None,
    };
    let mut all = Vec::new();
    texts(&serde_json::to_value(Ask::of(&job)).unwrap(), &mut all);
    Some((all, count))
}

const FIELDS: usize = 22;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_spelling_leaves_from_any_field(field in 0..FIELDS, secret in any_secret()) {
        let Some((all, count)) = sent(&job(field, &secret)) else {
            prop_assert_eq!(field, 14, "only a pattern can't be redacted");
            return Ok(());
        };
        prop_assert!(count > 0, "{secret:?} of field {field} is not found");
        prop_assert!(!all.iter().any(|text| text.contains(&secret)), "{secret:?}: {all:?}");
        // what is left of it, if anything, is no more than its ends; a deadline may have the same digits
        let own = sent(&job(field, "nothing")).map(|(own, _)| own).unwrap_or_default();
        let most = secret.chars().count().div_ceil(2);
        let rest = all.iter().filter(|text| !own.contains(text)).any(|text| {
            let chars: Vec<char> = secret.chars().collect();
            chars.windows(most.max(4)).any(|part| text.contains(&String::from_iter(part)))
        });
        prop_assert!(!rest, "{secret:?}: {all:?}");
    }

    #[test]
    fn no_value_leaves_in_two_parts(
        secret in secret(), at in 1..40_usize, lines in any::<bool>(), between in 0..3_usize,
    ) {
        let at = at.min(secret.len() - 1);
        let (head, tail) = secret.split_at(at);
        let mut job = job(21, &format!("it begins with {head}"));
        match (lines, between) {
            (true, _) => {
                job.messages[0].content = format!("it begins with {head}\n{tail} is its end");
            }
            (false, 0) => job.messages.push(Message::new(Role::Assistant, format!("{tail}!"))),
            (false, _) => {
                job.messages.push(Message::new(Role::Assistant, "And then?"));
                job.messages.push(Message::new(Role::User, format!("{tail} is its end")));
            }
        }
        let (all, count) = sent(&job).unwrap();
        prop_assert!(count > 0, "{secret:?} is not found in two parts");
        let both = all.iter().any(|text| text.contains(head.trim()) && head.trim().len() > 3)
            && all.iter().any(|text| text.contains(tail.trim()) && tail.trim().len() > 3);
        prop_assert!(!both, "{head:?} {tail:?}: {all:?}");
    }

    #[test]
    fn an_answer_is_restored_as_it_was_written(secret in any_secret(), size in 1..9_usize) {
        let asked = job(0, &secret);
        let Redaction::Done(hidden) = REDACTOR.hide(&asked) else { panic!("{secret:?}") };
        let answer: Vec<char> = hidden.job().messages[0].content.chars().collect();
        let mut restorer = hidden.restorer();
        let mut text: String =
            answer.chunks(size).map(|piece| restorer.push(&String::from_iter(piece))).collect();
        text += &restorer.finish();
        prop_assert_eq!(&text, &asked.messages[0].content);
    }

    #[test]
    fn any_text_is_taken(text in any::<String>(), other in "[&%=\\\\#;x0-9a-fu{}@.\\n +-]{0,60}") {
        for text in [&text, &other] {
            let _ = REDACTOR.hide(&job(0, text));
            let _ = REDACTOR.hide(&job(3, text));
        }
    }
}
