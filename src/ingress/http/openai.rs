//! `OpenAI`'s chat completions, plain and streamed, so that its official clients work unchanged.
//!
//! The format is that of the API reference's "Create chat completion" and "List models".

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::HttpInterface;
use super::chat::{ChatRequest, in_their_words};
use super::completion::Head;
use super::errors::{error_of, not_ok, refused};
use crate::dispatch::{Answer, BackendStatus};
use crate::ingress::answers;
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};
use crate::strategy;
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
pub(super) async fn complete(State(door): State<Arc<HttpInterface>>, body: Body) -> Response {
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
    head: Head,
}

fn start(door: &HttpInterface, body: &[u8]) -> Result<Started, Refusal> {
    let request: ChatRequest = read(body)?;
    let stream = request.stream;
    let include_usage = request.includes_usage();
    let model = request.model.clone();
    let job = request.ask()?.check("http", &door.catalog).map_err(in_their_words)?;
    let (id, format) = (job.key.clone(), job.format.clone());
    let answer = strategy::submit(&door.dispatch, job)?;
    let head = Head::new(answer.job, model);
    Ok(Started { answer, id, format, stream, include_usage, head })
}

async fn whole(door: Arc<HttpInterface>, started: Started) -> Response {
    let Started { answer, id, format, head, .. } = started;
    let (text, end) = answer.collect().await;
    let reply = answers::reply(id, &format, text, end);
    door.metrics.replied("http", &reply);
    if reply.status != Status::Ok {
        return not_ok(&reply);
    }
    Json(head.whole(&reply)).into_response()
}

fn streamed(door: Arc<HttpInterface>, started: Started) -> Response {
    let Started { answer, id, format, include_usage, head, .. } = started;
    let asked = Arc::new((door, id, format, head));
    // one step a piece, then one for each event behind the last
    let stream = futures::stream::unfold(StreamStep::First(answer), move |step| {
        let asked = Arc::clone(&asked);
        async move {
            let (door, id, format, head) = asked.as_ref();
            match step {
                StreamStep::First(answer) => {
                    Some((event(&head.opening()), StreamStep::Pieces(answer, String::new())))
                }
                StreamStep::Pieces(mut answer, mut text) => match answer.next().await {
                    Some(piece) => {
                        text.push_str(&piece.text);
                        Some((event(&head.piece(&piece.text)), StreamStep::Pieces(answer, text)))
                    }
                    None => {
                        let reply = answers::reply(id.clone(), format, text, answer.end().await);
                        door.metrics.replied("http", &reply);
                        let mut last = endings(head, &reply, include_usage).into_iter();
                        last.next().map(|event| (event, StreamStep::Last(last)))
                    }
                },
                StreamStep::Last(mut last) => {
                    last.next().map(|event| (event, StreamStep::Last(last)))
                }
            }
        }
    });
    Sse::new(stream.map(Ok::<Event, Infallible>)).keep_alive(KeepAlive::default()).into_response()
}

enum StreamStep {
    First(Answer),
    Pieces(Answer, String),
    Last(std::vec::IntoIter<Event>),
}

/// What comes behind the last piece, or the error, and the mark.
fn endings(head: &Head, reply: &Reply, include_usage: bool) -> Vec<Event> {
    let mut last: Vec<Event> = if reply.status == Status::Ok {
        head.endings(reply, include_usage).iter().map(event).collect()
    } else {
        vec![event(&error_of(reply))]
    };
    last.push(Event::default().data("[DONE]"));
    last
}

fn event(data: &impl Serialize) -> Event {
    // texts and numbers are always JSON
    Event::default().data(serde_json::to_string(data).unwrap_or_default())
}

/// `GET /v1/models`
pub(super) async fn models(State(door): State<Arc<HttpInterface>>) -> Json<Value> {
    let profile = |seen: BackendStatus| {
        let context = seen.context?;
        Some(json!({
            "id": context.identification.name,
            "object": "model",
            "created": 0,
            "owned_by": context.identification.provider.clone().unwrap_or_else(|| seen.server.clone()),
            "pilotlight": {"server": seen.server, "where": seen.locality.name(), "context": context},
        }))
    };
    let data: Vec<Value> = door.dispatch.backends().into_iter().filter_map(profile).collect();
    Json(json!({"object": "list", "data": data}))
}
