//! Remote MCP servers that answer as a test tells them to.

use pilotlight::model::context::ModelContext;
use serde_json::{Value, json};

use super::cloud::{Act, Cloud};
use super::service::{Service, catalog};

/// What a server does with a request.
pub type Behaviour = fn(&Value) -> Option<Value>;

/// An MCP server over HTTP: a model without a fault but for what `behaviour` answers in its place.
pub async fn server(behaviour: fn(&Value) -> Vec<u8>) -> Cloud {
    Cloud::start([Act::Make(behaviour)]).await
}

/// The HTTP response with the result of this behaviour, or that of an honest model.
pub fn respond(body: &Value, behaviour: Behaviour) -> Vec<u8> {
    let Some(id) = body.get("id") else {
        return b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
    };
    let result = behaviour(body).or_else(|| honest(body));
    let message = match result {
        Some(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        None => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}}),
    };
    json_response(&message)
}

pub fn json_response(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{text}"
    )
    .into_bytes()
}

/// What an honest model answers.
pub fn honest(body: &Value) -> Option<Value> {
    match body["method"].as_str()? {
        "initialize" => Some(json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}, "resources": {}},
            "serverInfo": {"name": "remote", "version": "1"},
        })),
        "resources/list" => Some(json!({"resources": [
            {"uri": "model://remote/context", "name": "remote"}
        ]})),
        "resources/read" => Some(reads(&context())),
        "tools/call" => Some(says("well", &json!({}))),
        _ => None,
    }
}

pub fn context() -> Value {
    let mut context = json!(ModelContext::default());
    context["identification"]["name"] = json!("remote");
    context["capabilities"]["context_tokens"] = json!(8000);
    context["capabilities"]["max_output_tokens"] = json!(400);
    context["capabilities"]["talents"] = json!(["generate", "classify"]);
    context["runtime"]["slots"] = json!(4);
    context
}

pub fn reads(context: &Value) -> Value {
    let text = context.to_string();
    json!({"contents": [{"uri": "model://remote/context", "text": text}]})
}

/// The result of a call: this text, and these figures besides the honest ones.
pub fn says(text: &str, figures: &Value) -> Value {
    let mut usage = json!({
        "finish": "stop", "prompt_tokens": 5, "completion_tokens": 1, "chunks": 1, "model": "remote",
        "prefill_ms": 0.1, "decode_ms": 0.1,
    });
    usage.as_object_mut().unwrap().extend(figures.as_object().unwrap().clone());
    json!({
        "content": [{"type": "text", "text": text}],
        "structuredContent": {"text": text, "usage": usage},
        "isError": false,
    })
}

/// The answer to a call alone; everything else is honest.
pub fn to_calls(body: &Value, result: impl FnOnce() -> Value) -> Option<Value> {
    (body["method"] == "tools/call").then(result)
}

/// A service with a local model and that server as a neighbour.
pub fn beside(url: &str) -> Value {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["remote"] = json!({"type": "http", "url": url});
    catalog["pilotlight"]["servers"] = json!({"remote": {"reach": "peer"}});
    catalog
}

pub async fn ask(service: &Service, model: &str) -> Value {
    let body = json!({
        "model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50,
        "metadata": {"mode": "cloud-only", "deadline_ms": "30000"},
    });
    service.chat(body).await.1
}

pub fn text(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap_or_default()
}
