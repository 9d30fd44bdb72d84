//! Cloud models in Bedrock's protocol: requests, answers in the AWS event stream encoding, failures.

use crate::support::cloud::{Act, Cloud, entry, error, frame, framed as stream, head, open_as};
use crate::support::contract::{job, run};
use pilotlight::model::generate::{Fault, Finish, Usage};
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role};
use serde_json::{Value, json};

const SECRET: &str = "wJalr-canary-7f3a9d51";

fn event(name: &str, payload: &Value) -> Vec<u8> {
    frame("event", name, payload)
}

fn delta(text: &str) -> Vec<u8> {
    event(
        "contentBlockDelta",
        &json!({"contentBlockIndex": 0, "delta": {"text": text}, "p": "abc"}),
    )
}

fn stop(reason: &str) -> Vec<u8> {
    event("messageStop", &json!({"stopReason": reason}))
}

async fn ask(act: Act, job: Job) -> (Result<(String, Usage), Fault>, Cloud) {
    let cloud = Cloud::start([act]).await;
    let mut entry = entry(cloud.url.trim_end_matches("/v1"));
    (entry["kind"], entry["region"]) = (json!("bedrock"), json!("eu-central-1"));
    entry["model"] = json!("acme.model-v1:0");
    entry["key"] = json!(format!("AKIDEXAMPLE:{SECRET}"));
    let result = run(open_as(&entry).as_ref(), &job).await;
    (result, cloud)
}

#[tokio::test]
async fn converse_requests_and_answers() {
    let usage = json!({"inputTokens": 900, "cacheReadInputTokens": 60, "cacheWriteInputTokens": 40,
                       "outputTokens": 500, "totalTokens": 1500});
    let frames = [
        event("messageStart", &json!({"role": "assistant"})),
        delta("A pilot"),
        delta(" light."),
        event("contentBlockStop", &json!({"contentBlockIndex": 0})),
        stop("max_tokens"),
        event("metadata", &json!({"usage": usage, "metrics": {"latencyMs": 7}})),
    ];
    let mut request = job("What burns?", 60);
    let rule = Message::new(Role::System, "Be short.");
    request.messages.insert(0, rule);
    (request.sampling.temperature, request.sampling.top_p) = (Some(0.5), Some(0.5));
    request.sampling.stop = vec!["END".to_owned()];
    let (result, cloud) = ask(stream(&frames), request).await;
    let (text, usage) = result.unwrap();
    assert_eq!((text.as_str(), usage.finish, usage.chunks), ("A pilot light.", Finish::Length, 2));
    let counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens);
    assert_eq!(counts, (1000, 60, 500));
    assert!((usage.cost_usd - 0.007).abs() < 1e-12, "{}", usage.cost_usd);
    let asked = &cloud.asked()[0];
    let line = "POST /model/acme.model-v1%3A0/converse-stream HTTP/1.1";
    assert!(asked.head.starts_with(line), "{}", asked.head);
    assert!(asked.head.contains("authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"));
    assert!(!asked.head.contains(SECRET) && asked.head.contains("x-amz-date: "), "{}", asked.head);
    let expected = json!({
        "messages": [{"role": "user", "content": [{"text": "What burns?"}]}],
        "inferenceConfig": {"maxTokens": 60, "temperature": 0.5, "topP": 0.5, "stopSequences": ["END"]},
        "system": [{"text": "Be short."}],
    });
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn bedrock_s_failures_have_their_fault() {
    let exception = frame("exception", "throttlingException", &json!({"message": "slow down"}));
    let mut torn = delta("x");
    let last = torn.len() - 5;
    torn[last] ^= 1;
    for (frames, expected) in [
        (vec![stop("guardrail_intervened")], "unfit"),
        (vec![stop("tool_use")], "broken"),
        (vec![exception], "crashed"),
        (vec![delta("x"), torn], "broken"),
        (vec![delta("x")], "crashed"),
        (vec![event("contentBlockDelta", &json!({"delta": 1}))], "broken"),
        // the first bytes are a frame length that is never reached
        (vec![b"data: {}\n\n".repeat(10)], "crashed"),
        (vec![[0x7f; 12].to_vec()], "crashed"),
        (vec![], "crashed"),
    ] {
        let (result, _) = ask(stream(&frames), job("hello", 4)).await;
        assert_eq!(result.unwrap_err().name(), expected, "{frames:?}");
    }
    for (status, expected) in [
        ("400 Bad Request", "unfit"),
        ("403 Forbidden", "away"),
        ("424 Failed Dependency", "away"),
        ("429 Too Many Requests", "away"),
        ("503 Service Unavailable", "away"),
    ] {
        let (result, _) = ask(error(status, "", &format!("not {SECRET}")), job("hello", 4)).await;
        let fault = result.unwrap_err();
        assert_eq!(fault.name(), expected, "{status}");
        assert!(!fault.to_string().contains(SECRET), "{fault}");
    }
    let (result, cloud) = ask(stream(&[]), Job { format: Format::Embedding, ..job("hi", 4) }).await;
    assert_eq!((result.unwrap_err().name(), cloud.opened()), ("unfit", 0));
    // a buffered answer
    let whole = json!({"output": {"message": {"role": "assistant", "content": [{"text": "Yes."}]}},
        "stopReason": "end_turn", "usage": {"inputTokens": 3, "outputTokens": 2}});
    let body = format!("{}{whole}", head("200 OK", "application/json", ""));
    let (result, _) = ask(Act::Say(body.into()), job("hello", 4)).await;
    let (text, usage) = result.unwrap();
    assert_eq!((text.as_str(), usage.finish, usage.completion_tokens), ("Yes.", Finish::Stop, 2));
}
