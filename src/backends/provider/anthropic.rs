//! Anthropic's messages: what is asked, and what each event says.
//!
//! Source: the API reference of messages, with `stream`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{News, forbidden, gave_up, unreadable};
use super::no_words;
use crate::generate::{Fault, Finish};
use crate::prompt::{Format, Job, Role};
use crate::registry::provider::Provider;

/// The version of the protocol, which every request names.
pub(super) const VERSION: &str = "2023-06-01";
/// The highest temperature there.
const TEMPERATURE_MAX: f32 = 1.0;

/// The body of a request. What the system says goes beside the conversation.
///
/// # Errors
/// [`Fault::Unfit`] for what this protocol can't be asked.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    if job.format != Format::Text {
        return Err(no_words());
    }
    let sampling = &job.sampling;
    let (rules, talk): (Vec<_>, Vec<_>) =
        job.messages.iter().partition(|message| message.role == Role::System);
    let rules: Vec<&str> = rules.iter().map(|message| message.content.as_str()).collect();
    let mut body = json!({
        "model": entry.model,
        "messages": talk,
        "stream": true,
        "max_tokens": entry.most_tokens(sampling.max_tokens),
    });
    let wishes = [
        ("system", (!rules.is_empty()).then(|| json!(rules.join("\n\n")))),
        ("temperature", sampling.temperature.map(|t| json!(t.min(TEMPERATURE_MAX)))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("top_k", sampling.top_k.filter(|k| *k > 0).map(|k| json!(k))),
        ("stop_sequences", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
    ];
    for (name, wish) in wishes {
        if let Some(value) = wish {
            body[name] = value;
        }
    }
    Ok(body)
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Message,
    },
    ContentBlockDelta {
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
    /// The beginning and end of blocks, signs of life, and what is added later.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Vec<Delta>,
    stop_reason: Option<String>,
    usage: Option<Counted>,
}

/// A piece of a block, or a whole one; blocks that are no text have none.
#[derive(Debug, Deserialize)]
struct Delta {
    text: Option<String>,
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
/// [`Fault::Broken`] for what can't be read, [`Fault::Crashed`] for an error in the middle,
/// [`Fault::Unfit`] for a forbidden answer.
pub(super) fn parse(data: &str) -> Result<News, Fault> {
    let event: Event = serde_json::from_str(data).map_err(|e| unreadable(&e))?;
    match event {
        Event::MessageStart { message } => news(None, None, message.usage),
        Event::ContentBlockDelta { delta } => news(delta.text, None, None),
        Event::MessageDelta { delta, usage } => news(None, delta.stop_reason, usage),
        Event::MessageStop => Ok(News { is_last: true, ..News::default() }),
        Event::Message(message) => {
            let text = message.content.into_iter().filter_map(|block| block.text).collect();
            news(Some(text), message.stop_reason, message.usage)
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
        "refusal" => Err(forbidden()),
        other => Err(Fault::Broken(format!("it ended with {other:?}"))),
    }
}
