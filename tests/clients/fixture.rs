//! The tools, resources and prompts that the MCP conformance suite asks for, behind the service's
//! own HTTP stack: what is tested is the stack, not the service's tool. Prints its address.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    deprecated,
    missing_docs,
    reason = "a fixture; the older revisions' features are asked for"
)]

use std::time::Duration;

use axum::Router;
use pilotlight::ingress::http;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams, CompleteResult,
    CreateMessageRequestParams, ErrorData, GetPromptRequestParams, GetPromptResponse,
    GetPromptResult, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, LoggingMessageNotificationParam, PaginatedRequestParams,
    ProgressNotificationParam, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
    ServerCapabilities, ServerConfig, SetLevelRequestParams, SubscribeRequestParams,
    UnsubscribeRequestParams,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// One red pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// A WAV file without a sample.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";

#[derive(Clone)]
struct Fixture;

/// A result written as it stands on the wire.
fn wire<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// A whole result, as the newest revision wants it marked; older ones have the mark taken off.
fn result<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = json!("complete");
    wire(value)
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn tool(name: &str, properties: &Value, required: &[&str]) -> Value {
    json!({"name": name, "description": "For the conformance suite.", "inputSchema":
        {"type": "object", "properties": properties, "required": required}})
}

fn tools() -> Vec<Value> {
    let string = json!({"type": "string"});
    let mut tools: Vec<Value> = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_tool_with_logging",
        "test_error_handling",
        "test_tool_with_progress",
    ]
    .iter()
    .map(|name| tool(name, &json!({}), &[]))
    .collect();
    tools.push(tool("test_sampling", &json!({"prompt": string}), &["prompt"]));
    tools
}

