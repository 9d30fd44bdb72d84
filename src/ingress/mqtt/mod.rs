//! The MQTT interface: requests arrive on one topic, each has exactly one reply on another.
//!
//! A request is acknowledged to the broker after the broker has acknowledged its reply: if the power
//! fails in between, the broker delivers the request again.

pub mod health;
mod replay;
pub mod topics;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::replay::{Key, ReplayCache, ReplayLookup};
use self::topics::{DeviceTopics, RequestTopic};
use super::answers;
use super::answers::ReplyOrigin;
use crate::catalog::catalog::Catalog;
use crate::clock;
use crate::dispatch::{Answer, Dispatch};
use crate::limits::{DRAIN_MAX, REQUEST_BYTES_MAX};
use crate::metrics::Metrics;
use crate::mqtt::{AckGuard, Bus, Incoming, Outgoing, Subscription};
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::strategy;
use crate::wire::{Ask, Reply, Status, read};

/// The interface and what it needs.
pub struct MqttInterface {
    /// Publishes the replies.
    pub bus: Bus,
    /// Takes the jobs.
    pub dispatch: Dispatch,
    /// Tasks and defaults for requests.
    pub catalog: std::sync::Arc<Catalog>,
    /// The device's topics.
    pub topics: DeviceTopics,
    /// Counts the replies.
    pub metrics: Metrics,
}

/// The origin of a request, the topics of its answer, and its correlation data.
#[derive(Debug, Clone)]
struct ReplyContext {
    origin: ReplyOrigin,
    topic: String,
    stream: Option<String>,
    correlation: Option<Bytes>,
}

/// The two steps of a request's task.
enum AnswerStep {
    /// The reply is known and not yet published. It is stored first: its client may have it, and
    /// repeat the request, before the next message is read.
    Answered(Box<AnsweredRequest>),
    /// The reply was published and the requests are acknowledged.
    Published,
}

struct AnsweredRequest {
    key: Option<Key>,
    /// The reply, if it is to be stored.
    keep: Option<Bytes>,
    reply: Bytes,
    back: ReplyContext,
    ack: AckGuard,
}

impl MqttInterface {
    /// Serves requests until `stop`, then until all accepted ones are answered, at most for
    /// [`DRAIN_MAX`]. Requests that were not read stay at the broker for the next start.
    pub async fn run(self, mut inbox: Subscription, stop: CancellationToken) {
        let mut replays = ReplayCache::default();
        let mut running: JoinSet<AnswerStep> = JoinSet::new();
        let mut drain_until = None;
        // ends after `stop`
        loop {
            if drain_until.is_some() && running.is_empty() {
                return;
            }
            tokio::select! {
                Some(message) = inbox.recv(), if drain_until.is_none() => {
                    self.received(message, &mut replays, &mut running);
                }
                Some(done) = running.join_next(), if !running.is_empty() => {
                    if let Ok(AnswerStep::Answered(answered)) = done {
                        let AnsweredRequest { key, keep, reply, back, ack } = *answered;
                        let mut acks = vec![ack];
                        if let Some(key) = key {
                            acks.extend(replays.ended(&key, keep));
                        }
                        self.send(reply, back, acks, &mut running);
                    }
                }
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(tokio::time::Instant::from(clock::now()) + DRAIN_MAX);
                }
                Some(()) = OptionFuture::from(drain_until.map(tokio::time::sleep_until)) => {
                    tracing::warn!(left = running.len(), "stopped before all replies were out");
                    return;
                }
            }
        }
    }

    fn received(
        &self,
        message: Incoming,
        replays: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        if message.retained {
            tracing::debug!(topic = message.topic, "a retained request is ignored");
            return message.ack.ack();
        }
        let Some(asked) = self.topics.read(&message.topic) else {
            tracing::debug!(topic = message.topic, "request on a topic that is not served");
            return message.ack.ack();
        };
        let own = self.topics.reply_to(&asked);
        let topic = self.topics.answer_to(&asked, message.response_topic.as_deref());
        let mut back = ReplyContext {
            origin: ReplyOrigin {
                task: asked.task.clone(),
                ..ReplyOrigin::unread("mqtt", &asked.app)
            },
            topic: topic.as_ref().unwrap_or(&own).clone(),
            stream: None,
            correlation: message.correlation.clone(),
        };
        let read = topic.and_then(|_| self.job_of(&asked, &message, &mut back));
        let (job, content) = match read {
            Ok(read) => read,
            Err(refusal) => {
                let id = id_of(&message);
                return self.refuse(id, &refusal, back, message.ack, running);
            }
        };
        let key = key_of(&message, &job, &asked.app, content);
        let ack = match &key {
            None => message.ack,
            Some(key) => match replays.look_up(key, content, message.ack) {
                ReplayLookup::New(ack) => ack,
                ReplayLookup::Runs => return,
                ReplayLookup::Answered(reply, ack) => {
                    return self.send(reply, back, vec![ack], running);
                }
                ReplayLookup::Conflict(ack) => {
                    let message =
                        "this id was already used for a different request; use another id";
                    let refusal = Refusal::field(Code::Conflict, "id", message);
                    return self.refuse(job.key, &refusal, back, ack, running);
                }
            },
        };
        self.start(job, key, back, ack, running);
    }

    /// Reads the payload; also returns a hash that tells requests apart.
    fn job_of(
        &self,
        asked: &RequestTopic,
        message: &Incoming,
        back: &mut ReplyContext,
    ) -> Result<(Job, u64), Refusal> {
        let payload = message.payload.as_ref().map_err(|bytes| {
            let message = format!("{bytes} bytes, at most {REQUEST_BYTES_MAX}");
            Refusal::new(Code::TooLarge, message)
        })?;
        let text = std::str::from_utf8(payload).map_err(|e| {
            let at = e.valid_up_to();
            Refusal::new(Code::Malformed, format!("not valid UTF-8 at byte {at}"))
        })?;
        let mut ask: Ask = if text.trim_start().starts_with('{') {
            read(payload)?
        } else {
            Ask { prompt: Some(text.to_owned()), ..Ask::default() }
        };
        match (&asked.task, &ask.task) {
            (Some(topic), Some(field)) if topic != field => {
                let message = format!("differs from the task of the topic, {topic:?}");
                return Err(Refusal::field(Code::Invalid, "task", message));
            }
            (Some(topic), _) => ask.task = Some(topic.clone()),
            (None, _) => {}
        }
        back.origin.task.clone_from(&ask.task);
        if ask.stream == Some(true) {
            back.stream = Some(self.topics.stream_to(asked));
        }
        let mut job = ask.check(&asked.app, &self.catalog)?;
        if let Some(expiry) = message.expiry {
            job.time_left = job.time_left.min(expiry.max(Duration::from_millis(1)));
        }
        let mut hash = DefaultHasher::new();
        (payload, &asked.task).hash(&mut hash);
        Ok((job, hash.finish()))
    }

    fn start(
        &self,
        job: Job,
        key: Option<Key>,
        back: ReplyContext,
        ack: AckGuard,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let id = job.key.clone();
        let format = job.format.clone();
        let (dispatch, bus, metrics) =
            (self.dispatch.clone(), self.bus.clone(), self.metrics.clone());
        running.spawn(async move {
            let reply = match strategy::submit(&dispatch, job).await {
                Err(refusal) => Reply::refused(id, &refusal),
                Ok(answer) => {
                    let (text, end) =
                        deliver(&bus, answer, back.stream.as_deref(), id.as_ref()).await;
                    answers::reply(id, &format, text, end)
                }
            };
            answers::replied(&metrics, &back.origin, &reply);
            let payload = encode(&reply);
            let keep = (reply.status == Status::Ok).then(|| payload.clone());
            let answered = AnsweredRequest { key, keep, reply: payload, back, ack };
            AnswerStep::Answered(Box::new(answered))
        });
    }

    fn refuse(
        &self,
        id: Option<String>,
        refusal: &Refusal,
        back: ReplyContext,
        ack: AckGuard,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let reply = Reply::refused(id, refusal);
        answers::replied(&self.metrics, &back.origin, &reply);
        self.send(encode(&reply), back, vec![ack], running);
    }

    /// Publishes a reply, then acknowledges its requests.
    fn send(
        &self,
        reply: Bytes,
        back: ReplyContext,
        acks: Vec<AckGuard>,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let bus = self.bus.clone();
        running.spawn(async move {
            publish(&bus, reply, back).await;
            for ack in acks {
                ack.ack();
            }
            AnswerStep::Published
        });
    }
}

