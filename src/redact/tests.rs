//! The patterns' matches in every field of a job, and restored answers.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::request::job::{Message, Role, Sampling};
use crate::request::labels::{Classification, Labels};
use crate::request::tools::{Tool, ToolCall, ToolChoice, Tools};

fn all() -> Redactor {
    let mut redactor = Redactor::default();
    for (_, known) in KnownPattern::ALL {
        redactor.add_known(known).unwrap();
    }
    redactor
}

fn job(text: &str) -> Job {
    Job::plain(text, Duration::from_secs(1))
}

/// The redacted job.
fn hide(redactor: &Redactor, job: &Job) -> Arc<Hidden> {
    match redactor.hide(job) {
        Redaction::Done(hidden) => hidden,
        Redaction::Unneeded => panic!("nothing was found"),
        Redaction::Impossible(unfit) => panic!("{}", unfit.refusal()),
    }
}

fn hidden(text: &str) -> String {
    match all().hide(&job(text)) {
        Redaction::Done(hidden) => hidden.job().messages[0].content.clone(),
        Redaction::Unneeded => text.to_owned(),
        Redaction::Impossible(unfit) => panic!("{}", unfit.refusal()),
    }
}

/// The contents of the messages as they are sent; the texts are one message each.
fn contents(redactor: &Redactor, texts: &[(Role, &str)]) -> Vec<String> {
    let messages = texts.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    let asked = Job { messages, ..job("") };
    let sent = match redactor.hide(&asked) {
        Redaction::Done(hidden) => hidden.job().messages.clone(),
        Redaction::Unneeded => asked.messages,
        Redaction::Impossible(unfit) => panic!("{}", unfit.refusal()),
    };
    sent.into_iter().map(|message| message.content).collect()
}

/// The restored answer, given in pieces of `size` bytes or slightly more.
fn restored(hidden: &Hidden, answer: &str, size: usize) -> String {
    let mut restorer = hidden.restorer();
    let mut out = String::new();
    let mut piece = String::new();
    for c in answer.chars() {
        piece.push(c);
        if piece.len() >= size {
            out += &restorer.push(&piece);
            piece.clear();
        }
    }
    out += &restorer.push(&piece);
    out + &restorer.finish()
}

