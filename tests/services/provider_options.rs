//! What a provider's entry adds to its requests, and what an error states.

use crate::support::cloud::{Act, Cloud, answer, entry, error, head, open_as};
use crate::support::contract::{job, run};
use serde_json::{Value, json};

fn with(url: &str, change: &Value) -> Value {
    let mut entry = entry(url);
    entry.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    entry
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
