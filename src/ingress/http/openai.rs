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
use serde_json::{Value, json};

use super::Door;
use super::chat::{ChatRequest, call_json, in_their_words};
use super::errors::{error_of, not_ok, refused};
use crate::dispatch::{Answer, Seen};
use crate::generate::Finish;
use crate::ingress::answers;
use crate::prompt::{Code, Format, Refusal};
use crate::wire::{Reply, Status, read};

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
    let include_usage = request.includes_usage();
    let model = request.model.clone();
    let job = request.ask()?.check("http", &door.catalog).map_err(in_their_words)?;
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
            "message": said(&reply),
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
    // one step a piece, then one for each event behind the last
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
                        let mut last = endings(&reply, include_usage, chunk).into_iter();
                        last.next().map(|event| (event, Step::Last(last)))
                    }
                },
                Step::Last(mut last) => last.next().map(|event| (event, Step::Last(last))),
            }
        }
    });
    Sse::new(stream.map(Ok::<Event, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

enum Step {
    First(Answer, Value),
    Pieces(Answer, String),
    Last(std::vec::IntoIter<Event>),
}

/// What comes behind the last piece: the calls of tools, the end, the usage, the mark.
fn endings(
    reply: &Reply,
    include_usage: bool,
    chunk: impl Fn(Value, Value, Option<Value>) -> Value,
) -> Vec<Event> {
    let mut last = Vec::new();
    if reply.status == Status::Ok {
        if !reply.tool_calls.is_empty() {
            last.push(event(&chunk(call_pieces(reply), Value::Null, None)));
        }
        last.push(event(&chunk(json!({}), json!(finish_reason(reply)), Some(ours(reply)))));
        if include_usage {
            let mut data = chunk(json!({}), Value::Null, None);
            data["choices"] = json!([]);
            data["usage"] = usage(reply);
            last.push(event(&data));
        }
    } else {
        last.push(event(&error_of(reply)));
    }
    last.push(Event::default().data("[DONE]"));
    last
}

fn event(data: &Value) -> Event {
    Event::default().data(data.to_string())
}

fn logprobs(reply: &Reply) -> Value {
    if reply.logprobs.is_empty() { Value::Null } else { json!({"content": reply.logprobs}) }
}

/// What the model says and calls; a call alone has no text.
fn said(reply: &Reply) -> Value {
    let text = reply.text.as_ref().filter(|text| reply.tool_calls.is_empty() || !text.is_empty());
    let mut said = json!({"role": "assistant", "content": text, "refusal": null});
    if !reply.tool_calls.is_empty() {
        said["tool_calls"] = reply.tool_calls.iter().map(call_json).collect();
    }
    said
}

/// The calls as a stream tells them: each whole, with its place.
fn call_pieces(reply: &Reply) -> Value {
    let piece = |(index, call)| {
        let mut piece = call_json(call);
        piece["index"] = json!(index);
        piece
    };
    json!({"tool_calls": reply.tool_calls.iter().enumerate().map(piece).collect::<Vec<_>>()})
}

fn finish_reason(reply: &Reply) -> &'static str {
    match reply.finish {
        Some(Finish::Length) => "length",
        Some(Finish::ToolCalls) => "tool_calls",
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