/// Collects the answer, and publishes its chunks on the `stream` topic, if there is one; the last
/// message there, with `done`, is sent before the reply.
async fn deliver(
    bus: &Bus,
    mut answer: Answer,
    stream: Option<&str>,
    id: Option<&String>,
) -> (String, crate::dispatch::JobEnd) {
    let Some(topic) = stream else {
        return answer.collect().await;
    };
    let mut text = String::new();
    let mut count = 0_u32;
    while let Some(chunk) = answer.next().await {
        text.push_str(&chunk.text);
        count += 1;
        let message = json!({"id": id, "n": chunk.n, "text": chunk.text});
        publish_chunk(bus, topic, &message);
    }
    let last = json!({"id": id, "n": count, "done": true, "count": count});
    publish_chunk(bus, topic, &last);
    (text, answer.end().await)
}

/// Publishes a message of the stream with QoS 0: without room it is dropped.
fn publish_chunk(bus: &Bus, topic: &str, message: &serde_json::Value) {
    let payload = Bytes::from(message.to_string());
    let _ = bus.once(Outgoing { topic: topic.to_owned(), payload, ..Outgoing::default() });
}

/// Publishes a reply and waits until the broker has acknowledged it.
async fn publish(bus: &Bus, payload: Bytes, back: ReplyContext) {
    let message = Outgoing {
        topic: back.topic,
        payload,
        correlation: back.correlation,
        ..Outgoing::default()
    };
    match bus.publish(message) {
        Ok(acknowledged) => {
            let _ = acknowledged.await;
        }
        Err(_) => tracing::error!("the outbox is full; a reply was dropped"),
    }
}

fn encode(reply: &Reply) -> Bytes {
    serde_json::to_vec(reply).unwrap_or_default().into()
}

/// The `id` of a request that has other mistakes.
fn id_of(message: &Incoming) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(message.payload.as_ref().ok()?).ok()?;
    value.get("id")?.as_str().map(str::to_owned)
}

/// The idempotency key: correlation data, else the `id`. A message without either has one, its hash,
/// only if the broker delivers it again.
fn key_of(message: &Incoming, job: &Job, app: &str, content: u64) -> Option<Key> {
    let name = match (&message.correlation, &job.key) {
        (Some(data), _) => [b"c:", data.as_ref()].concat(),
        (None, Some(id)) => [b"i:", id.as_bytes()].concat(),
        (None, None) => [b"h:".as_slice(), &content.to_be_bytes()].concat(),
    };
    let named = message.correlation.is_some() || job.key.is_some();
    (named || message.again).then(|| (app.to_owned(), name))
}