#[test]
fn personal_data_is_found() {
    for (text, want) in [
        ("write to Ann.B+x@mail.example.org.", "write to [EMAIL_1]."),
        ("<a@b.de>, c@d.fr; a@b.de", "<[EMAIL_1]>, [EMAIL_2]; [EMAIL_1]"),
        ("jürgen@müller.example", "[EMAIL_1]"),
        ("call +49 (0)30 901820-45 now", "call [PHONE_1] now"),
        ("call +14155550123", "call [PHONE_1]"),
        ("0049 30 901820", "[PHONE_1]"),
        ("tel:030/901820", "tel:[PHONE_1]"),
        ("(415) 555-0123 or 415-555-0123", "[PHONE_1] or [PHONE_2]"),
        ("06 12 34 56 78", "[PHONE_1]"),
        ("at 52.5200, 13.4050.", "at [PLACE_1]."),
        ("at -33.86 151.21", "at [PLACE_1]"),
        ("52.5200° N, 13.4050° E", "[PLACE_1]"),
        (r#"48° 51' 29.6" N"#, "[PLACE_1]"),
        // one value directly behind another
        ("at 52.5200, 13.405+49 30 901820", "at [PLACE_1][PHONE_1]"),
        (r#"{"lat": 52.52, "lon": -13.405}"#, r#"{"lat": [PLACE_1], "lon": [PLACE_2]}"#),
        ("latitude=52.5", "latitude=[PLACE_1]"),
    ] {
        assert_eq!(hidden(text), want, "{text}");
    }
}

#[test]
fn other_numbers_are_kept() {
    for text in [
        "",
        "the pump draws 3.2 A at 230 V",
        "at 2026-11-23 10:15:00 it was 21.5",
        "on 01.02.2026 and 03/04/26",
        "2026-11-23T08:15:30.0123456Z",
        "1700000000 s, id 4711-0815",
        "version 1.02.0345",
        "10.0.0.1:8080 and 192.168.178.20",
        "a @ b, @home",
        "90 °C, 3 °",
        "flat 12.5",
        "42",
    ] {
        assert_eq!(hidden(text), text);
    }
}

#[test]
fn answers_are_restored_for_any_size_of_pieces() {
    let hidden = hide(&all(), &job("a@b.de, +49 30 901820 and c@d.fr at 52.5200, 13.4050"));
    let answer = "[[EMAIL_2] wrote [EMAIL_1], [EMAIL_3] [PHONE_1][PLACE_1] [PHONE_ [x] ü[";
    let want = "[c@d.fr wrote a@b.de, [EMAIL_3] +49 30 90182052.5200, 13.4050 [PHONE_ [x] ü[";
    for size in 1..=answer.len() {
        assert_eq!(restored(&hidden, answer, size), want, "{size}");
    }
}

#[test]
fn a_restored_json_answer_is_valid_json() {
    let mut redactor = Redactor::default();
    redactor.add("quote", r#""[^"]*"\\?"#).unwrap();
    let asked = Job { format: Format::Json, ..job(r#"he said "x y"\"#) };
    let hidden = hide(&redactor, &asked);
    assert_eq!(hidden.job().messages[0].content, "he said [QUOTE_1]");
    let answer = restored(&hidden, r#"{"said": "[QUOTE_1]"}"#, 3);
    let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(value["said"], r#""x y"\"#);
}

#[test]
fn placeholder_like_text_of_the_prompt_is_kept() {
    let hidden = hide(&all(), &job("what is [EMAIL_1]? and [PHONE_1_2], ask a@b.de"));
    let text = &hidden.job().messages[0].content;
    assert_eq!(text, "what is [EMAIL_1]? and [PHONE_1_2], ask [EMAIL_2_1]");
    assert_eq!(restored(&hidden, "[EMAIL_1] [EMAIL_2_1]", 4), "[EMAIL_1] a@b.de");
}

#[test]
fn all_messages_are_redacted() {
    let turn = |role, content: &str| Message::new(role, content);
    let messages = vec![
        turn(Role::System, "you serve c@d.fr"),
        turn(Role::User, "a@b.de"),
        turn(Role::Assistant, "so c@d.fr"),
    ];
    let hidden = hide(&all(), &Job { messages, ..job("") });
    let sent = &hidden.job().messages;
    let texts: Vec<&str> = sent.iter().map(|turn| turn.content.as_str()).collect();
    assert_eq!(texts, ["you serve [EMAIL_1]", "[EMAIL_2]", "so [EMAIL_1]"]);
    assert_eq!(hidden.count(), 2);
    assert!(matches!(all().hide(&job("nothing to see")), Redaction::Unneeded));
}

#[test]
fn configured_patterns_take_precedence_and_invalid_ones_are_refused() {
    let mut redactor = all();
    redactor.add("badge", r"B-[0-9]{5}").unwrap();
    redactor.add("user", r"[a-z]+@corp\.example").unwrap();
    let hidden = hide(&redactor, &job("B-12345 ann@corp.example bob@x.example"));
    assert_eq!(hidden.job().messages[0].content, "[BADGE_1] [USER_1] [EMAIL_1]");
    for (name, pattern, why) in [
        ("badge", "x", "duplicate"),
        ("e mail", "x", "letters"),
        ("", "x", "letters"),
        ("a", "(", "cannot be parsed"),
        ("a", "x*", "empty"),
        ("a", r"\w{400}{50}", "too complex"),
        ("a", &"x".repeat(1025), "longer"),
    ] {
        let error = redactor.add(name, pattern).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn tool_calls_are_redacted_and_restored() {
    let call = |arguments: &str| ToolCall {
        id: "c".to_owned(),
        name: "write".to_owned(),
        arguments: serde_json::from_str(arguments).unwrap(),
    };
    let turn = |arguments: &str| Message {
        tool_calls: vec![call(arguments)],
        ..Message::new(Role::Assistant, "")
    };
    let sent = |arguments: &str| {
        let messages = vec![Message::new(Role::User, "tell a@b.de"), turn(arguments)];
        let hidden = hide(&all(), &Job { messages, ..job("") });
        (hidden.job().messages[1].tool_calls[0].text(), hidden)
    };
    let (text, hidden) =
        sent(r#"{"to": ["a@b.de"], "c@d.fr": {"say": "\na@b.de\n\"hi\""}, "n": 3}"#);
    let value = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let expected = r#"{"[EMAIL_2]":{"say":"\n[EMAIL_1]\n\"hi\""},"n":3,"to":["[EMAIL_1]"]}"#;
    assert_eq!(value(&text), value(expected));
    let mut calls = [call(r#"{"to": "[EMAIL_1]", "[EMAIL_2]": ["[EMAIL_1] [EMAIL_9] [EMA"]}"#)];
    hidden.restore_calls(&mut calls);
    let expected = r#"{"c@d.fr":["a@b.de [EMAIL_9] [EMA"],"to":"a@b.de"}"#;
    assert_eq!(value(&calls[0].text()), value(expected));
    // coordinates as numbers
    for (place, expected) in [
        (r#"{"lat": 52.5201, "lon": 13.4051}"#, r#"{"lat":"[PLACE_1]","lon":"[PLACE_2]"}"#),
        (r#"{"at": [52.5201, 13.4051]}"#, r#"{"at":["[PLACE_1]","[PLACE_2]"]}"#),
    ] {
        assert_eq!(sent(place).0, expected);
    }
    // placeholder-like text of a call is kept
    assert!(sent(r#"{"x": "[EMAIL_1]"}"#).1.job().messages[0].content.ends_with("[EMAIL_1_1]"));
}

#[test]
fn spellings_are_found_and_restored_as_they_were() {
    for (text, want) in [
        ("to ann\u{ff20}mail.example now", "to [EMAIL_1] now"),
        ("to ann@ma\u{ad}il.example, now", "to [EMAIL_1], now"),
        ("?to=ann%40mail.example&cc=", "?to=[EMAIL_1]&cc="),
        ("<a href='mailto:ann&#64;mail.example'>", "<a href='mailto:[EMAIL_1]'>"),
        (r#"{\"to\": \"ann\u0040mail.example\"}"#, r#"{\"to\": \"[EMAIL_1]\"}"#),
        ("j\u{75}\u{308}rgen@mu\u{308}ller.example", "[EMAIL_1]"),
        (
            "call +\u{664}\u{669} \u{663}\u{660} \u{669}\u{660}\u{661}\u{668}\u{662}\u{660}",
            "call [PHONE_1]",
        ),
        ("call +49\u{2011}30\u{2011}901820", "call [PHONE_1]"),
        ("at \u{2212}33.8600, 151.2100", "at [PLACE_1]"),
        // a spelling is no reason to lose a match
        ("tel=0301234567 and ann%20x@mail.example", "tel=[PHONE_1] and [EMAIL_1]"),
        ("lat=40.7128", "lat=[PLACE_1]"),
    ] {
        let hidden = hide(&all(), &job(text));
        assert_eq!(hidden.job().messages[0].content, want);
        assert_eq!(restored(&hidden, want, 3), text);
    }
}

#[test]
fn values_are_found_across_lines_and_messages() {
    use Role::{Assistant, System, User};
    let mut redactor = all();
    redactor.add("badge", "B-[0-9]{5}").unwrap();
    let check = |texts: &[(Role, &str)], want: &[&str]| {
        assert_eq!(contents(&redactor, texts), want, "{texts:?}");
    };
    check(&[(User, "I am ann@"), (User, "mail.example, hi")], &["I am [EMAIL_1]", "[EMAIL_2], hi"]);
    check(&[(User, "badge B-12"), (Assistant, "345?")], &["badge [BADGE_1]", "[BADGE_2]?"]);
    check(
        &[(User, "I am ann@"), (User, "mail.example"), (User, "ann@mail.example")],
        &["I am [EMAIL_1]", "[EMAIL_2]", "[EMAIL_3]"],
    );
    // the parts of one message are its lines
    check(&[(User, "ann@\nmail.example")], &["[EMAIL_1]\n[EMAIL_2]"]);
    check(&[(User, "call +49 30"), (User, "901820")], &["call [PHONE_1]", "[PHONE_2]"]);
    check(&[(User, "52.5200"), (User, "13.4050")], &["[PLACE_1]", "[PLACE_2]"]);
    // with the answer of the model between
    let asked = [(User, "it begins with ann@"), (Assistant, "And then?"), (User, "mail.example")];
    check(&asked, &["it begins with [EMAIL_1]", "And then?", "[EMAIL_2]"]);
    // the end of a long line
    let long = "x ".repeat(1000);
    check(
        &[(User, &format!("{long}ann@")), (User, &format!("mail.example {long}"))],
        &[&format!("{long}[EMAIL_1]"), &format!("[EMAIL_2] {long}")],
    );
    // what stands before or behind a whole value is no part of it
    check(&[(System, "say ok"), (User, "a@b.de is")], &["say ok", "[EMAIL_1] is"]);
    check(&[(User, "to a@b.de\nok?")], &["to [EMAIL_1]\nok?"]);
    // what follows the end of a value is matched as it is sent
    check(
        &[(User, "at 52.5200, 1"), (User, "3.405+49 30 9018200, ann"), (User, "@mail.example")],
        &["at [PLACE_1]", "[PLACE_2][PHONE_1], [EMAIL_1]", "[EMAIL_2]"],
    );
    // in every spelling
    check(&[(User, "3B-12345+49 30 90%25182099")], &["3[BADGE_1][PHONE_1]"]);
    let readings = "readings:\n0\n12\n13\n14\n15.2\n16.7 V\n17";
    check(&[(User, readings), (Assistant, "0.5")], &[readings, "0.5"]);
}

/// The tools of a request with one tool.
fn offering(name: &str, description: &str, input_schema: Value) -> Arc<Tools> {
    let description = Some(description.to_owned());
    let offered =
        vec![Tool { name: name.to_owned(), description, input_schema: input_schema.into() }];
    Arc::new(Tools { offered, choice: ToolChoice::Auto, parallel: true })
}

#[test]
fn every_field_that_is_sent_is_redacted() {
    let mut redactor = all();
    redactor.add("badge", "B-[0-9]{5}").unwrap();
    let schema = json!({
        "type": "object",
        "description": "for a@b.de",
        "properties": {
            "a@b.de": {"const": "a@b.de"},
            "to": {"enum": ["a@b.de", "nobody"], "default": "a@b.de", "examples": ["a@b.de"]},
            "at": {"examples": [{"lat": 52.5201}], "x-note": "a@b.de", "minimum": 3},
        },
        "required": ["a@b.de"],
    });
    let expected = json!({
        "type": "object",
        "description": "for [EMAIL_1]",
        "properties": {
            "[EMAIL_1]": {"const": "[EMAIL_1]"},
            "to": {"enum": ["[EMAIL_1]", "nobody"], "default": "[EMAIL_1]", "examples": ["[EMAIL_1]"]},
            "at": {"examples": [{"lat": "[PLACE_1]"}], "x-note": "[EMAIL_1]", "minimum": 3},
        },
        "required": ["[EMAIL_1]"],
    });
    let call = ToolCall {
        id: "B-11111".to_owned(),
        name: "open-B-12345".to_owned(),
        arguments: serde_json::Map::new(),
    };
    let asked = Job {
        key: Some("request of a@b.de".to_owned()),
        format: Format::Schema(schema.clone().into()),
        tools: Some(offering("open-B-12345", "Opens the gate of a@b.de.", schema)),
        sampling: Sampling { stop: vec!["a@b.de".to_owned()], ..Sampling::default() },
        messages: vec![
            Message { tool_calls: vec![call.clone()], ..Message::new(Role::Assistant, "") },
            Message { tool_call_id: Some("B-11111".to_owned()), ..Message::new(Role::Tool, "ok") },
        ],
        ..job("")
    };
    let hidden = hide(&redactor, &asked);
    let sent = hidden.job();
    assert_eq!(sent.format, Format::Schema(expected.clone().into()));
    let tools = sent.tools.as_deref().unwrap();
    tools.check().unwrap();
    assert_eq!(*tools.offered[0].input_schema, expected);
    assert_eq!(tools.offered[0].description.as_deref(), Some("Opens the gate of [EMAIL_1]."));
    assert_eq!(sent.sampling.stop, ["[EMAIL_1]"]);
    // names and ids have no brackets, and are equal where they were
    assert_eq!(tools.offered[0].name, "BADGE_2");
    assert_eq!(sent.messages[0].tool_calls[0].name, "BADGE_2");
    assert_eq!(sent.messages[0].tool_calls[0].id, "BADGE_1");
    assert_eq!(sent.messages[1].tool_call_id.as_deref(), Some("BADGE_1"));
    assert_eq!(sent.key.as_deref(), Some("EMAIL_2"));
    let mut calls = [ToolCall { name: "BADGE_2".to_owned(), ..call }];
    hidden.restore_calls(&mut calls);
    assert_eq!(calls[0].name, "open-B-12345");
    assert_eq!(restored(&hidden, r#"{"[EMAIL_1]": "[EMAIL_1]"}"#, 2), r#"{"a@b.de": "a@b.de"}"#);
}

#[test]
fn labels_are_redacted_and_restored() {
    let examples = [("a@b.de", vec!["from a@b.de".to_owned()]), ("other", Vec::new())];
    let examples = examples.into_iter().map(|(label, texts)| (label.to_owned(), texts)).collect();
    let format = Format::Label(Arc::new(Labels { examples, margin: 0.5 }));
    let hidden = hide(&all(), &Job { format, ..job("who wrote this?") });
    let Format::Label(sent) = &hidden.job().format else { panic!("it has no labels") };
    assert_eq!(sent.examples["[EMAIL_1]"], ["from [EMAIL_1]"]);
    let mut found = Classification::of(sent, &[0.75, 0.25]).unwrap();
    hidden.restore_labels(&mut found);
    assert_eq!((found.label.as_str(), found.scores["a@b.de"]), ("a@b.de", 0.75));
}

#[test]
fn what_no_placeholder_can_replace_does_not_leave() {
    let format = |schema: Value| Format::Schema(schema.into());
    let property = |schema: Value| json!({"type": "object", "properties": {"x": schema}});
    for (asked, field, part) in [
        (Job { format: format(json!({"pattern": "^a@b\\.de$"})), ..job("x") }, "schema", "pattern"),
        (Job { format: format(json!({"$ref": "#/$defs/a@b.de"})), ..job("x") }, "schema", "$ref"),
        (Job { format: format(json!({"$defs": {"a@b.de": {}}})), ..job("x") }, "schema", "$defs"),
        (
            Job { format: format(json!({"enum": [[52.5201, 13.4051]]})), ..job("x") },
            "schema",
            "a number of enum or const",
        ),
        (
            Job {
                tools: Some(offering("a", "b", property(json!({"pattern": "a@b.de"})))),
                ..job("x")
            },
            "tools[0]",
            "pattern",
        ),
        (Job { format: Format::Embedding, ..job("a@b.de") }, "messages", "a text to embed"),
    ] {
        let Redaction::Impossible(unfit) = all().hide(&asked) else { panic!("{asked:?}") };
        let refusal = unfit.refusal();
        assert_eq!((refusal.code, refusal.field.as_deref()), (Code::Incapable, Some(field)));
        let message = refusal.message;
        assert!(message.contains(part) && !message.contains("a@b"), "{message}");
    }
}
