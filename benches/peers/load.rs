//! Requests as an application sends them, over HTTP with streams, and what each took.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::task::JoinSet;

use crate::servers::{Kind, Server};
use crate::support::quantile;
use crate::support::service::ONE_BY_ONE;

/// Deadline of a request, ms: far enough that no answer is refused.
const DEADLINE_MS: u64 = 600_000;

/// An answer with its tokens and durations.
#[derive(Default)]
pub struct Answer {
    pub text: String,
    /// Time to the first text and to the end, ms.
    pub first_ms: f64,
    pub end_ms: f64,
    pub read: f64,
    pub written: f64,
}

impl Answer {
    /// Tokens written a second, after the first.
    pub fn decode(&self) -> f64 {
        (self.written - 1.0) / (self.end_ms - self.first_ms) * 1e3
    }

    /// Tokens read a second.
    pub fn prefill(&self) -> f64 {
        self.read / self.first_ms * 1e3
    }
}

/// The body of a request by its number.
pub type Request = Arc<dyn Fn(usize) -> Value + Send + Sync>;

/// A chat request with these texts of the system and the user.
pub fn chat(system: &str, user: &str, max_tokens: u32) -> Value {
    let messages =
        json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
    chat_of(&messages, max_tokens)
}

/// A chat request with these messages.
pub fn chat_of(messages: &Value, max_tokens: u32) -> Value {
    json!({
        "model": "auto", "max_tokens": max_tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true}, "messages": messages,
    })
}

/// Sends one request, on a connection of its own: llama-server closes one after a few.
pub async fn ask(to: (Kind, String), mut body: Value) -> Answer {
    let (kind, url) = to;
    if kind == Kind::Ours {
        body["metadata"]["app"] = json!("bench");
        body["metadata"]["deadline_ms"] = json!(DEADLINE_MS.to_string());
    }
    let began = Instant::now();
    let response = ONE_BY_ONE.post(url).json(&body).send().await.unwrap();
    let status = response.status();
    assert_eq!(status, 200, "{}: {:?}", kind.name(), response.text().await);
    let mut events = SseStream::from_bytes_stream(response.bytes_stream());
    let mut answer = Answer::default();
    while let Some(event) = events.next().await {
        let data = event.unwrap().data.unwrap_or_default();
        let Ok(chunk) = serde_json::from_str::<Value>(&data) else { continue };
        let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        let ms = began.elapsed().as_secs_f64() * 1e3;
        if !text.is_empty() {
            if answer.text.is_empty() {
                answer.first_ms = ms;
            }
            answer.text += text;
            answer.end_ms = ms;
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            answer.read = usage["prompt_tokens"].as_f64().unwrap();
            answer.written = usage["completion_tokens"].as_f64().unwrap();
        }
    }
    assert!(!answer.text.is_empty(), "{}: no text", kind.name());
    answer
}

/// The answers to some requests, and the time of all together.
pub struct Load {
    pub answers: Vec<Answer>,
    pub took: Duration,
}

impl Load {
    pub fn per_second(&self) -> f64 {
        self.answers.len() as f64 / self.took.as_secs_f64()
    }

    pub fn first_ms(&self, q: f64) -> f64 {
        quantile(&mut self.answers.iter().map(|answer| answer.first_ms).collect::<Vec<_>>(), q)
    }

    pub fn end_ms(&self, q: f64) -> f64 {
        quantile(&mut self.answers.iter().map(|answer| answer.end_ms).collect::<Vec<_>>(), q)
    }
}

/// A number that was not used before.
pub fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Asks `total` requests, so many at once, each with a number of its own.
pub async fn load(server: &Server, at_once: usize, total: usize, request: &Request) -> Load {
    // a client reads the system's certificates, which is no part of a request
    LazyLock::force(&ONE_BY_ONE);
    let began = Instant::now();
    let left = Arc::new(AtomicUsize::new(total));
    let mut clients = JoinSet::new();
    for _ in 0..at_once {
        let (left, request) = (Arc::clone(&left), Arc::clone(request));
        let to = (server.kind, server.url("/v1/chat/completions"));
        clients.spawn(async move {
            let mut answers = Vec::new();
            let take = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                answers.push(ask(to.clone(), request(number())).await);
            }
            answers
        });
    }
    let answers = clients.join_all().await.into_iter().flatten().collect();
    Load { answers, took: began.elapsed() }
}
