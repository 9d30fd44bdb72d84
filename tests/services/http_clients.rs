//! Requests as clients of `OpenAI`'s format send them: what asks for nothing is taken, the rest is refused in words.

use serde_json::{Value, json};

use crate::http::{DRY, and, ask};
use crate::support::service::{Service, catalog, client};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_asks_for_nothing_is_taken() {
    let service = Service::start(&catalog(&DRY)).await;
    let dumped = json!({
        "role": "assistant", "content": "one", "refusal": null, "annotations": [], "audio": null,
        "function_call": null, "tool_calls": null, "reasoning_content": "hm",
    });
    let cases = [
        json!({"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "n": 1.0}),
        json!({"stream": null, "stream_options": null, "tools": [], "tool_choice": "none"}),
        json!({"parallel_tool_calls": true, "tool_choice": null, "response_format": {"type": "text"}}),
        json!({"reasoning_effort": "low", "verbosity": "low", "service_tier": "auto", "user": "u", "store": false}),
        json!({"max_tokens": 16.0, "seed": 7.0, "top_logprobs": null, "stop": null, "metadata": null}),
        json!({"functions": [], "function_call": "none", "modalities": ["text"], "top_k": 40, "min_p": 0.1}),
        json!({"messages": [{"role": "user", "content": "a"}, dumped, {"role": "user", "content": "b", "name": "x"}]}),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "refusal": "no"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]}]}),
    ];
    for case in cases {
        let (status, body) = service.chat(and(ask("hello you"), case.clone())).await;
        assert_eq!(status, 200, "{case}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_have_an_effect_is_refused_in_words() {
    let service = Service::start(&catalog(&DRY)).await;
    let image =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let cases = [
        (json!({"frequency_penalty": 0.5}), "frequency_penalty", "repeat_penalty"),
        (json!({"logit_bias": {"50256": -100}}), "logit_bias", "not supported"),
        (json!({"functions": [{"name": "f"}]}), "functions", "use tools"),
        (json!({"messages": image}), "messages[0].content[0]", "no model here reads images"),
        (json!({"max_token": 4}), "max_token", "the nearest is max_tokens"),
        (json!({"max_tokens": 1.5}), "max_tokens", "a whole number"),
        (json!({"tool_choice": "required"}), "tool_choice", ""),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
            "is missing",
        ),
        (json!({"metadata": {"task": "t", "input": "[1]"}}), "metadata.input", "no object"),
    ];
    for (case, field, words) in cases {
        let (status, body) = service.chat(and(ask("hello"), case.clone())).await;
        assert_eq!(status, 400, "{case}: {body}");
        assert_eq!(body["error"]["param"], field, "{case}: {body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(words) && !message.contains("untagged"), "{case}: {message}");
    }
}

/// The scripted model writes no JSON, which shows that the schema is asked of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_beside_json_object_is_followed() {
    let service = Service::start(&catalog(&DRY)).await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "nonsense"}}});
    for format in [
        json!({"type": "json_object", "schema": schema}),
        json!({"type": "json_schema", "schema": schema}),
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}),
    ] {
        let (status, body) =
            service.chat(and(ask("hello"), json!({"response_format": format}))).await;
        assert_eq!(status, 400, "{format}: {body}");
        assert!(
            body["error"]["message"].as_str().unwrap().contains("nonsense"),
            "{format}: {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_headers_are_taken_as_clients_send_them() {
    let service = Service::launch(&catalog(&DRY), "off", &[("PILOTLIGHT_HTTP_TOKEN", "s3cret")]);
    service.ready().await;
    let get = async |path: &str, scheme: &str| {
        let request = client().get(service.url(path));
        let response =
            request.header("authorization", format!("{scheme} s3cret")).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str::<Value>(&text).unwrap_or(Value::from(text)))
    };
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(get("/v1/models", scheme).await.0, 200, "{scheme}");
    }
    assert_eq!(get("/v1/models", "Basic").await.0, 401);
    let (status, model) = get("/v1/models/dry", "Bearer").await;
    assert_eq!((status, &model["id"], &model["object"]), (200, &json!("dry"), &json!("model")));
    assert_eq!(get("/v1/models/local", "Bearer").await.1["id"], "dry");
    let (status, body) = get("/v1/models/org/other", "Bearer").await;
    assert_eq!((status, &body["error"]["param"]), (404, &json!("model")));
    assert!(body["error"]["message"].as_str().unwrap().contains("models: dry"), "{body}");
    let (status, body) = get("/v1/nothing", "Bearer").await;
    assert_eq!((status, body["error"]["code"].as_str()), (404, Some("unknown")), "{body}");
    let (status, body) = get("/v1/chat/completions", "Bearer").await;
    assert_eq!(status, 405, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("no method GET"), "{body}");
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    });
    for (path, accept) in
        [("/mcp", "*/*"), ("/mcp/", "*/*"), ("/mcp/", "application/json, text/event-stream")]
    {
        let request =
            client().post(service.url(path)).bearer_auth("s3cret").header("accept", accept);
        let response = request.json(&initialize).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path} {accept}");
        assert!(response.text().await.unwrap().contains("serverInfo"), "{path} {accept}");
    }
}
