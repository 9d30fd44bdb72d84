//! `OpenAI`'s chat completions, plain and streamed, for its official clients, unchanged.
//!
//! The format is that of the API reference's "Create chat completion" and "List models".

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::HttpInterface;
use super::body::{JsonBody, RefusedBody};
use super::chat::{ChatRequest, with_api_field};
use super::completion::Head;
use super::errors::{error_of, not_ok};
use crate::dispatch::{Answer, BackendStatus};
use crate::ingress::answers;
use crate::ingress::answers::{CUT_OFF, ReplyOrigin};
use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};
use crate::strategy;
use crate::wire::{Reply, Status, read};

/// `POST /v1/chat/completions`
pub(super) async fn complete(
    State(interface): State<Arc<HttpInterface>>,
    Extension(client): Extension<Client>,
    JsonBody(body): JsonBody,
) -> Response {
    let started = match body {
        Ok(body) => start(&interface, &client, &body).await.map_err(RefusedBody::from),
        Err(refused) => Err(refused),
    };
    match started {
        Err(refused) => {
            let reply = Reply::refused(None, &refused.refusal);
            answers::replied(&interface.metrics, &ReplyOrigin::unread("http", &client.app), &reply);
            refused.into_response()
        }
        Ok(started) if started.stream => streamed(interface, started).into_response(),
        Ok(started) => buffered(interface, started).await,
    }
}

struct Started {
    answer: Answer,
    origin: ReplyOrigin,
    id: Option<String>,
    format: Format,
    stream: bool,
    include_usage: bool,
    head: Head,
}

async fn start(
    interface: &HttpInterface,
    client: &Client,
    body: &[u8],
) -> Result<Started, Refusal> {
    let request: ChatRequest = read(body)?;
    let stream = request.is_streamed();
    let include_usage = request.includes_usage();
    let model = request.model.clone();
    let job =
        request.ask()?.check(client, &interface.dispatch.catalog()).map_err(with_api_field)?;
    let (id, format) = (job.key.clone(), job.format.clone());
    let origin = ReplyOrigin::of("http", &job);
    let answer = strategy::submit(&interface.dispatch, job).await.map_err(with_api_field)?;
    let head = Head::new(answer.job, model);
    Ok(Started { answer, origin, id, format, stream, include_usage, head })
}

async fn buffered(interface: Arc<HttpInterface>, started: Started) -> Response {
    let Started { answer, origin, id, format, head, .. } = started;
    let (text, end) = answer.collect().await;
    let reply = cut_off_is_an_answer(answers::reply(id, &format, text, end));
    answers::replied(&interface.metrics, &origin, &reply);
    if reply.status != Status::Ok {
        return not_ok(&reply);
    }
    Json(head.completion(&reply)).into_response()
}

/// JSON that was cut off by `max_tokens` is an answer for clients of this format, which see its `finish_reason`; the
/// official ones would send a request again whose response is an error of the server.
fn cut_off_is_an_answer(reply: Reply) -> Reply {
    match &reply.error {
        Some(error) if error.code == CUT_OFF => Reply { status: Status::Ok, error: None, ..reply },
        Some(_) | None => reply,
    }
}

fn streamed(interface: Arc<HttpInterface>, started: Started) -> Response {
    let Started { answer, origin, id, format, include_usage, head, .. } = started;
    let shared = Arc::new((interface, origin, id, format, head));
    // one step a chunk, then one for each event after the last
    let stream = futures::stream::unfold(StreamStep::First(answer), move |step| {
        let shared = Arc::clone(&shared);
        async move {
            let (interface, origin, id, format, head) = shared.as_ref();
            match step {
                StreamStep::First(answer) => {
                    Some((event(&head.opening()), StreamStep::Chunks(answer, String::new())))
                }
                StreamStep::Chunks(mut answer, mut text) => match answer.next().await {
                    Some(chunk) => {
                        text.push_str(&chunk.text);
                        Some((event(&head.chunk(&chunk.text)), StreamStep::Chunks(answer, text)))
                    }
                    None => {
                        let reply = answers::reply(id.clone(), format, text, answer.end().await);
                        let reply = cut_off_is_an_answer(reply);
                        answers::replied(&interface.metrics, origin, &reply);
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
    Chunks(Answer, String),
    Last(std::vec::IntoIter<Event>),
}

/// The events after the last chunk: the end of the answer or the error, then `[DONE]`.
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
    // texts and numbers always serialize
    Event::default().data(serde_json::to_string(data).unwrap_or_default())
}

/// `GET /v1/models`
pub(super) async fn models(State(interface): State<Arc<HttpInterface>>) -> Json<Value> {
    let data = interface.dispatch.backends().into_iter().filter_map(listed);
    Json(json!({"object": "list", "data": data.collect::<Vec<Value>>()}))
}

/// `GET /v1/models/{id}`: by the name of the model, or of its server in `mcp.json`.
pub(super) async fn model(
    State(interface): State<Arc<HttpInterface>>,
    Path(id): Path<String>,
) -> Response {
    let all = interface.dispatch.backends();
    let is_asked = |model: &BackendStatus| {
        let name = model.context.as_ref().map(|context| &context.identification.name);
        name == Some(&id) || model.server == id
    };
    match all.iter().find(|model| is_asked(model)).cloned().and_then(listed) {
        Some(found) => Json(found).into_response(),
        None => {
            let names: Vec<_> = all
                .into_iter()
                .filter_map(|model| Some(model.context?.identification.name))
                .collect();
            let message = format!("unknown model {id:?}; models: {}", names.join(", "));
            RefusedBody::from(Refusal::field(Code::Unknown, "model", message)).into_response()
        }
    }
}

/// A model in the list; none if it has not stated itself.
fn listed(backend: BackendStatus) -> Option<Value> {
    let context = backend.context?;
    Some(json!({
        "id": context.identification.name,
        "object": "model",
        "created": 0,
        "owned_by": context.identification.provider.clone().unwrap_or_else(|| backend.server.clone()),
        "pilotlight": {"server": backend.server, "where": backend.locality.name(), "context": context},
    }))
}
