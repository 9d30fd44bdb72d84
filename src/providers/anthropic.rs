//! Anthropic's Messages API: requests, and the events of an answer.
//!
//! Source: the API reference of Messages, with `stream`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{AnswerDelta, unreadable};
use super::calls::CallDelta;
use super::finish::finish_of;
use super::{content, tools_or_answer, with_results};
use crate::catalog::provider::Provider;
use crate::model::generate::Fault;
use crate::request::job::{Job, Message as JobMessage, Role};
use crate::request::tools::{Name, ToolCall, ToolChoice, Tools};

/// Version of the protocol, a header of every request.
pub(super) const VERSION: &str = "2023-06-01";
/// Highest temperature that the API accepts.
const TEMPERATURE_MAX: f32 = 1.0;

/// Builds the body of a request. System messages are a field beside the conversation.
///
/// # Errors
/// [`Fault::Rejected`] for a format that this protocol lacks.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let tools = tools_or_answer(job)?;
    let tools = tools.as_deref();
    let sampling = &job.sampling;
    let (system, conversation): (Vec<_>, Vec<_>) =
        job.messages.iter().partition(|message| message.role == Role::System);
    let system: Vec<&str> = system.iter().map(|message| message.content.as_str()).collect();
    let mut body = json!({
        "model": entry.model,
        "messages": with_results(&conversation, result, message),
        "stream": true,
        "max_tokens": entry.most_tokens(sampling.max_tokens),
    });
    let options = [
        ("system", (!system.is_empty()).then(|| json!(system.join("\n\n")))),
        ("temperature", sampling.temperature.map(|t| json!(t.min(TEMPERATURE_MAX)))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("top_k", sampling.top_k.filter(|k| *k > 0).map(|k| json!(k))),
        ("tools", tools.map(|tools| json!(tools.offered))),
        ("tool_choice", tools.map(choice)),
        ("stop_sequences", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
    ];
    for (name, option) in options {
        if let Some(value) = option {
            body[name] = value;
        }
    }
    Ok(body)
}

fn result(message: &JobMessage) -> Value {
    json!({"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content})
}

fn message(message: &JobMessage) -> Value {
    if message.tool_calls.is_empty() {
        return json!({"role": message.role, "content": message.content});
    }
    let text = Some(&message.content).filter(|text| !text.is_empty());
    let text = text.map(|text| json!({"type": "text", "text": text}));
    let call = |call: &ToolCall| json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments});
    let blocks = text.into_iter().chain(message.tool_calls.iter().map(call));
    json!({"role": message.role, "content": blocks.collect::<Vec<_>>()})
}

fn choice(tools: &Tools) -> Value {
    let mut choice = match &tools.choice {
        ToolChoice::Auto => json!({"type": "auto"}),
        ToolChoice::None => return json!({"type": "none"}),
        ToolChoice::Required => json!({"type": "any"}),
        ToolChoice::Named(Name { name }) => json!({"type": "tool", "name": name}),
    };
    if !tools.parallel {
        choice["disable_parallel_tool_use"] = json!(true);
    }
    choice
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Message,
    },
    ContentBlockStart {
        index: Option<u32>,
        content_block: Block,
    },
    ContentBlockDelta {
        index: Option<u32>,
        delta: Delta,
    },
    MessageDelta {
        delta: MessageEnd,
        usage: Option<TokenCounts>,
    },
    MessageStop,
    /// A buffered answer.
    Message(Message),
    /// The ends of blocks, `ping`, and events that are added later.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Message {
    content: Option<Content>,
    stop_reason: Option<String>,
    usage: Option<TokenCounts>,
}

/// The content of a message; the API sends blocks.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Blocks(Vec<Block>),
    Text(String),
}

