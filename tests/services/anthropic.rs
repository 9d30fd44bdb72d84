//! Cloud models in Anthropic's protocol: requests, answers, failures.

use crate::support::cloud::{Act, Cloud, KEY, answer, entry, error, event as sse, head, open_as};
use crate::support::contract::{job, run};
use pilotlight::model::generate::{Fault, Finish, Usage};
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role};
use serde_json::{Value, json};

/// Server-sent events of Anthropic's protocol.
fn messages(events: &[Value]) -> Vec<u8> {
    let one = |event: &Value| format!("event: {}\n{}", event["type"].as_str().unwrap(), sse(event));
    let events: String = events.iter().map(one).collect();
    format!("{}{events}", head("200 OK", "text/event-stream", "")).into()
}

async fn ask_anthropic(act: Act, job: Job) -> (Result<(String, Usage), Fault>, Cloud) {
    let cloud = Cloud::start([act]).await;
    let mut entry = entry(&cloud.url);
    entry["kind"] = json!("anthropic");
    let result = run(open_as(&entry).as_ref(), &job).await;
    (result, cloud)
}

#[tokio::test]
async fn anthropic_s_requests_and_answers() {
    let delta = |text: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let events = [
        json!({"type": "message_start", "message": {"type": "message", "content": [], "stop_reason": null, "usage": {
            "input_tokens": 900, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 40, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        delta("A pilot"),
        delta(" light."),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{"}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 500}}),
        json!({"type": "message_stop"}),
    ];
    let mut request = job("What burns?", 60);
    let rule = Message::new(Role::System, "Be short.");
    request.messages.insert(0, rule);
    (request.sampling.temperature, request.sampling.top_k) = (Some(1.5), Some(5));
    request.sampling.stop = vec!["END".to_owned()];
    let (result, cloud) = ask_anthropic(Act::Say(messages(&events)), request).await;
    let (text, usage) = result.unwrap();
    assert_eq!((text.as_str(), usage.finish, usage.chunks), ("A pilot light.", Finish::Length, 2));
    assert_eq!(
        (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
        (1000, 60, 500)
    );
    assert!((usage.cost_usd - 0.007).abs() < 1e-12, "{}", usage.cost_usd);
    let asked = &cloud.asked()[0];
    assert!(asked.head.starts_with("POST /v1/messages HTTP/1.1"), "{}", asked.head);
    assert!(asked.head.contains(&format!("x-api-key: {KEY}")) && !asked.head.contains("Bearer"));
    assert!(asked.head.contains("anthropic-version: 2023-06-01"));
    let expected = json!({
        "model": "big-1", "messages": [{"role": "user", "content": "What burns?"}], "stream": true,
        "max_tokens": 60, "system": "Be short.", "temperature": 1.0, "top_k": 5,
        "stop_sequences": ["END"],
    });
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn anthropic_s_failures_have_their_fault() {
    let stop = |reason: &str| json!({"type": "message_delta", "delta": {"stop_reason": reason}});
    let overloaded =
        json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    for (events, expected) in [
        (vec![stop("refusal")], "unfit"),
        (vec![stop("tool_use")], "broken"),
        (vec![overloaded], "crashed"),
        (vec![json!({"type": "message_stop"})], "crashed"),
        (vec![json!({"type": "content_block_delta"})], "broken"),
        (vec![], "crashed"),
    ] {
        let (result, _) = ask_anthropic(Act::Say(messages(&events)), job("hello", 4)).await;
        assert_eq!(result.unwrap_err().name(), expected, "{events:?}");
    }
    let (result, _) = ask_anthropic(error("529 Overloaded", "", "oh"), job("hello", 4)).await;
    assert_eq!(result.unwrap_err().name(), "away");
    // an unsupported format is not sent
    let (result, cloud) =
        ask_anthropic(answer(&["x"]), Job { format: Format::Embedding, ..job("hi", 4) }).await;
    assert_eq!((result.unwrap_err().name(), cloud.opened()), ("unfit", 0));
    let whole = json!({"type": "message", "content": [{"type": "thinking"}, {"type": "text", "text": "Yes."}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2}});
    let body = format!("{}{whole}", head("200 OK", "application/json", ""));
    let (result, _) = ask_anthropic(Act::Say(body.into()), job("hello", 4)).await;
    assert_eq!(result.unwrap().0, "Yes.");
}
