//! `OpenAI`'s embeddings, for its official clients, unchanged.
//!
//! The format is that of the API reference's "Create embeddings".

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::HttpInterface;
use super::body::{JsonBody, RefusedBody};
use super::chat::{ANY_MODEL, MetadataOptions};
use super::completion::PilotlightFields;
use super::errors::not_ok;
use super::neutral;
use crate::ingress::answers;
use crate::ingress::answers::ReplyOrigin;
use crate::request::client::Client;
use crate::request::format::Format;
use crate::request::job::{Message, Role};
use crate::request::numbers::whole;
use crate::request::refusal::{Code, Refusal};
use crate::strategy;
use crate::wire::{Ask, AskFormat, Reply, Status, read};

#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingsRequest {
    model: String,
    input: Input,
    encoding_format: Option<Encoding>,
    metadata: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "whole")]
    dimensions: Option<u32>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The fields of [`EmbeddingsRequest`].
const FIELDS: [&str; 5] = ["model", "input", "encoding_format", "metadata", "dimensions"];

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Input {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    #[default]
    Float,
    Base64,
}

impl EmbeddingsRequest {
    pub(super) fn ask(self) -> Result<Ask, Refusal> {
        neutral::check(&self.others, &FIELDS)?;
        if self.dimensions.is_some() {
            let message = "is not supported; omit it";
            return Err(Refusal::field(Code::Invalid, "dimensions", message));
        }
        let options = MetadataOptions::read(self.metadata)?;
        let texts = match self.input {
            Input::One(text) => vec![text],
            Input::Many(texts) => texts,
        };
        let message = |content| Message::new(Role::User, content);
        let model = Some(self.model).filter(|name| !ANY_MODEL.contains(&name.as_str()));
        Ok(Ask {
            messages: Some(texts.into_iter().map(message).collect()),
            format: Some(AskFormat::Embedding),
            model,
            ..options.ask()?
        })
    }
}

/// `POST /v1/embeddings`
pub(super) async fn embed(
    State(interface): State<Arc<HttpInterface>>,
    Extension(client): Extension<Client>,
    JsonBody(body): JsonBody,
) -> Response {
    let started = async {
        let request: EmbeddingsRequest = read(&body?)?;
        let encoding = request.encoding_format.unwrap_or_default();
        let job = request.ask()?.check(&client, &interface.dispatch.catalog())?;
        let id = job.key.clone();
        let origin = ReplyOrigin::of("http", &job);
        let answer = strategy::submit(&interface.dispatch, job).await?;
        Ok::<_, RefusedBody>((answer, origin, id, encoding))
    };
    let (answer, origin, id, encoding) = match started.await {
        Ok(started) => started,
        Err(refused) => {
            let reply = Reply::refused(None, &refused.refusal);
            answers::replied(&interface.metrics, &ReplyOrigin::unread("http", &client.app), &reply);
            return refused.into_response();
        }
    };
    let (text, end) = answer.collect().await;
    let reply = answers::reply(id, &Format::Embedding, text, end);
    answers::replied(&interface.metrics, &origin, &reply);
    if reply.status != Status::Ok {
        return not_ok(&reply);
    }
    let vectors: Vec<Vec<f32>> =
        reply.json.clone().and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = match encoding {
            Encoding::Float => json!(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::from(BASE64_STANDARD.encode(bytes))
            }
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let tokens = reply.usage.map_or(0, |usage| usage.prompt_tokens);
    Json(json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": reply.source.as_ref().map_or("", |source| source.model.as_str()),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "pilotlight": PilotlightFields::of(&reply),
    }))
    .into_response()
}