/// A content block, complete or at its start; a block that is neither text nor a tool call has no field
/// set.
#[derive(Debug, Default, Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    #[serde(default, deserialize_with = "content::not_empty")]
    id: Option<String>,
    #[serde(default, deserialize_with = "content::not_empty")]
    name: Option<String>,
    /// Empty at the start of a streamed call.
    #[serde(default, deserialize_with = "content::arguments")]
    input: Option<String>,
}

/// More of a block.
#[derive(Debug, Deserialize)]
struct Delta {
    text: Option<String>,
    partial_json: Option<String>,
}

impl Block {
    /// The tool call that this block is or starts.
    fn call(self, index: Option<u32>) -> Option<CallDelta> {
        let Block { id, name, input: arguments, .. } = self;
        (self.kind? == "tool_use").then_some(CallDelta { index, id, name, arguments })
    }
}

#[derive(Debug, Deserialize)]
struct MessageEnd {
    stop_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenCounts {
    /// Tokens that were not cached.
    input_tokens: Option<u32>,
    cache_read_input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

/// Parses an event, or a buffered answer.
///
/// # Errors
/// [`Fault::ProtocolError`] for an unknown format, [`Fault::Crashed`] for an error event,
/// [`Fault::Rejected`] for a refusal.
pub(super) fn parse(data: &str) -> Result<AnswerDelta, Fault> {
    let event: Event = match serde_json::from_str(data) {
        Ok(event) => event,
        // an event of no type has no content
        Err(_) if is_untyped(data) => Event::Other,
        Err(error) => return Err(unreadable(&error)),
    };
    match event {
        Event::MessageStart { message } => delta_of(None, None, message.usage),
        Event::ContentBlockStart { index, content_block } => {
            let text = content_block.text.clone();
            Ok(AnswerDelta {
                text,
                calls: content_block.call(index).into_iter().collect(),
                ..AnswerDelta::default()
            })
        }
        Event::ContentBlockDelta { index, delta: Delta { text, partial_json } } => {
            let arguments =
                |text| CallDelta { index, arguments: Some(text), ..CallDelta::default() };
            let calls = partial_json.map(arguments).into_iter().collect();
            Ok(AnswerDelta { text, calls, ..AnswerDelta::default() })
        }
        Event::MessageDelta { delta, usage } => delta_of(None, delta.stop_reason, usage),
        Event::MessageStop => Ok(AnswerDelta { is_last: true, ..AnswerDelta::default() }),
        Event::Message(message) => {
            let blocks = match message.content {
                Some(Content::Blocks(blocks)) => blocks,
                Some(Content::Text(text)) => vec![Block { text: Some(text), ..Block::default() }],
                None => Vec::new(),
            };
            let text = blocks.iter().filter_map(|block| block.text.as_deref()).collect();
            let calls = (0..).zip(blocks).filter_map(|(n, block)| block.call(Some(n))).collect();
            Ok(AnswerDelta { calls, ..delta_of(Some(text), message.stop_reason, message.usage)? })
        }
        Event::Other => Ok(AnswerDelta::default()),
    }
}

fn is_untyped(data: &str) -> bool {
    let event: Option<Map<String, Value>> = serde_json::from_str(data).ok();
    event.is_some_and(|event| !event.contains_key("type"))
}

fn delta_of(
    text: Option<String>,
    reason: Option<String>,
    counts: Option<TokenCounts>,
) -> Result<AnswerDelta, Fault> {
    let counts = counts.unwrap_or_default();
    let cached = counts.cache_read_input_tokens.unwrap_or(0);
    let written = counts.cache_creation_input_tokens.unwrap_or(0);
    Ok(AnswerDelta {
        text,
        finish: reason.map_or(Ok(None), |reason| finish_of(&reason))?,
        prompt_tokens: counts
            .input_tokens
            .map(|tokens| tokens.saturating_add(cached).saturating_add(written)),
        cached_tokens: counts.cache_read_input_tokens,
        completion_tokens: counts.output_tokens,
        ..AnswerDelta::default()
    })
}
