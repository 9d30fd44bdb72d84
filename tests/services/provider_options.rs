//! What a provider's entry adds to its requests, and what its refusals teach.

use crate::support::cloud::{Act, Cloud, answer, entry, error, head, open_as};
use crate::support::contract::{job, run};
use serde_json::{Value, json};

const PROPOSES: &str = "Unsupported parameter: 'max_tokens' is not supported with this model. Use \
                        'max_completion_tokens' instead.";

fn with(url: &str, change: &Value) -> Value {
    let mut entry = entry(url);
    entry.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    entry
}

/// The field with the token limit of each request.
fn fields(cloud: &Cloud) -> Vec<&'static str> {
    let fields = ["max_tokens", "max_completion_tokens"];
    let field = |body: &Value| fields.into_iter().find(|field| body[*field] == 4).unwrap();
    cloud.asked().iter().map(|asked| field(&asked.body)).collect()
}

#[tokio::test]
async fn the_other_token_limit_is_tried_once_and_kept() {
    let refusal = error("400 Bad Request", "", PROPOSES);
    let acts = [refusal.clone(), answer(&["a"]), answer(&["b"]), refusal, answer(&["c"])];
    let cloud = Cloud::start(acts).await;
    let model = open_as(&entry(&cloud.url));
    for text in ["a", "b"] {
        assert_eq!(run(model.as_ref(), &job("hello", 4)).await.unwrap().0, text);
    }
    let (old, new) = ("max_tokens", "max_completion_tokens");
    assert_eq!(fields(&cloud), [old, new, new]);
    assert!(cloud.asked()[1].body.get(old).is_none(), "both were sent");
    // the reverse: what is kept is what was taken last
    for _ in 0..2 {
        assert_eq!(run(model.as_ref(), &job("hello", 4)).await.unwrap().0, "c");
    }
    assert_eq!(fields(&cloud)[3..], [new, old, old]);
}

#[tokio::test]
async fn a_refusal_of_both_token_limits_is_told() {
    let cloud = Cloud::start([error("400 Bad Request", "", PROPOSES)]).await;
    let model = open_as(&with(&cloud.url, &json!({"max_tokens_field": "max_completion_tokens"})));
    let fault = run(model.as_ref(), &job("hello", 4)).await.unwrap_err();
    assert!(fault.name() == "unfit" && fault.to_string().contains("Unsupported"), "{fault}");
    assert_eq!(fields(&cloud), ["max_completion_tokens", "max_tokens"]);
    // another refusal is not answered with a second request
    let cloud = Cloud::start([error("400 Bad Request", "", "max_tokens is too large")]).await;
    let fault = run(open_as(&entry(&cloud.url)).as_ref(), &job("hello", 4)).await.unwrap_err();
    assert_eq!((fault.name(), cloud.asked().len()), ("unfit", 1));
}

#[tokio::test]
async fn extra_fields_and_headers_are_sent_and_no_header_is_told() {
    let change = json!({
        "extra_body": {"reasoning": {"effort": "low"}, "user": "dev"},
        "headers": {"X-Title": "canary-title", "api-key": "canary-key"},
    });
    let complaint = "canary-key of canary-title is unknown";
    let cloud = Cloud::start([answer(&["a"]), error("401 Unauthorized", "", complaint)]).await;
    let model = open_as(&with(&cloud.url, &change));
    run(model.as_ref(), &job("hello", 4)).await.unwrap();
    let asked = &cloud.asked()[0];
    assert_eq!(asked.body["reasoning"], json!({"effort": "low"}));
    assert_eq!((&asked.body["user"], &asked.body["model"]), (&json!("dev"), &json!("big-1")));
    assert!(asked.head.contains("x-title: canary-title\r\n"), "{}", asked.head);
    assert!(asked.head.contains("api-key: canary-key\r\n"), "{}", asked.head);
    let fault = run(model.as_ref(), &job("hello", 4)).await.unwrap_err();
    assert!(!format!("{fault} {fault:?}").contains("canary"), "{fault}");
}

/// Each form of an error body is the reason of the fault, also with a status of success.
#[tokio::test]
async fn each_error_body_states_its_reason() {
    for body in [json!({"error": "no memory"}), json!({"detail": "no memory"})] {
        for status in ["400 Bad Request", "500 Internal Server Error", "200 OK"] {
            let said = format!("{}{body}", head(status, "application/json", ""));
            let cloud = Cloud::start([Act::Say(said.into())]).await;
            let fault = run(open_as(&entry(&cloud.url)).as_ref(), &job("hello", 4)).await;
            let fault = fault.unwrap_err().to_string();
            assert!(fault.contains("no memory") && !fault.contains('{'), "{status}: {fault}");
        }
    }
}
