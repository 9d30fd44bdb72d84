//! `OpenAI`'s chat completions: what is asked, and what each event says.
//!
//! Source: the API reference of chat completions, with `stream` and `stream_options`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{CallPiece, News, forbidden, gave_up, unreadable};
use super::no_words;
use crate::catalog::provider::Provider;
use crate::model::generate::{Fault, Finish, Logprob, TokenLogprob};
use crate::request::format::Format;
use crate::request::job::{Job, Message};
use crate::request::tools::{Tool, ToolCall, ToolChoice};

/// The last event of a stream.
const DONE: &str = "[DONE]";

/// The body of a request.
///
/// # Errors
/// [`Fault::Rejected`] for what this protocol can't be asked.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let sampling = &job.sampling;
    let tools = job.tools.as_deref();
    let mut body = json!({
        "model": entry.model,
        "messages": job.messages.iter().map(turn).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": entry.most_tokens(sampling.max_tokens),
    });
    let wishes = [
        ("temperature", sampling.temperature.map(|t| json!(t))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("seed", sampling.seed.map(|seed| json!(seed))),
        ("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
        ("response_format", shape(&job.format)?),
        ("tools", tools.map(|tools| tools.offered.iter().map(tool).collect())),
        ("tool_choice", tools.map(|tools| choice(&tools.choice))),
        ("parallel_tool_calls", tools.filter(|tools| !tools.parallel).map(|_| json!(false))),
        ("logprobs", sampling.logprobs.map(|_| json!(true))),
        ("top_logprobs", sampling.logprobs.filter(|n| *n > 0).map(|n| json!(n))),
    ];
    for (name, wish) in wishes {
        if let Some(value) = wish {
            body[name] = value;
        }
    }
    Ok(body)
}

fn turn(message: &Message) -> Value {
    let mut turn = json!({"role": message.role, "content": message.content});
    if let Some(id) = &message.tool_call_id {
        turn["tool_call_id"] = json!(id);
    }
    if !message.tool_calls.is_empty() {
        let call = |call: &ToolCall| {
            let function = json!({"name": call.name, "arguments": call.text()});
            json!({"id": call.id, "type": "function", "function": function})
        };
        turn["tool_calls"] = message.tool_calls.iter().map(call).collect();
        if message.content.is_empty() {
            turn["content"] = Value::Null;
        }
    }
    turn
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

fn shape(format: &Format) -> Result<Option<Value>, Fault> {
    Ok(match format {
        Format::Text => None,
        Format::Json => Some(json!({"type": "json_object"})),
        Format::Schema(schema) => Some(json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": true, "schema": schema.as_ref()},
        })),
        Format::Label(_) | Format::Embedding => return Err(no_words()),
    })
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Counted>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    /// A piece in a stream, all of it else.
    #[serde(alias = "message", default)]
    delta: Delta,
    finish_reason: Option<String>,
    logprobs: Option<Likely>,
}

#[derive(Debug, Deserialize)]
struct Likely {
    content: Option<Vec<Token>>,
}

/// A token and how likely it was.
#[derive(Debug, Deserialize)]
struct Token {
    token: String,
    logprob: f32,
    /// Some leave it out.
    bytes: Option<Vec<u8>>,
    #[serde(default)]
    top_logprobs: Vec<Token>,
}

impl Token {
    fn alone(self) -> Logprob {
        let bytes = self.bytes.unwrap_or_else(|| self.token.as_bytes().to_vec());
        Logprob { token: self.token, bytes, logprob: self.logprob }
    }

    fn among_others(mut self) -> TokenLogprob {
        let others = std::mem::take(&mut self.top_logprobs);
        let top_logprobs = others.into_iter().map(Token::alone).collect();
        TokenLogprob { token: self.alone(), allowed_logprob: None, top_logprobs }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<Called>>,
}

/// A call, or a piece of one.
#[derive(Debug, Deserialize)]
struct Called {
    /// Whole answers have none.
    index: Option<u32>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Debug, Default, Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

impl Called {
    fn piece((n, called): (usize, Called)) -> CallPiece {
        let Function { name, arguments } = called.function.unwrap_or_default();
        let place = called.index.unwrap_or_else(|| u32::try_from(n).unwrap_or(u32::MAX));
        CallPiece { place, id: called.id, name, arguments }
    }
}

#[derive(Debug, Deserialize)]
struct Counted {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

/// What an event says, or a whole answer.
///
/// # Errors
/// [`Fault::ProtocolError`] for what can't be read, [`Fault::Crashed`] for an error in the middle,
/// [`Fault::Rejected`] for a forbidden answer.
pub(super) fn parse(data: &str) -> Result<News, Fault> {
    if data.trim() == DONE {
        return Ok(News { is_last: true, ..News::default() });
    }
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    if let Some(error) = event.error {
        return Err(gave_up(error["message"].as_str()));
    }
    let choice = event.choices.into_iter().next();
    let (delta, reason, likely) = choice.map_or((Delta::default(), None, None), |choice| {
        (choice.delta, choice.finish_reason, choice.logprobs)
    });
    let called = delta.tool_calls.unwrap_or_default();
    let tokens = likely.and_then(|likely| likely.content).unwrap_or_default();
    let counted = event.usage.as_ref();
    Ok(News {
        text: delta.content.or(delta.refusal),
        calls: called.into_iter().enumerate().map(Called::piece).collect(),
        finish: reason.map(|reason| finish(&reason)).transpose()?,
        prompt_tokens: counted.and_then(|counted| counted.prompt_tokens),
        cached_tokens: counted.and_then(|c| c.prompt_tokens_details.as_ref()?.cached_tokens),
        completion_tokens: counted.and_then(|counted| counted.completion_tokens),
        logprobs: tokens.into_iter().map(Token::among_others).collect(),
        is_last: false,
    })
}

fn finish(reason: &str) -> Result<Finish, Fault> {
    match reason {
        "stop" => Ok(Finish::Stop),
        "length" => Ok(Finish::Length),
        "tool_calls" | "function_call" => Ok(Finish::ToolCalls),
        "content_filter" => Err(forbidden()),
        other => Err(Fault::ProtocolError(format!("it ended with {other:?}"))),
    }
}
