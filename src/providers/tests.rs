//! Answers in the forms of many providers, and requests with what an entry adds to them.

use std::time::Duration;

use futures::{executor::block_on, future};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::*;
use crate::catalog::expand::Variables;
use crate::catalog::read;
use crate::catalog::server::Endpoint;
use crate::model::generate::Finish;
use crate::model::out;
use crate::request::job::Sampling;

/// The text, the end and the tokens of an answer, or the name of its fault and its message.
type Read = Result<(String, Finish, u32), (&'static str, String)>;

fn job() -> Job {
    Job::plain("hi", Duration::from_secs(1))
}

fn with_tools() -> Job {
    let tool = Tool { name: "valve".to_owned(), description: None, input_schema: any_object() };
    let tools = Tools { offered: vec![tool], choice: ToolChoice::Auto, parallel: true };
    Job { tools: Some(tools.into()), ..job() }
}

fn usage_of(
    kind: ProviderKind,
    content_type: &'static str,
    body: &str,
    job: &Job,
) -> (Result<Usage, Fault>, String) {
    let mut response = http::Response::new(body.to_owned());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let (mut out, mut chunks) = out::channel();
    let reading =
        async move { answer::read(response.into(), protocol_of(kind), job, &mut out).await };
    let delivery = async move {
        let mut text = String::new();
        while let Some(chunk) = chunks.recv().await {
            text.push_str(&chunk.text);
        }
        text
    };
    block_on(future::join(reading, delivery))
}

fn read_as(kind: ProviderKind, content_type: &'static str, body: &str) -> Read {
    match usage_of(kind, content_type, body, &job()) {
        (Ok(usage), text) => Ok((text, usage.finish, usage.completion_tokens)),
        (Err(fault), _) => Err((fault.name(), fault.to_string())),
    }
}

fn stream_of(events: &[Value]) -> String {
    events.iter().fold(String::new(), |stream, event| stream + &format!("data: {event}\n\n"))
}

fn streamed(kind: ProviderKind, events: &[Value]) -> Read {
    read_as(kind, "text/event-stream", &stream_of(events))
}

fn buffered(kind: ProviderKind, body: &Value) -> Read {
    read_as(kind, "application/json", &body.to_string())
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with a `Read`")]
fn said(text: &str, finish: Finish, tokens: u32) -> Read {
    Ok((text.to_owned(), finish, tokens))
}

#[track_caller]
fn fails(read: Read, name: &str, reason: &str) {
    let (fault, message) = read.unwrap_err();
    assert!(fault == name && message.contains(reason), "{fault}: {message}");
}

const OPENAI_KIND: ProviderKind = ProviderKind::OpenAi;

#[test]
fn a_content_is_a_text_a_list_of_parts_or_none() {
    let delta = |content: Value| json!({"choices": [{"delta": {"content": content}}]});
    let end = json!({"choices": [{"delta": null, "finish_reason": "stop"}]});
    let parts = json!([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": []}]);
    let role = json!({"choices": [{"delta": {"role": "assistant"}}]});
    let events = [role, delta(json!(null)), delta(parts.clone()), delta(json!("b")), end];
    assert_eq!(streamed(OPENAI_KIND, &events), said("ab", Finish::Stop, 2));
    let message = |content: Value| json!({"choices": [{"message": {"content": content}, "delta": null, "finish_reason": "stop"}]});
    assert_eq!(buffered(OPENAI_KIND, &message(parts)), said("a", Finish::Stop, 1));
    assert_eq!(buffered(OPENAI_KIND, &message(json!(null))), said("", Finish::Stop, 0));
    let message =
        |content: Value| json!({"type": "message", "content": content, "stop_reason": "end_turn"});
    let anthropic = |content: Value| buffered(ProviderKind::Anthropic, &message(content));
    assert_eq!(anthropic(json!("a")), said("a", Finish::Stop, 1));
    assert_eq!(anthropic(json!([{"type": "text", "text": "a"}])), said("a", Finish::Stop, 1));
    assert_eq!(anthropic(json!(null)), said("", Finish::Stop, 0));
}

#[test]
fn events_without_content_are_skipped() {
    let body = ": waiting\n\nevent: ping\ndata: 1\n\ndata:\n\ndata: {}\n\n\
                data: {\"choices\": null}\n\n\
                data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\n: waiting\n\n\
                data: keep-alive\n\ndata: {\"choices\": [{\"finish_reason\": \"stop\"}]}\n\n\
                data: [DONE]\n\n";
    let read = read_as(OPENAI_KIND, "text/event-stream", body);
    assert_eq!(read, said("a", Finish::Stop, 1));
    let body = "event: keepalive\ndata:\n\ndata: {}\n\ndata: {\"type\": \"ping\"}\n\n\
                data: {\"type\": \"content_block_delta\", \"delta\": {\"text\": \"a\"}}\n\n\
                data: {\"type\": \"message_stop\"}\n\n";
    let read = read_as(ProviderKind::Anthropic, "text/event-stream", body);
    assert_eq!(read, said("a", Finish::Stop, 1));
}

#[test]
fn an_unknown_or_missing_reason_ends_the_answer() {
    let text = json!({"choices": [{"delta": {"content": "a"}, "finish_reason": ""}]});
    let done = |events: &[Value], done: &str| {
        read_as(OPENAI_KIND, "text/event-stream", &(stream_of(events) + done))
    };
    let end = |reason: Value| json!({"choices": [{"delta": {}, "finish_reason": reason}]});
    for reason in [json!("eos"), json!("end_turn"), json!("stop_sequence"), json!("abc")] {
        let read = done(&[text.clone(), end(reason)], "");
        assert_eq!(read, said("a", Finish::Stop, 1));
    }
    for reason in [json!(""), json!(null)] {
        let read = done(&[text.clone(), end(reason.clone())], "data: [DONE]\n\n");
        assert_eq!(read, said("a", Finish::Stop, 1));
        // the end is not marked: the connection may have been lost
        fails(done(&[text.clone(), end(reason)], ""), "crashed", "prematurely");
    }
    fails(done(&[], "data: [DONE]\n\n"), "crashed", "prematurely");
    fails(done(&[text, end(json!("content_filter"))], ""), "unfit", "usage policy");
    let message = json!({"choices": [{"message": {"content": "a"}, "finish_reason": null}]});
    assert_eq!(buffered(OPENAI_KIND, &message), said("a", Finish::Stop, 1));
    let text = json!({"type": "content_block_delta", "delta": {"text": "a"}});
    let end = json!({"type": "message_delta", "delta": {"stop_reason": "pause_turn"}});
    let read = streamed(ProviderKind::Anthropic, &[text, end]);
    assert_eq!(read, said("a", Finish::Stop, 1));
}

#[test]
fn the_usage_is_read_wherever_it_is() {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 9});
    let text = json!({"choices": [{"delta": {"content": "a"}}]});
    let end = json!({"choices": [{"delta": {}, "finish_reason": "length"}]});
    let mut with_end = end.clone();
    with_end["usage"] = usage.clone();
    let read = streamed(OPENAI_KIND, &[text.clone(), with_end]);
    assert_eq!(read, said("a", Finish::Length, 9));
    let behind = json!({"choices": [], "usage": usage});
    let read = streamed(OPENAI_KIND, &[text, end, behind]);
    assert_eq!(read, said("a", Finish::Length, 9));
}

#[test]
fn an_error_within_an_answer_states_its_reason() {
    let text = json!({"choices": [{"delta": {"content": "a"}}]});
    for error in [
        json!({"error": "no memory"}),
        json!({"error": {"message": "no memory"}}),
        json!({"error": {"code": "no memory"}}),
        json!({"error": {"message": "no memory"}, "choices": [{"finish_reason": "error"}]}),
        json!({"detail": "no memory"}),
        json!({"message": "no memory"}),
    ] {
        fails(streamed(OPENAI_KIND, &[text.clone(), error.clone()]), "crashed", "no memory");
        fails(buffered(OPENAI_KIND, &error), "crashed", "no memory");
        fails(streamed(ProviderKind::Anthropic, &[error]), "crashed", "no memory");
    }
    let error = json!({"type": "error", "error": "no memory"});
    fails(streamed(ProviderKind::Anthropic, &[error]), "crashed", "no memory");
    // a field that is there but empty
    let text =
        json!({"error": "", "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]});
    assert_eq!(streamed(OPENAI_KIND, &[text]), said("a", Finish::Stop, 1));
}

#[test]
fn tool_calls_are_put_together() {
    let part = |part: Value| json!({"choices": [{"delta": {"tool_calls": [part]}}]});
    let begin =
        part(json!({"index": 0, "id": "a", "function": {"name": "valve", "arguments": ""}}));
    let end = json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]});
    let arguments = |part: &str| json!({"name": "", "arguments": part});
    let first = part(json!({"index": 0, "id": "", "function": arguments("{\"op")}));
    let second = part(json!({"id": null, "function": arguments("en\": 1}")}));
    let whole = part(json!({"id": "a", "function": {"name": "valve", "arguments": {"open": 1}}}));
    for events in [vec![begin, first, second, end.clone()], vec![whole, end]] {
        let (usage, _) =
            usage_of(OPENAI_KIND, "text/event-stream", &stream_of(&events), &with_tools());
        let calls = usage.unwrap().tool_calls;
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert_eq!((&*calls[0].id, &*calls[0].text()), ("a", "{\"open\":1}"));
    }
    let block = json!({"type": "tool_use", "id": "a", "name": "valve", "input": {}});
    let events = [
        json!({"type": "content_block_start", "content_block": block}),
        json!({"type": "content_block_delta", "delta": {"partial_json": "{\"open\":1}"}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
    ];
    let kind = ProviderKind::Anthropic;
    let (usage, _) = usage_of(kind, "text/event-stream", &stream_of(&events), &with_tools());
    assert_eq!(usage.unwrap().tool_calls[0].text(), "{\"open\":1}");
}

#[cfg(feature = "bedrock")]
#[test]
fn bedrock_is_read_with_the_same_patience() {
    let kind = ProviderKind::Bedrock;
    let whole = |reason: Value| json!({"output": {"message": {"content": [{"text": "a"}]}}, "stopReason": reason, "usage": {"outputTokens": 9}});
    assert_eq!(buffered(kind, &whole(json!("eos"))), said("a", Finish::Stop, 9));
    assert_eq!(buffered(kind, &whole(json!("max_tokens"))), said("a", Finish::Length, 9));
    assert_eq!(buffered(kind, &whole(json!(null))), said("a", Finish::Stop, 9));
    fails(buffered(kind, &whole(json!("guardrail_intervened"))), "unfit", "usage policy");
    fails(buffered(kind, &json!({"exception": {"Message": "busy"}})), "crashed", "busy");
    fails(buffered(kind, &json!({"exception": "busy"})), "crashed", "busy");
    fails(buffered(kind, &json!({"message": "busy"})), "crashed", "busy");
}

fn entry(change: &Value) -> Provider {
    let mut big = json!({"kind": "openai", "base_url": "https://a.us-1.amazonaws.com", "model": "m", "key": "k"});
    big.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    let file = json!({"pilotlight": {"providers": {"big": big}}}).to_string();
    let (catalog, mistakes) = read::read(&file, &Variables::new());
    assert_eq!(mistakes, []);
    let Endpoint::Provider(entry) = &catalog.servers[0].endpoint else { panic!("no provider") };
    entry.as_ref().clone()
}

/// A request with all options.
fn full(kind: &str, entry: &Provider) -> Value {
    let mut job = with_tools();
    job.messages.insert(0, Message::new(Role::System, "Be short."));
    job.tools = job.tools.map(|tools| Tools { parallel: false, ..(*tools).clone() }.into());
    job.format = if kind == "openai" { Format::Schema(any_object()) } else { Format::Text };
    job.sampling = Sampling {
        temperature: Some(0.5),
        top_p: Some(0.5),
        top_k: Some(5),
        seed: Some(1),
        stop: vec!["x".to_owned()],
        logprobs: Some(1),
        ..Sampling::default()
    };
    (protocol_of(entry.kind).request)(&job, entry).unwrap()
}

/// The fields that `extra_body` must not have are those that the requests have.
#[test]
fn the_fields_of_requests_are_known() {
    let mut kinds = vec!["openai", "anthropic"];
    kinds.extend(cfg!(feature = "bedrock").then_some("bedrock"));
    for kind in kinds {
        let entry = entry(&json!({"kind": kind}));
        let body = full(kind, &entry);
        let mut fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        if kind == "openai" {
            fields.push("max_completion_tokens");
        }
        fields.sort_unstable();
        assert_eq!(fields, entry.kind.fields(), "{kind}");
    }
}

#[test]
fn a_request_has_the_form_that_its_entry_states() {
    let body = full("openai", &entry(&json!({})));
    assert_eq!(body["response_format"]["json_schema"]["strict"], true);
    assert!(body.get("max_completion_tokens").is_none() && body["max_tokens"] == 4096);
    let other = json!({"strict": false, "max_tokens_field": "max_completion_tokens"});
    let body = full("openai", &entry(&other));
    assert!(!body.to_string().contains("strict"), "{body}");
    assert!(body.get("max_tokens").is_none() && body["max_completion_tokens"] == 4096);
}

#[test]
fn a_refused_key_is_no_lack_of_a_capability() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let fault = fault_of(status, "no", Some(Duration::from_secs(9)));
        let Fault::Unavailable { reason, retry_after } = fault else { panic!("{fault:?}") };
        assert!(reason.contains("refused the key"), "{reason}");
        assert_eq!(retry_after, None);
    }
    let wait = Some(Duration::from_secs(9));
    let fault = fault_of(StatusCode::TOO_MANY_REQUESTS, "slow down", wait);
    assert!(matches!(fault, Fault::Unavailable { retry_after, .. } if retry_after == wait));
}
