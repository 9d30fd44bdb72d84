//! Contract of MCP client and server: tools, resource, meta keys, notification, shape of a result.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rmcp::model::{ErrorCode, JsonObject, RequestMetaObject, Tool, ToolAnnotations};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::limits::{
    DEADLINE_MAX, DEADLINE_MIN, EMBED_TEXTS_MAX, HOPS_MAX, NAME_BYTES_MAX, OUTPUT_TOKENS_MAX,
    RETRY_STATED_MAX, TOP_LOGPROBS_MAX,
};
use crate::model::context::Locality;
use crate::model::generate::{Fault, Usage};
use crate::request::job::{Message, Role};
use crate::request::refusal::{Code, Refusal};
use crate::time::millis;
use crate::wire::{Ask, AskFormat, WireError};

/// The tool of every model.
pub const TOOL: &str = "generate";
/// The additional tool of models that give embeddings.
pub const EMBED_TOOL: &str = "embed";
/// Meta key: milliseconds left for the answer, a number.
pub const META_DEADLINE: &str = "io.pilotlight/deadline-ms";
/// Meta key: services that the request has passed, a number.
pub const META_HOPS: &str = "io.pilotlight/hops";
/// Meta key: a tag of the callers whose prompts may share the prefix cache with this one. The server
/// compares it with other tags of the same caller and gives it no other meaning.
pub const META_CACHE_GROUP: &str = "io.pilotlight/cache-group";
/// Meta key: leading bytes of the first message that all groups may share, a number.
pub const META_OPEN_BYTES: &str = "io.pilotlight/open-bytes";
/// Meta key: the furthest locality that may read the request, `device`, `peer` or `cloud`. The server
/// obeys it, and sends it on.
pub const META_FURTHEST: &str = "io.pilotlight/reach";

/// Notification from a client to a model that it runs: `{"n": 1, "duty": 0.5, "width": 4}`, the share of the
/// time for which the model may compute, and the most answers that it computes at once. The greatest `n`
/// counts, because notifications may overtake each other. A server that does not know it ignores it.
pub const PACE: &str = "notifications/io.pilotlight/pace";

/// The parameters of [`PACE`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PaceNote {
    /// Counted up by the client.
    pub n: u64,
    /// Share of the time, 0 ..= 1.
    pub duty: f32,
    /// Answers at once; none for as many as the model likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
}

/// The error of a call whose answer will not come: the connection broke after a worker took it.
pub const LOST: ErrorCode = ErrorCode(-32090);
/// The error of a call that no worker took.
pub const NOT_TAKEN: ErrorCode = ErrorCode(-32091);

/// The URI of the resource that holds a model's context.
pub fn context_uri(model: &str) -> String {
    format!("model://{model}/context")
}

/// The model's name in the URI of its context.
pub fn model_of_uri(uri: &str) -> Option<&str> {
    uri.strip_prefix("model://")?.strip_suffix("/context")
}

/// The structured content of a successful call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// The text of the whole answer.
    pub text: String,
    /// What it took.
    pub usage: Usage,
}

/// The structured content of a failed call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotGenerated {
    /// The fault's name; see [`Fault::name`].
    pub fault: String,
    /// What was wrong.
    pub error: WireError,
}

impl NotGenerated {
    /// A fault as it is sent.
    pub fn of(fault: &Fault) -> NotGenerated {
        let plain = |message: &str| WireError::new(fault.name(), message);
        let error = match fault {
            Fault::Rejected(refusal) => WireError {
                retry_after_ms: refusal.retry_after.map(millis),
                ..WireError::from(refusal)
            },
            Fault::Unavailable { reason, retry_after } => {
                WireError { retry_after_ms: retry_after.map(millis), ..plain(reason) }
            }
            Fault::Crashed(why) | Fault::TimedOut(why) | Fault::ProtocolError(why) => plain(why),
            Fault::Cancelled => plain("cancelled"),
        };
        NotGenerated { fault: fault.name().to_owned(), error }
    }

    /// The fault that was sent; an unknown name is a [`Fault::ProtocolError`].
    pub fn fault(self) -> Fault {
        let WireError { code, message, field, retry_after_ms } = self.error;
        let retry_after = retry_after_ms.map(Duration::from_millis);
        let retry_after = retry_after.map(|wait| wait.min(RETRY_STATED_MAX));
        match self.fault.as_str() {
            "cancelled" => Fault::Cancelled,
            "unfit" => {
                let code = serde_json::from_value(Value::from(code)).unwrap_or(Code::Invalid);
                Fault::Rejected(Refusal { field, retry_after, ..Refusal::new(code, message) })
            }
            "away" => Fault::Unavailable { reason: message, retry_after },
            "crashed" => Fault::Crashed(message),
            "hung" => Fault::TimedOut(message),
            _ => Fault::ProtocolError(message),
        }
    }
}

