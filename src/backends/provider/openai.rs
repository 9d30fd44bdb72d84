//! `OpenAI`'s chat completions: what is asked, and what each event says.
//!
//! Source: the API reference of chat completions, with `stream` and `stream_options`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{News, forbidden, gave_up, unreadable};
use super::no_words;
use crate::generate::{Fault, Finish, Logprob, TokenLogprob};
use crate::prompt::{Format, Job};
use crate::registry::provider::Provider;

/// The last event of a stream.
const DONE: &str = "[DONE]";

/// The body of a request.
///
/// # Errors
/// [`Fault::Unfit`] for what this protocol can't be asked.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let sampling = &job.sampling;
    let mut body = json!({
        "model": entry.model,
        "messages": job.messages,
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
        TokenLogprob { token: self.alone(), top_logprobs }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
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
/// [`Fault::Broken`] for what can't be read, [`Fault::Crashed`] for an error in the middle,
/// [`Fault::Unfit`] for a forbidden answer.
pub(super) fn parse(data: &str) -> Result<News, Fault> {
    if data.trim() == DONE {
        return Ok(News { is_last: true, ..News::default() });
    }
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    if let Some(error) = event.error {
        return Err(gave_up(error["message"].as_str()));
    }
    let choice = event.choices.into_iter().next();
    let (text, reason, likely) = choice.map_or((None, None, None), |choice| {
        (choice.delta.content.or(choice.delta.refusal), choice.finish_reason, choice.logprobs)
    });
    let tokens = likely.and_then(|likely| likely.content).unwrap_or_default();
    let counted = event.usage.as_ref();
    Ok(News {
        text,
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
        "content_filter" => Err(forbidden()),
        other => Err(Fault::Broken(format!("it ended with {other:?}"))),
    }
}
