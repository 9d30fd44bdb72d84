//! Redaction: what is restored is what was hidden, and nothing that was found is left. The first byte
//! chooses the format, the rest are messages between zero bytes.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use pilotlight::redact::{Hidden, KnownPattern, Redaction, Redactor};
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role};
use pilotlight_fuzz::{refused, target};
use serde_json::json;

static REDACTOR: LazyLock<Redactor> = LazyLock::new(|| {
    let mut redactor = Redactor::default();
    for (_, known) in KnownPattern::ALL {
        redactor.add_known(known).expect("a pattern");
    }
    redactor.add("badge", "B-[0-9]{5}").expect("a pattern");
    redactor
});

target!(|input| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (is_json, text) = (text.starts_with('j'), text.get(1..).unwrap_or_default());
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages =
        text.split('\0').take(16).zip(roles).map(|(text, role)| Message::new(role, text));
    let format = if is_json { Format::Json } else { Format::Text };
    let messages = messages.collect();
    let job = Job { messages, format, ..Job::plain("", Duration::from_secs(1)) };
    match REDACTOR.hide(&job) {
        Redaction::Unneeded => {}
        Redaction::Impossible(unfit) => refused(&unfit.refusal()),
        Redaction::Done(hidden) => {
            for (before, sent) in job.messages.iter().zip(&hidden.job().messages) {
                let restored = if is_json {
                    let answer = restored(&hidden, &json!([sent.content]).to_string());
                    let answer: [String; 1] = serde_json::from_str(&answer).expect("JSON");
                    answer.concat()
                } else {
                    restored(&hidden, &sent.content)
                };
                assert_eq!(restored, before.content, "restored from {:?}", sent.content);
            }
            if let Redaction::Done(_) = REDACTOR.hide(hidden.job()) {
                let texts: Vec<&str> =
                    hidden.job().messages.iter().map(|m| m.content.as_str()).collect();
                panic!("something is left: {texts:?}");
            }
        }
    }
});

fn restored(hidden: &Hidden, text: &str) -> String {
    let mut restorer = hidden.restorer();
    let mut whole = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at);
        whole += &restorer.push(&rest[..end]);
        rest = &rest[end..];
    }
    whole + &restorer.finish()
}
