//! `OpenAI`'s Chat Completions API: requests, and the events of an answer.
//!
//! Source: the API reference of Chat Completions, with `stream` and `stream_options`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{AnswerDelta, gave_up, unreadable};
use super::calls::CallDelta;
use super::finish::finish_of;
use super::{content, reason, unsupported_format};
use crate::catalog::provider::Provider;
use crate::model::generate::{Fault, Logprob, TokenLogprob};
use crate::request::format::Format;
use crate::request::job::{Job, Message};
use crate::request::tools::{Tool, ToolCall, ToolChoice};

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
    });
    let options = [
        (entry.max_tokens_field.name(), Some(json!(entry.most_tokens(sampling.max_tokens)))),
        ("temperature", sampling.temperature.map(|t| json!(t))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("seed", sampling.seed.map(|seed| json!(seed))),
        ("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
        ("response_format", response_format(&job.format, entry.strict)?),
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

fn response_format(format: &Format, strict: bool) -> Result<Option<Value>, Fault> {
    Ok(match format {
        Format::Text => None,
        Format::Json => Some(json!({"type": "json_object"})),
        Format::Schema(schema) => {
            let mut named = json!({"name": "answer", "schema": schema});
            if strict {
                named["strict"] = json!(true);
            }
            Some(json!({"type": "json_schema", "json_schema": named}))
        }
        Format::Label(_) | Format::Embedding => return Err(unsupported_format()),
    })
}

#[derive(Debug, Deserialize)]
struct Event {
    choices: Option<Vec<Choice>>,
    usage: Option<TokenCounts>,
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct Choice {
    index: Option<u32>,
    /// A part of the message, in a stream.
    delta: Option<Delta>,
    /// The message of a buffered answer.
    message: Option<Delta>,
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
    #[serde(default, deserialize_with = "content::text")]
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CalledTool>>,
}

/// A tool call, or a part of one.
#[derive(Debug, Deserialize)]
struct CalledTool {
    /// Absent in buffered answers, and with some providers.
    index: Option<u32>,
    #[serde(default, deserialize_with = "content::not_empty")]
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
struct Function {
    #[serde(default, deserialize_with = "content::not_empty")]
    name: Option<String>,
    #[serde(default, deserialize_with = "content::arguments")]
    arguments: Option<String>,
}

impl CalledTool {
    fn delta(self) -> CallDelta {
        let Function { name, arguments } = self.function.unwrap_or_default();
        CallDelta { index: self.index, id: self.id, name, arguments }
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
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    if let Some(why) = event.error.as_ref().and_then(reason::of) {
        return Err(gave_up(Some(&why)));
    }
    // further choices are not asked for
    let mut choices = event.choices.unwrap_or_default().into_iter();
    let choice = choices.find(|choice| choice.index.unwrap_or(0) == 0).unwrap_or_default();
    let is_buffered = choice.delta.is_none();
    let delta = choice.delta.or(choice.message).unwrap_or_default();
    let mut calls: Vec<CallDelta> =
        delta.tool_calls.into_iter().flatten().map(CalledTool::delta).collect();
    if is_buffered {
        // each is a call of its own
        for (n, call) in (0..).zip(&mut calls) {
            call.index = Some(n);
        }
    }
    let tokens = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
    let counts = event.usage.as_ref();
    Ok(AnswerDelta {
        text: delta.content.or(delta.refusal),
        calls,
        finish: choice.finish_reason.map_or(Ok(None), |reason| finish_of(&reason))?,
        prompt_tokens: counts.and_then(|counts| counts.prompt_tokens),
        cached_tokens: counts.and_then(|c| c.prompt_tokens_details.as_ref()?.cached_tokens),
        completion_tokens: counts.and_then(|counts| counts.completion_tokens),
        logprobs: tokens.into_iter().map(Token::with_top).collect(),
        is_last: false,
    })
}
