//! `OpenAI`'s chat completions, plain and streamed, so that its official clients work unchanged.
//!
//! The format is that of the API reference's "Create chat completion" and "List models".

use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Door;
use super::errors::{error_of, not_ok, refused};
use crate::dispatch::{Answer, Seen};
use crate::generate::Finish;
use crate::ingress::answers;
use crate::prompt::{Class, Code, Format, Message, Mode, Refusal, Role, Strategy};
use crate::wire::{Ask, AskFormat, Reply, Status, read, read_value};

/// Names that stand for "whichever model fits".
pub(super) const ANY_MODEL: [&str; 2] = ["auto", "pilotlight"];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatRequest {
    model: String,
    messages: Vec<ChatMessage>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<u32>,
    stop: Option<OneOrMany>,
    logprobs: Option<bool>,
    top_logprobs: Option<u8>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    metadata: Option<Map<String, Value>>,
    n: Option<u32>,
    // taken without effect: they say nothing about the answer
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(rename = "store")]
    _store: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: ChatRole,
    content: Content,
    #[serde(rename = "name")]
    _name: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Deserialize)]
struct JsonSchema {
    schema: Value,
}

/// Our own wishes, in `metadata`; other keys there are the caller's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wishes {
    id: Option<String>,
    deadline_ms: Option<Value>,
    class: Option<Class>,
    mode: Option<Mode>,
    task: Option<String>,
    strategy: Option<Strategy>,
}

impl Wishes {
    pub(super) fn read(metadata: Option<Map<String, Value>>) -> Result<Wishes, Refusal> {
        let metadata = Value::Object(metadata.unwrap_or_default());
        read_value(metadata).map_err(|refusal| Refusal {
            field: Some(format!("metadata.{}", refusal.field.unwrap_or_default())),
            ..refusal
        })
    }

    /// A request with these wishes and nothing else.
    pub(super) fn ask(self) -> Result<Ask, Refusal> {
        Ok(Ask {
            id: self.id,
            deadline_ms: self.deadline_ms.as_ref().map(milliseconds).transpose()?,
            class: self.class.or(Some(Class::Interactive)),
            mode: self.mode,
            task: self.task,
            strategy: self.strategy,
            ..Ask::default()
        })
    }
}

impl ChatRequest {
    fn ask(self) -> Result<Ask, Refusal> {
        if self.n.is_some_and(|n| n != 1) {
            let message = "only one choice can be asked for";
            return Err(Refusal::field(Code::Invalid, "n", message));
        }
        if self.stream && self.logprobs == Some(true) {
            let message = "come with a whole answer only; leave stream out";
            return Err(Refusal::field(Code::Invalid, "logprobs", message));
        }
        let wishes = Wishes::read(self.metadata)?;
        let messages = self.messages.into_iter().map(message_of).collect();
        let (prompt, messages) = match &wishes.task {
            // a task has its own template: the text to put there is what the user said last
            Some(_) => (Some(said_last(messages)?), None),
            None => (None, Some(messages)),
        };
        let (format, schema) = match self.response_format {
            None | Some(ResponseFormat::Text) => (None, None),
            Some(ResponseFormat::JsonObject) => (Some(AskFormat::Json), None),
            Some(ResponseFormat::JsonSchema { json_schema }) => (None, Some(json_schema.schema)),
        };
        Ok(Ask {
            prompt,
            messages,
            format,
            schema,
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            logprobs: self.logprobs,
            top_logprobs: self.top_logprobs,
            stop: self.stop.map(|stop| match stop {
                OneOrMany::One(one) => vec![one],
                OneOrMany::Many(many) => many,
            }),
            stream: Some(self.stream),
            model: Some(self.model).filter(|name| !ANY_MODEL.contains(&name.as_str())),
            ..wishes.ask()?
        })
    }
}

fn said_last(messages: Vec<Message>) -> Result<String, Refusal> {
    let last = messages.into_iter().rfind(|message| message.role == Role::User);
    last.map(|message| message.content).ok_or_else(|| {
        let message = "a task needs a message of the user";
        Refusal::field(Code::Invalid, "messages", message)
    })
}

fn message_of(message: ChatMessage) -> Message {
    let role = match message.role {
        ChatRole::System | ChatRole::Developer => Role::System,
        ChatRole::User => Role::User,
        ChatRole::Assistant => Role::Assistant,
    };
    let content = match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => {
            let texts: Vec<String> = parts.into_iter().map(|Part::Text { text }| text).collect();
            texts.join("\n")
        }
    };
    Message { role, content }
}

/// The official clients send metadata as strings.
fn milliseconds(value: &Value) -> Result<u64, Refusal> {
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.ok_or_else(|| {
        let message = format!("{value} is not a whole number of milliseconds");
        Refusal::field(Code::Invalid, "metadata.deadline_ms", message)
    })
}

/// A body as axum has read it.
pub(super) type Body = Result<Bytes, axum::extract::rejection::BytesRejection>;

/// The body, or why it could not be read.
pub(super) fn taken(body: Body) -> Result<Bytes, Refusal> {
    body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let most = crate::limits::REQUEST_BYTES_MAX;
            Refusal::new(Code::TooLarge, format!("the body is larger than {most} bytes"))
        }
        _ => Refusal::new(Code::Malformed, e.body_text()),
    })
}