async fn call(name: &str, args: &Value, asker: &RequestContext<RoleServer>) -> Option<Value> {
    let resource = |uri: &str, kind: &str, body: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": body}});
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let content = match name {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([image]),
        "test_audio_content" => json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
        "test_embedded_resource" => json!([resource(
            "test://embedded-resource",
            "text/plain",
            "This is an embedded resource content."
        )]),
        "test_multiple_content_types" => json!([
            text("Multiple content types test:"),
            image,
            resource(
                "test://mixed-content-resource",
                "application/json",
                r#"{"test":"data","value":123}"#
            )
        ]),
        "test_error_handling" => {
            let content = [text("This tool intentionally returns an error for testing")];
            return Some(json!({"content": content, "isError": true}));
        }
        "test_tool_with_logging" => {
            for said in
                ["Tool execution started", "Tool processing data", "Tool execution completed"]
            {
                let note = json!({"level": "info", "data": said});
                let note: LoggingMessageNotificationParam = wire(note);
                asker.peer.notify_logging_message(note).await.ok()?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            json!([text("logged")])
        }
        "test_tool_with_progress" => {
            for done in [0.0, 50.0, 100.0] {
                if let Some(token) = asker.meta.get_progress_token() {
                    let progress = ProgressNotificationParam::new(token, done).with_total(100.0);
                    asker.peer.notify_progress(progress).await.ok()?;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            json!([text("done")])
        }
        "test_sampling" => {
            let message = json!({"role": "user", "content": text(args["prompt"].as_str()?)});
            let ask: CreateMessageRequestParams =
                wire(json!({"messages": [message], "maxTokens": 100}));
            let answer = serde_json::to_value(asker.peer.create_message(ask).await.ok()?).ok()?;
            json!([text(&format!("LLM response: {}", answer["content"]["text"]))])
        }
        _ => return None,
    };
    Some(json!({"content": content, "isError": false}))
}

fn prompt(name: &str, args: &Value) -> Option<Value> {
    let says = |content: Value| json!({"role": "user", "content": content});
    let messages = match name {
        "test_simple_prompt" => json!([says(text("This is a simple prompt for testing."))]),
        "test_prompt_with_arguments" => {
            let said =
                format!("Prompt with arguments: arg1={}, arg2={}", args["arg1"], args["arg2"])
                    .replace('"', "'");
            json!([says(text(&said))])
        }
        "test_prompt_with_embedded_resource" => json!([
            says(
                json!({"type": "resource", "resource": {"uri": args["resourceUri"], "mimeType": "text/plain", "text": "Embedded resource content for testing."}})
            ),
            says(text("Please process the embedded resource above."))
        ]),
        "test_prompt_with_image" => json!([
            says(json!({"type": "image", "data": PNG, "mimeType": "image/png"})),
            says(text("Please analyze the image above."))
        ]),
        _ => return None,
    };
    Some(json!({"messages": messages}))
}

fn resource(uri: &str) -> Option<Value> {
    let contents = match uri {
        "test://static-text" | "test://watched-resource" => {
            json!({"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."})
        }
        "test://static-binary" => json!({"uri": uri, "mimeType": "image/png", "blob": PNG}),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            let body =
                json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
            json!({"uri": uri, "mimeType": "application/json", "text": body.to_string()})
        }
    };
    Some(json!({"contents": [contents]}))
}

type Page = Option<PaginatedRequestParams>;
type Context = RequestContext<RoleServer>;

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        let capabilities: ServerCapabilities = wire(json!({
            "tools": {}, "prompts": {}, "logging": {}, "completions": {}, "resources": {"subscribe": true}
        }));
        ServerConfig::new(capabilities)
    }

    async fn list_tools(&self, _: Page, _: Context) -> Result<ListToolsResult, ErrorData> {
        Ok(result(json!({"tools": tools()})))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let args = Value::Object(request.arguments.unwrap_or_default());
        let called = call(&request.name, &args, &context).await;
        let unknown = || ErrorData::invalid_params("no such tool, or the client went away", None);
        Ok(result::<CallToolResult>(called.ok_or_else(unknown)?).into())
    }

    async fn list_prompts(&self, _: Page, _: Context) -> Result<ListPromptsResult, ErrorData> {
        let argument = |name: &str| json!({"name": name, "required": true});
        Ok(result(json!({"prompts": [
            {"name": "test_simple_prompt", "description": "simple"},
            {"name": "test_prompt_with_arguments", "description": "arguments", "arguments": [argument("arg1"), argument("arg2")]},
            {"name": "test_prompt_with_embedded_resource", "description": "resource", "arguments": [argument("resourceUri")]},
            {"name": "test_prompt_with_image", "description": "image"}
        ]})))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let args = serde_json::to_value(request.arguments).unwrap_or_default();
        let found = prompt(&request.name, &args);
        let unknown = || ErrorData::invalid_params("no such prompt", None);
        Ok(result::<GetPromptResult>(found.ok_or_else(unknown)?).into())
    }

    async fn list_resources(&self, _: Page, _: Context) -> Result<ListResourcesResult, ErrorData> {
        let names = ["static-text", "static-binary", "watched-resource"];
        let all = names.map(|name| json!({"uri": format!("test://{name}"), "name": name}));
        Ok(result(json!({"resources": all})))
    }

    async fn list_resource_templates(
        &self,
        _: Page,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(result(
            json!({"resourceTemplates": [{"uriTemplate": "test://template/{id}/data", "name": "template"}]}),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let data = Some(json!({"uri": request.uri}));
        let unknown = || ErrorData::resource_not_found("no such resource", data);
        Ok(result::<ReadResourceResult>(resource(&request.uri).ok_or_else(unknown)?).into())
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(result(
            json!({"completion": {"values": ["testValue1", "testValue2"], "total": 2, "hasMore": false}}),
        ))
    }

    async fn set_level(&self, _: SetLevelRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn subscribe(&self, _: SubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let guard = http::Guard { mcp_sessions: true, ..http::Guard::default() };
    let routes = http::protect(
        http::with_mcp(Router::new(), Fixture, &guard, stop.clone()),
        Router::new(),
        guard,
    );
    let listener = http::listen("127.0.0.1:0".parse()?).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    http::serve(listener, routes, stop).await;
    Ok(())
}
