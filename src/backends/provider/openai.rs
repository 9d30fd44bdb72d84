//! `OpenAI`'s chat completions: what is asked, and the answer piece by piece.
//!
//! Source: the API reference of chat completions, with `stream` and `stream_options`.

use std::time::Instant;

use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::stream::Events;
use super::{fault_of_line, now};
use crate::generate::{Fault, Finish, Out, Usage};
use crate::limits::{ANSWER_BYTES_MAX, PROVIDER_BYTES_MAX};
use crate::prompt::{Code, Format, Job, Refusal};
use crate::registry::provider::Provider;

/// The last event of a stream.
const DONE: &str = "[DONE]";

/// The body of a request.
///
/// # Errors
/// [`Fault::Unfit`] for what this protocol can't be asked.
pub(super) fn request(job: &Job, entry: &Provider) -> Result<Value, Fault> {
    let sampling = &job.sampling;
    let most = sampling.max_tokens.unwrap_or(entry.max_output_tokens);
    let mut body = json!({
        "model": entry.model,
        "messages": job.messages,
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": most.min(entry.max_output_tokens),
    });
    let wishes = [
        ("temperature", sampling.temperature.map(|t| json!(t))),
        ("top_p", sampling.top_p.map(|p| json!(p))),
        ("seed", sampling.seed.map(|seed| json!(seed))),
        ("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop))),
        ("response_format", shape(&job.format)?),
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
        Format::Label(_) | Format::Embedding => {
            let message = "this model writes text; labels and vectors are not asked of it";
            return Err(Fault::Unfit(Refusal::field(Code::Incapable, "task", message)));
        }
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
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Counted {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: u32,
}

/// An answer as it comes in.
struct Reader<'o> {
    out: &'o mut Out,
    asked: Instant,
    first: Option<Instant>,
    text: String,
    keeps: bool,
    bytes: usize,
    pieces: u32,
    finish: Option<Finish>,
    counted: Option<Counted>,
}

/// Writes the answer piece by piece.
///
/// # Errors
/// [`Fault::Broken`] if it is not what the protocol says, or not whole; see the table of the room.
pub(super) async fn answer(response: Response, job: &Job, out: &mut Out) -> Result<Usage, Fault> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let mut reader = Reader {
        out,
        asked: now(),
        first: None,
        text: String::new(),
        keeps: !matches!(job.format, Format::Text),
        bytes: 0,
        pieces: 0,
        finish: None,
        counted: None,
    };
    match kind.as_str() {
        "text/event-stream" => reader.read(Events::of(response)).await?,
        // some answer whole, whatever they are asked
        "application/json" => {
            let body = whole(response).await?;
            reader.take(&body).await?;
        }
        other => return Err(Fault::Broken(format!("its answer is of the kind {other:?}"))),
    }
    reader.end()
}

/// A body that comes at once.
async fn whole(mut response: Response) -> Result<String, Fault> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|e| fault_of_line(&e))? {
        body.extend_from_slice(&part);
        if body.len() > PROVIDER_BYTES_MAX {
            let why = format!("its answer is longer than {PROVIDER_BYTES_MAX} bytes");
            return Err(Fault::Broken(why));
        }
    }
    String::from_utf8(body).map_err(|_| Fault::Broken("its answer is no UTF-8".to_owned()))
}

impl Reader<'_> {
    async fn read(&mut self, mut events: Events) -> Result<(), Fault> {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.out.gone() => return Err(Fault::Cancelled),
            };
            match event {
                Some(data) => {
                    let data = data?;
                    if data.trim() == DONE {
                        return Ok(());
                    }
                    self.take(&data).await?;
                }
                // not all say that they are done
                None if self.finish.is_some() => return Ok(()),
                None => return Err(Fault::Crashed("its answer ended early".to_owned())),
            }
        }
    }

    /// Takes one event, or the whole answer.
    async fn take(&mut self, data: &str) -> Result<(), Fault> {
        let event: Event = serde_json::from_str(data)
            .map_err(|e| Fault::Broken(format!("what it sends can't be read: {e}")))?;
        if let Some(error) = event.error {
            let said = error["message"].as_str().unwrap_or("without a reason");
            return Err(Fault::Crashed(format!("it gave up: {said}")));
        }
        if event.usage.is_some() {
            self.counted = event.usage;
        }
        let Some(choice) = event.choices.into_iter().next() else { return Ok(()) };
        let text = choice.delta.content.or(choice.delta.refusal);
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.write(text).await?;
        } else {
            self.out.alive();
        }
        self.finish = match choice.finish_reason.as_deref() {
            None => self.finish,
            Some("stop") => Some(Finish::Stop),
            Some("length") => Some(Finish::Length),
            Some("content_filter") => {
                let message = "the provider's rules forbid this answer";
                return Err(Fault::Unfit(Refusal::new(Code::Incapable, message)));
            }
            Some(other) => return Err(Fault::Broken(format!("it ended with {other:?}"))),
        };
        Ok(())
    }

    async fn write(&mut self, text: String) -> Result<(), Fault> {
        self.first.get_or_insert_with(now);
        self.bytes += text.len();
        self.pieces += 1;
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Fault::Broken("the answer is longer than it may be".to_owned()));
        }
        if self.keeps {
            self.text.push_str(&text);
        }
        self.out.write(text).await.map_err(|_| Fault::Cancelled)
    }

    fn end(self) -> Result<Usage, Fault> {
        let finish =
            self.finish.ok_or_else(|| Fault::Crashed("its answer ended early".to_owned()))?;
        let is_json = || serde_json::from_str::<serde::de::IgnoredAny>(&self.text).is_ok();
        if self.keeps && finish == Finish::Stop && !is_json() {
            return Err(Fault::Broken("it was asked for JSON and wrote something else".to_owned()));
        }
        // one that does not count is taken to write a token a piece
        let counted = self
            .counted
            .unwrap_or(Counted { completion_tokens: self.pieces, ..Counted::default() });
        let ended = now();
        let first = self.first.unwrap_or(ended);
        Ok(Usage {
            finish,
            prompt_tokens: counted.prompt_tokens,
            cached_tokens: counted.prompt_tokens_details.unwrap_or_default().cached_tokens,
            completion_tokens: counted.completion_tokens,
            chunks: self.out.written(),
            prefill_ms: first.duration_since(self.asked).as_secs_f64() * 1e3,
            decode_ms: ended.duration_since(first).as_secs_f64() * 1e3,
            ..Usage::one_piece("")
        })
    }
}
