//! Answers of providers. The first byte chooses the protocol, the second the size of the parts in which
//! the rest arrives.
#![no_main]

use bytes::Bytes;
use pilotlight::model::generate::Usage;
use pilotlight::providers::fuzzing::{Kind, frame, response};
use pilotlight::request::client::Client;
use pilotlight::request::job::Job;
use pilotlight_fuzz::{catalog, failed, target};
use std::sync::LazyLock;
use std::time::Duration;

static JOBS: LazyLock<[Job; 3]> = LazyLock::new(|| {
    let ask = |text: &str| {
        let ask: pilotlight::wire::Ask = serde_json::from_str(text).expect("a request");
        ask.check(&Client::known("app"), catalog()).expect("a request")
    };
    [
        Job::plain("hi", Duration::from_secs(1)),
        ask(r#"{"prompt": "shut it", "tools": [{"name": "valve"}], "logprobs": true}"#),
        ask(
            r#"{"prompt": "hi", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}"#,
        ),
    ]
});

target!(|input| {
    let [kind, size, body @ ..] = input else { return };
    let (kind, content_type) = match kind {
        b'o' => (Kind::OpenAi, "text/event-stream"),
        b'a' => (Kind::Anthropic, "text/event-stream"),
        b'b' | b'f' => (Kind::Bedrock, "application/vnd.amazon.eventstream"),
        b'O' => (Kind::OpenAi, "application/json"),
        b'A' => (Kind::Anthropic, "application/json"),
        b'B' => (Kind::Bedrock, "application/json"),
        _ => return,
    };
    let is_text = input[0] != b'b';
    let job = &JOBS[usize::from(size % 3)];
    let body = if input[0] == b'f' { framed(body) } else { Bytes::copy_from_slice(body) };
    let size = usize::from(*size).max(1);
    let parts = (0..body.len()).step_by(size);
    let parts = parts.map(|at| body.slice(at..(at + size).min(body.len()))).collect();
    let in_parts = response(kind, content_type, parts, job);
    let at_once = response(kind, content_type, vec![body.clone()], job);
    match (in_parts, at_once) {
        ((Ok(one), text), (Ok(other), whole)) => {
            assert_eq!((without_times(one), text), (without_times(other), whole), "parts matter");
        }
        ((Err(one), _), (Err(other), _)) => {
            failed(one);
            failed(other);
        }
        // what follows the last event is not read, unless it comes with it
        ((Err(fault), _), _) | (_, (Err(fault), _)) => {
            let is_behind = fault.to_string().contains("its events cannot be parsed");
            assert!(
                !is_text || is_behind || std::str::from_utf8(&body).is_err(),
                "parts matter: {fault:?}"
            );
        }
    }
});

/// Lines of an event's name and its payload, as frames.
fn framed(lines: &[u8]) -> Bytes {
    let frames = lines.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (event, payload) = line.split_once(' ').unwrap_or((line, ""));
        Some(frame(event, payload.as_bytes()))
    });
    frames.collect::<Vec<Bytes>>().concat().into()
}

fn without_times(usage: Usage) -> Usage {
    Usage { prefill_ms: 0.0, decode_ms: 0.0, ..usage }
}