/// `POST /v1/chat/completions`
pub(super) async fn complete(State(door): State<Door>, body: Body) -> Response {
    let started = taken(body).and_then(|body| start(&door, &body));
    match started {
        Err(refusal) => {
            let reply = Reply::refused(None, &refusal);
            door.metrics.replied("http", &reply);
            refused(&refusal)
        }
        Ok(started) if started.stream => streamed(door, started).into_response(),
        Ok(started) => whole(door, started).await,
    }
}

struct Started {
    answer: Answer,
    id: Option<String>,
    format: Format,
    stream: bool,
    include_usage: bool,
    model: String,
}

fn start(door: &Door, body: &[u8]) -> Result<Started, Refusal> {
    let request: ChatRequest = read(body)?;
    let stream = request.stream;
    let include_usage = request.stream_options.as_ref().is_some_and(|o| o.include_usage);
    let model = request.model.clone();
    let job = request.ask()?.check("http", &door.catalog)?;
    let (id, format) = (job.key.clone(), job.format.clone());
    let answer = door.dispatch.submit(job)?;
    Ok(Started { answer, id, format, stream, include_usage, model })
}

async fn whole(door: Door, started: Started) -> Response {
    let Started { answer, id, format, model, .. } = started;
    let completion = format!("chatcmpl-{}", answer.job.0);
    let (text, end) = answer.collect().await;
    let reply = answers::reply(id, &format, text, end);
    door.metrics.replied("http", &reply);
    if reply.status != Status::Ok {
        return not_ok(&reply);
    }
    let body = json!({
        "id": completion,
        "object": "chat.completion",
        "created": now_s(),
        "model": reply.source.as_ref().map_or(model.as_str(), |s| s.model.as_str()),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": reply.text, "refusal": null},
            "logprobs": logprobs(&reply),
            "finish_reason": finish_reason(&reply),
        }],
        "usage": usage(&reply),
        "pilotlight": ours(&reply),
    });
    Json(body).into_response()
}

fn streamed(door: Door, started: Started) -> Response {
    let Started { answer, id, format, include_usage, model, .. } = started;
    let completion = format!("chatcmpl-{}", answer.job.0);
    let created = now_s();
    let chunk = move |delta: Value, finish: Value, extra: Option<Value>| {
        let mut chunk = json!({
            "id": completion,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        });
        if let Some(extra) = extra {
            chunk["pilotlight"] = extra;
        }
        chunk
    };
    // one step a piece, then the end, then the usage, then the mark
    let first = chunk(json!({"role": "assistant", "content": ""}), Value::Null, None);
    let stream = futures::stream::unfold(Step::First(answer, first), move |step| {
        let (door, id, format, chunk) = (door.clone(), id.clone(), format.clone(), chunk.clone());
        async move {
            match step {
                Step::First(answer, first) => {
                    Some((event(&first), Step::Pieces(answer, String::new())))
                }
                Step::Pieces(mut answer, mut text) => match answer.next().await {
                    Some(piece) => {
                        text.push_str(&piece.text);
                        let data = chunk(json!({"content": piece.text}), Value::Null, None);
                        Some((event(&data), Step::Pieces(answer, text)))
                    }
                    None => {
                        let reply = answers::reply(id, &format, text, answer.end().await);
                        door.metrics.replied("http", &reply);
                        let data = if reply.status == Status::Ok {
                            chunk(json!({}), json!(finish_reason(&reply)), Some(ours(&reply)))
                        } else {
                            error_of(&reply)
                        };
                        let ok = reply.status == Status::Ok;
                        let next = if include_usage && ok {
                            Step::Usage(Box::new(reply))
                        } else {
                            Step::Mark
                        };
                        Some((event(&data), next))
                    }
                },
                Step::Usage(reply) => {
                    let mut data = chunk(json!({}), Value::Null, None);
                    data["choices"] = json!([]);
                    data["usage"] = usage(&reply);
                    Some((event(&data), Step::Mark))
                }
                Step::Mark => Some((Event::default().data("[DONE]"), Step::Over)),
                Step::Over => None,
            }
        }
    });
    Sse::new(stream.map(Ok::<Event, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

enum Step {
    First(Answer, Value),
    Pieces(Answer, String),
    Usage(Box<Reply>),
    Mark,
    Over,
}

fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}

fn logprobs(reply: &Reply) -> Value {
    if reply.logprobs.is_empty() { Value::Null } else { json!({"content": reply.logprobs}) }
}

fn finish_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Some(Finish::Length) => "length",
        Some(Finish::Stop) | None => "stop",
    }
}

fn usage(reply: &Reply) -> Value {
    let Some(usage) = reply.usage else {
        return Value::Null;
    };
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
}

pub(super) fn ours(reply: &Reply) -> Value {
    let mut ours =
        json!({"source": reply.source, "decision": reply.decision, "timing": reply.timing});
    if let Some(confidence) = reply.confidence {
        ours["confidence"] = json!(confidence);
        ours["scores"] = json!(reply.scores);
    }
    ours
}

/// `GET /v1/models`
pub(super) async fn models(State(door): State<Door>) -> Json<Value> {
    let card = |seen: Seen| {
        let context = seen.context?;
        Some(json!({
            "id": context.identification.name,
            "object": "model",
            "created": 0,
            "owned_by": context.identification.provider.clone().unwrap_or_else(|| seen.server.clone()),
            "pilotlight": {"server": seen.server, "where": seen.reach.name(), "context": context},
        }))
    };
    let data: Vec<Value> = door.dispatch.backends().into_iter().filter_map(card).collect();
    Json(json!({"object": "list", "data": data}))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
