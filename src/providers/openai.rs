//! `OpenAI`'s Chat Completions API: requests, and the events of an answer.
//!
//! Source: the API reference of Chat Completions, with `stream` and `stream_options`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{AnswerDelta, CallDelta, forbidden, gave_up, unreadable};
use super::unsupported_format;
use crate::catalog::provider::Provider;
use crate::model::generate::{Fault, Finish, Logprob, TokenLogprob};
use crate::request::format::Format;
use crate::request::job::{Job, Message};
use crate::request::tools::{Tool, ToolCall, ToolChoice};

/// Data of the last event of a stream.
const DONE: &str = "[DONE]";

/// Builds the body of a request.
///
/// # Errors
/// [`Fault::Rejected`] for a format that this protocol lacks.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let sampling = &job.sampling;
    let tools = job.tools.as_deref();
    let mut body = json!({
        "model": entry.model,
        "messages": job.messages.iter().map(message).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": entry.most_tokens(sampling.max_tokens),
    });
    let options = [
        ("temperature", sampling.temperature.map(|t| json!(t))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("seed", sampling.seed.map(|seed| json!(seed))),
        ("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
        ("response_format", response_format(&job.format)?),
        ("tools", tools.map(|tools| tools.offered.iter().map(tool).collect())),
        ("tool_choice", tools.map(|tools| choice(&tools.choice))),
        ("parallel_tool_calls", tools.filter(|tools| !tools.parallel).map(|_| json!(false))),
        ("logprobs", sampling.logprobs.map(|_| json!(true))),
        ("top_logprobs", sampling.logprobs.filter(|n| *n > 0).map(|n| json!(n))),
    ];
    for (name, option) in options {
        if let Some(value) = option {
            body[name] = value;
        }
    }
    Ok(body)
}

fn message(message: &Message) -> Value {
    let mut body = json!({"role": message.role, "content": message.content});
    if let Some(id) = &message.tool_call_id {
        body["tool_call_id"] = json!(id);
    }
    if !message.tool_calls.is_empty() {
        let call = |call: &ToolCall| {
            let function = json!({"name": call.name, "arguments": call.text()});
            json!({"id": call.id, "type": "function", "function": function})
        };
        body["tool_calls"] = message.tool_calls.iter().map(call).collect();
        if message.content.is_empty() {
            body["content"] = Value::Null;
        }
    }
    body
}

fn tool(tool: &Tool) -> Value {
    let mut function = json!({"name": tool.name, "parameters": tool.input_schema});
    if let Some(description) = &tool.description {
        function["description"] = json!(description);
    }
    json!({"type": "function", "function": function})
}

fn choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => json!("auto"),
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({"type": "function", "function": name}),
    }
}

fn response_format(format: &Format) -> Result<Option<Value>, Fault> {
    Ok(match format {
        Format::Text => None,
        Format::Json => Some(json!({"type": "json_object"})),
        Format::Schema(schema) => Some(json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": true, "schema": schema},
        })),
        Format::Label(_) | Format::Embedding => return Err(unsupported_format()),
    })
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<TokenCounts>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    /// A part of the message in a stream, the complete message otherwise.
    #[serde(alias = "message", default)]
    delta: Delta,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<Token>>,
}

/// A token with its log-probability.
#[derive(Debug, Deserialize)]
struct Token {
    token: String,
    logprob: f32,
    /// Left out by some providers.
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<Token>,
}

impl Token {
    fn without_top(self) -> Logprob {
        let bytes = self.bytes.unwrap_or_else(|| self.token.as_bytes().to_vec());
        Logprob { token: self.token, bytes, logprob: self.logprob }
    }

    fn with_top(mut self) -> TokenLogprob {
        let top = std::mem::take(&mut self.top_logprobs);
        let top_logprobs = top.into_iter().map(Token::without_top).collect();
        TokenLogprob { token: self.without_top(), allowed_logprob: None, top_logprobs }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CalledTool>>,
}

/// A tool call, or a part of one.
#[derive(Debug, Deserialize)]
struct CalledTool {
    /// Absent in buffered answers.
    index: Option<u32>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl CalledTool {
    fn delta((n, call): (usize, CalledTool)) -> CallDelta {
        let Function { name, arguments } = call.function.unwrap_or_default();
        let index = call.index.unwrap_or_else(|| u32::try_from(n).unwrap_or(u32::MAX));
        CallDelta { index, id: call.id, name, arguments }
    }
}

#[derive(Debug, Deserialize)]
struct TokenCounts {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

/// Parses an event, or a buffered answer.
///
/// # Errors
/// [`Fault::ProtocolError`] for an unknown format, [`Fault::Crashed`] for an error event,
/// [`Fault::Rejected`] for a filtered answer.
pub(super) fn parse(data: &str) -> Result<AnswerDelta, Fault> {
    if data.trim() == DONE {
        return Ok(AnswerDelta { is_last: true, ..AnswerDelta::default() });
    }
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    if let Some(error) = event.error {
        return Err(gave_up(error["message"].as_str()));
    }
    let choice = event.choices.into_iter().next();
    let (delta, reason, logprobs) = choice.map_or((Delta::default(), None, None), |choice| {
        (choice.delta, choice.finish_reason, choice.logprobs)
    });
    let calls = delta.tool_calls.unwrap_or_default();
    let tokens = logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
    let counts = event.usage.as_ref();
    Ok(AnswerDelta {
        text: delta.content.or(delta.refusal),
        calls: calls.into_iter().enumerate().map(CalledTool::delta).collect(),
        finish: reason.map(|reason| finish(&reason)).transpose()?,
        prompt_tokens: counts.and_then(|counts| counts.prompt_tokens),
        cached_tokens: counts.and_then(|c| c.prompt_tokens_details.as_ref()?.cached_tokens),
        completion_tokens: counts.and_then(|counts| counts.completion_tokens),
        logprobs: tokens.into_iter().map(Token::with_top).collect(),
        is_last: false,
    })
}

fn finish(reason: &str) -> Result<Finish, Fault> {
    match reason {
        "stop" => Ok(Finish::Stop),
        "length" => Ok(Finish::Length),
        "tool_calls" | "function_call" => Ok(Finish::ToolCalls),
        "content_filter" => Err(forbidden()),
        other => Err(Fault::ProtocolError(format!("the answer ended with {other:?}"))),
    }
}
