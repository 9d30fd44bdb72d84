//! Anthropic's messages: what is asked, and what each event says.
//!
//! Source: the API reference of messages, with `stream`.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{CallPiece, News, forbidden, gave_up, unreadable};
use super::{tools_or_answer, with_results};
use crate::catalog::provider::Provider;
use crate::model::generate::{Fault, Finish};
use crate::request::job::{Job, Message as Turn, Role};
use crate::request::tools::{Name, ToolCall, ToolChoice, Tools};

/// The version of the protocol, which every request names.
pub(super) const VERSION: &str = "2023-06-01";
/// The highest temperature there.
const TEMPERATURE_MAX: f32 = 1.0;

/// The body of a request. What the system says goes beside the conversation.
///
/// # Errors
/// [`Fault::Rejected`] for what this protocol can't be asked.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let tools = tools_or_answer(job)?;
    let tools = tools.as_deref();
    let sampling = &job.sampling;
    let (rules, talk): (Vec<_>, Vec<_>) =
        job.messages.iter().partition(|message| message.role == Role::System);
    let rules: Vec<&str> = rules.iter().map(|message| message.content.as_str()).collect();
    let mut body = json!({
        "model": entry.model,
        "messages": with_results(&talk, result, said),
        "stream": true,
        "max_tokens": entry.most_tokens(sampling.max_tokens),
    });
    let wishes = [
        ("system", (!rules.is_empty()).then(|| json!(rules.join("\n\n")))),
        ("temperature", sampling.temperature.map(|t| json!(t.min(TEMPERATURE_MAX)))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("top_k", sampling.top_k.filter(|k| *k > 0).map(|k| json!(k))),
        ("tools", tools.map(|tools| json!(tools.offered))),
        ("tool_choice", tools.map(choice)),
        ("stop_sequences", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
    ];
    for (name, wish) in wishes {
        if let Some(value) = wish {
            body[name] = value;
        }
    }
    Ok(body)
}

fn result(turn: &Turn) -> Value {
    json!({"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": turn.content})
}

fn said(turn: &Turn) -> Value {
    if turn.tool_calls.is_empty() {
        return json!({"role": turn.role, "content": turn.content});
    }
    let text = Some(&turn.content).filter(|text| !text.is_empty());
    let text = text.map(|text| json!({"type": "text", "text": text}));
    let call = |call: &ToolCall| json!({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments});
    let blocks = text.into_iter().chain(turn.tool_calls.iter().map(call));
    json!({"role": turn.role, "content": blocks.collect::<Vec<_>>()})
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
        index: u32,
        content_block: Block,
    },
    ContentBlockDelta {
        #[serde(default)]
        index: u32,
        delta: Delta,
    },
    MessageDelta {
        delta: Ending,
        usage: Option<Counted>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    /// A whole answer.
    Message(Message),
    /// The end of blocks, signs of life, and what is added later.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Vec<Block>,
    stop_reason: Option<String>,
    usage: Option<Counted>,
}

/// A block, whole or at its beginning; what is neither text nor a call has none of these.
#[derive(Debug, Deserialize)]
struct Block {
    text: Option<String>,
    id: Option<String>,
    name: Option<String>,
    /// Empty at the beginning of a call.
    input: Option<Map<String, Value>>,
}

/// A piece of a block.
#[derive(Debug, Deserialize)]
struct Delta {
    text: Option<String>,
    partial_json: Option<String>,
}

impl Block {
    /// The call that it is or begins, if it is one.
    fn call(self, place: u32) -> Option<CallPiece> {
        let input = self.input?;
        let arguments = (!input.is_empty()).then(|| Value::Object(input).to_string());
        Some(CallPiece { place, id: self.id, name: self.name, arguments })
    }
}

#[derive(Debug, Deserialize)]
struct Ending {
    stop_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Counted {
    /// Tokens that were not cached.
    input_tokens: Option<u32>,
    cache_read_input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

/// What an event says, or a whole answer.
///
/// # Errors
/// [`Fault::ProtocolError`] for what can't be read, [`Fault::Crashed`] for an error in the middle,
/// [`Fault::Rejected`] for a forbidden answer.
pub(super) fn parse(data: &str) -> Result<News, Fault> {
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    match event {
        Event::MessageStart { message } => news(None, None, message.usage),
        Event::ContentBlockStart { index, content_block } => {
            let text = content_block.text.clone();
            Ok(News {
                text,
                calls: content_block.call(index).into_iter().collect(),
                ..News::default()
            })
        }
        Event::ContentBlockDelta { index, delta: Delta { text, partial_json } } => {
            let arguments =
                |text| CallPiece { place: index, arguments: Some(text), ..CallPiece::default() };
            let calls = partial_json.map(arguments).into_iter().collect();
            Ok(News { text, calls, ..News::default() })
        }
        Event::MessageDelta { delta, usage } => news(None, delta.stop_reason, usage),
        Event::MessageStop => Ok(News { is_last: true, ..News::default() }),
        Event::Message(message) => {
            let text = message.content.iter().filter_map(|block| block.text.as_deref()).collect();
            let calls = (0..).zip(message.content).filter_map(|(n, block)| block.call(n)).collect();
            Ok(News { calls, ..news(Some(text), message.stop_reason, message.usage)? })
        }
        Event::Error { error } => Err(gave_up(error["message"].as_str())),
        Event::Other => Ok(News::default()),
    }
}

fn news(
    text: Option<String>,
    reason: Option<String>,
    counted: Option<Counted>,
) -> Result<News, Fault> {
    let counted = counted.unwrap_or_default();
    let cached = counted.cache_read_input_tokens.unwrap_or(0);
    let written = counted.cache_creation_input_tokens.unwrap_or(0);
    Ok(News {
        text,
        finish: reason.map(|reason| finish(&reason)).transpose()?,
        prompt_tokens: counted
            .input_tokens
            .map(|tokens| tokens.saturating_add(cached).saturating_add(written)),
        cached_tokens: counted.cache_read_input_tokens,
        completion_tokens: counted.output_tokens,
        ..News::default()
    })
}

fn finish(reason: &str) -> Result<Finish, Fault> {
    match reason {
        "end_turn" | "stop_sequence" => Ok(Finish::Stop),
        "max_tokens" | "model_context_window_exceeded" => Ok(Finish::Length),
        "tool_use" => Ok(Finish::ToolCalls),
        "refusal" => Err(forbidden()),
        other => Err(Fault::ProtocolError(format!("it ended with {other:?}"))),
    }
}