/// Time left, from a request's meta. It shortens the deadline that the request asks for, and never
/// extends it: anybody can state it.
pub fn deadline_of(meta: &RequestMetaObject) -> Option<Duration> {
    let left = Duration::from_millis(meta.get(META_DEADLINE)?.as_u64()?);
    Some(left.clamp(DEADLINE_MIN, DEADLINE_MAX))
}

/// The tag of the callers that share the prefix cache, from a request's meta; empty if none is stated.
pub fn cache_group_of(meta: &RequestMetaObject) -> &str {
    let stated = meta.get(META_CACHE_GROUP).and_then(Value::as_str).unwrap_or_default();
    if stated.len() <= NAME_BYTES_MAX { stated } else { "" }
}

/// Leading bytes of the first message that all groups may share, from a request's meta.
pub fn open_bytes_of(meta: &RequestMetaObject) -> usize {
    let bytes = meta.get(META_OPEN_BYTES).and_then(Value::as_u64).unwrap_or(0);
    usize::try_from(bytes).unwrap_or(0)
}

/// The number of services that the request has passed. It restricts the request and never frees it,
/// because anybody can state it: one at least if any number is stated, and [`HOPS_MAX`] if what is stated
/// is no number.
pub fn hops_of(meta: &RequestMetaObject) -> u8 {
    let Some(stated) = meta.get(META_HOPS) else { return 0 };
    let hops = stated.as_u64().map(|hops| u8::try_from(hops).unwrap_or(u8::MAX));
    hops.unwrap_or(HOPS_MAX).max(1)
}

/// The furthest locality that may read the request, from its meta.
///
/// # Errors
/// [`Code::Invalid`] if it is none that is known: a limit that can't be read must not be passed over.
pub fn furthest_of(meta: &RequestMetaObject) -> Result<Locality, Refusal> {
    let Some(stated) = meta.get(META_FURTHEST) else { return Ok(Locality::Cloud) };
    serde_json::from_value(stated.clone()).map_err(|_| {
        let message = format!("{stated} must be \"device\", \"peer\" or \"cloud\"");
        Refusal::field(Code::Invalid, format!("_meta.{META_FURTHEST}"), message)
    })
}

/// The tool as it is listed.
pub fn tool() -> Tool {
    // made once: it is looked up at each call
    static MADE: LazyLock<Tool> = LazyLock::new(make_tool);
    MADE.clone()
}

/// The input schema is written by hand: derived from [`Ask`], each optional field would also take null,
/// and the bounds that [`Ask::check`] enforces would be missing.
fn make_tool() -> Tool {
    let input = object(json!({
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The client's id of the request."},
            "prompt": {"type": "string", "description": "One user message. Give this, messages, or task."},
            "messages": {"type": "array", "items": {
                "type": "object",
                "properties": {
                    "role": {"type": "string", "enum": ["system", "user", "assistant", "tool"]},
                    "content": {"type": "string"},
                    "tool_calls": {"type": "array", "items": call(), "description": "What the model called."},
                    "tool_call_id": {"type": "string", "description": "The call of which this is the result."}
                },
                "required": ["role", "content"]
            }},
            "task": {"type": "string", "description": "A task of this service's configuration."},
            "input": {"type": "object", "description": "The values that the task's template needs."},
            "format": {"type": "string", "enum": ["text", "json", "embedding"]},
            "schema": {"type": "object", "description": "A JSON Schema that the answer will fit."},
            "tools": {
                "type": "array",
                "description": "Tools that the model may call. The client executes the calls and returns results in messages.",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"}, "description": {"type": "string"}, "input_schema": {"type": "object"}
                    },
                    "required": ["name"],
                    "additionalProperties": false
                }
            },
            "tool_choice": {"description": "auto, none, required, or an object with the name of the tool to call."},
            "parallel_tool_calls": {"type": "boolean", "description": "Allow parallel calls."},
            "labels": {
                "type": "object", "description": "The labels to choose from, each with examples; the answer is one of them.",
                "additionalProperties": {"type": "array", "items": {"type": "string"}}
            },
            "margin": {"type": "number", "minimum": 0, "maximum": 1, "description": "Least confidence for a label; below it the next model is asked."},
            "talent": {"type": "string", "description": "Required capability of the model."},
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": OUTPUT_TOKENS_MAX},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "top_k": {"type": "integer", "minimum": 0, "maximum": 1000},
            "min_p": {"type": "number", "minimum": 0, "maximum": 1},
            "repeat_penalty": {"type": "number", "minimum": 1, "maximum": 2},
            "seed": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
            "deterministic": {"type": "boolean", "description": "The same request to the same model of a device has the same answer, whatever else it computes; it is read without the cache."},
            "stop": {"type": "array", "items": {"type": "string"}},
            "logprobs": {"type": "boolean", "description": "Return the log-probability of each token."},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX},
            "stream": {"type": "boolean", "description": "Progress notifications contain the pieces if a progress token is given."},
            "deadline_ms": {"type": "integer", "minimum": 1},
            "class": {"type": "string", "enum": ["interactive", "normal", "batch"]},
            "mode": {"type": "string", "enum": ["local-only", "prefer-local", "prefer-cloud", "cloud-only"]},
            "strategy": {"type": "string", "enum": ["single", "cascade", "refine", "compare"]},
            "judge": {"type": "string", "description": "With strategy compare: the model that selects the best answer."},
            "model": {"type": "string"}
        },
        "additionalProperties": false
    }));
    let output = object(json!({
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "usage": {"type": "object", "properties": {"tool_calls": {"type": "array", "items": call()}}},
            "fault": {"type": "string"},
            "error": {"type": "object"}
        }
    }));
    let mut tool = Tool::new(
        TOOL,
        "Answers a prompt. Pieces of the answer come as progress notifications, in order.",
        input,
    )
    .with_title("Generate text")
    .with_raw_output_schema(output);
    tool.annotations = Some(reads_only());
    tool
}

