//! The patterns' matches, and restored answers.

use std::time::Duration;

use super::*;
use crate::request::job::Role;
use crate::request::tools::ToolCall;

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

fn hidden(text: &str) -> String {
    all().hide(&job(text)).map_or_else(|| text.to_owned(), |h| h.messages[0].content.clone())
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
    let hidden = all().hide(&job("a@b.de, +49 30 901820 and c@d.fr at 52.5200, 13.4050")).unwrap();
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
    let hidden = redactor.hide(&asked).unwrap();
    assert_eq!(hidden.messages[0].content, "he said [QUOTE_1]");
    let answer = restored(&hidden, r#"{"said": "[QUOTE_1]"}"#, 3);
    let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(value["said"], r#""x y"\"#);
}

#[test]
fn placeholder_like_text_of_the_prompt_is_kept() {
    let hidden = all().hide(&job("what is [EMAIL_1]? and [PHONE_1_2], ask a@b.de")).unwrap();
    let text = &hidden.messages[0].content;
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
    let hidden = all().hide(&Job { messages, ..job("") }).unwrap();
    let texts: Vec<&str> = hidden.messages.iter().map(|turn| turn.content.as_str()).collect();
    assert_eq!(texts, ["you serve [EMAIL_1]", "[EMAIL_2]", "so [EMAIL_1]"]);
    assert_eq!(hidden.count(), 2);
    assert!(all().hide(&job("nothing to see")).is_none());
}

#[test]
fn configured_patterns_take_precedence_and_invalid_ones_are_refused() {
    let mut redactor = all();
    redactor.add("badge", r"B-[0-9]{5}").unwrap();
    redactor.add("user", r"[a-z]+@corp\.example").unwrap();
    let hidden = redactor.hide(&job("B-12345 ann@corp.example bob@x.example")).unwrap();
    assert_eq!(hidden.messages[0].content, "[BADGE_1] [USER_1] [EMAIL_1]");
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
        let hidden = all().hide(&Job { messages, ..job("") }).unwrap();
        (hidden.messages[1].tool_calls[0].text(), hidden)
    };
    let (text, hidden) =
        sent(r#"{"to": ["a@b.de"], "c@d.fr": {"say": "\na@b.de\n\"hi\""}, "n": 3}"#);
    let value = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let expected = r#"{"[EMAIL_2]":{"say":"\n[EMAIL_1]\n\"hi\""},"n":3,"to":["[EMAIL_1]"]}"#;
    assert_eq!(value(&text), value(expected));
    let mut calls = [call(r#"{"to": "[EMAIL_1]", "[EMAIL_2]": ["[EMAIL_1] [EMAIL_9] [EMA"]}"#)];
    hidden.restore(&mut calls);
    let expected = r#"{"c@d.fr":["a@b.de [EMAIL_9] [EMA"],"to":"a@b.de"}"#;
    assert_eq!(value(&calls[0].text()), value(expected));
    // coordinates as numbers
    for place in [r#"{"lat": 52.5201, "lon": 13.4051}"#, r#"{"at": [52.5201, 13.4051]}"#] {
        let (text, _) = sent(place);
        assert!(text.contains("PLACE_1") && !text.contains("5201"), "{text}");
    }
    // placeholder-like text of a call is kept
    assert!(sent(r#"{"x": "[EMAIL_1]"}"#).1.messages[0].content.ends_with("[EMAIL_1_1]"));
}