/// The schema of a call.
fn call() -> Value {
    json!({
        "type": "object",
        "properties": {
            "id": {"type": "string"}, "name": {"type": "string"}, "arguments": {"type": "object"}
        },
        "required": ["id", "name", "arguments"]
    })
}

/// The arguments of [`EMBED_TOOL`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embed {
    /// The texts to embed.
    pub input: Vec<String>,
    /// The name of the model to use.
    #[serde(default)]
    pub model: Option<String>,
    /// Milliseconds for the answer.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

impl Embed {
    /// The equivalent arguments of [`TOOL`].
    pub fn ask(self) -> Ask {
        let message = |content| Message::new(Role::User, content);
        Ask {
            messages: Some(self.input.into_iter().map(message).collect()),
            format: Some(AskFormat::Embedding),
            model: self.model,
            deadline_ms: self.deadline_ms,
            ..Ask::default()
        }
    }
}

/// The tool for embeddings as it is listed.
pub fn embed_tool() -> Tool {
    static MADE: LazyLock<Tool> = LazyLock::new(make_embed_tool);
    MADE.clone()
}

fn make_embed_tool() -> Tool {
    let input = object(json!({
        "type": "object",
        "properties": {
            "input": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": EMBED_TEXTS_MAX},
            "model": {"type": "string"},
            "deadline_ms": {"type": "integer", "minimum": 1}
        },
        "required": ["input"],
        "additionalProperties": false
    }));
    let output = object(json!({
        "type": "object",
        "properties": {
            "embeddings": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "usage": {"type": "object"},
            "fault": {"type": "string"},
            "error": {"type": "object"}
        }
    }));
    let says = "Returns an embedding (unit vector) for each text; similar texts have a dot product near 1.";
    let mut tool =
        Tool::new(EMBED_TOOL, says, input).with_title("Embed texts").with_raw_output_schema(output);
    tool.annotations = Some(reads_only());
    tool
}

fn reads_only() -> ToolAnnotations {
    let mut hints = ToolAnnotations::new();
    hints.read_only_hint = Some(true);
    hints.open_world_hint = Some(false);
    hints
}

fn object(value: Value) -> Arc<JsonObject> {
    match value {
        Value::Object(map) => Arc::new(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Arc::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_survive_the_wire() {
        let seconds = Some(Duration::from_secs(7));
        let busy = Refusal::new(Code::Busy, "full");
        for fault in [
            Fault::Cancelled,
            Fault::unavailable("starting"),
            Fault::Unavailable { reason: "overloaded".to_owned(), retry_after: seconds },
            Fault::Rejected(Refusal::field(Code::Incapable, "prompt", "too long")),
            Fault::Rejected(Refusal { retry_after: seconds, ..busy }),
            Fault::Crashed("killed".to_owned()),
            Fault::TimedOut("silent".to_owned()),
            Fault::ProtocolError("no JSON".to_owned()),
        ] {
            let sent = serde_json::to_value(NotGenerated::of(&fault)).unwrap();
            let states_wait = match &fault {
                Fault::Unavailable { retry_after, .. } => retry_after.is_some(),
                Fault::Rejected(refusal) => refusal.retry_after.is_some(),
                Fault::Cancelled
                | Fault::Crashed(_)
                | Fault::TimedOut(_)
                | Fault::ProtocolError(_) => false,
            };
            assert_eq!(sent["error"].get("retry_after_ms").is_some(), states_wait, "{sent}");
            let received: NotGenerated = serde_json::from_value(sent).unwrap();
            assert_eq!(received.fault(), fault);
        }
    }

    #[test]
    fn the_schema_lists_all_fields_of_a_request() {
        let unknown: Result<Ask, _> = serde_json::from_value(json!({"?": 1}));
        let error = unknown.unwrap_err().to_string();
        let (_, fields) = error.split_once("expected one of ").unwrap();
        let mut fields: Vec<&str> = fields.split(", ").map(|f| f.trim_matches('`')).collect();
        fields.sort_unstable();
        let tool = tool();
        let properties = tool.input_schema["properties"].as_object().unwrap();
        let mut listed: Vec<&str> = properties.keys().map(String::as_str).collect();
        listed.sort_unstable();
        assert_eq!(listed, fields);
    }
}
