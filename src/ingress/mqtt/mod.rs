//! The MQTT interface: requests arrive on one topic, each has exactly one reply on another.
//!
//! A request is acknowledged to the broker after the broker has acknowledged its reply: if the power
//! fails in between, the broker delivers the request again.

#[cfg(fuzzing)]
pub mod fuzzing;
pub mod health;
mod identity;
mod replay;
pub mod reported;
pub mod topics;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::identity::client_of;
use self::replay::{Key, Receipt, ReplayCache, ReplayLookup};
use self::topics::{DeviceTopics, RequestTopic};
use super::answers;
use super::answers::ReplyOrigin;
use crate::catalog::catalog::Catalog;
use crate::clock;
use crate::dispatch::{Answer, Dispatch};
use crate::limits::{DRAIN_MAX, REQUEST_BYTES_MAX};
use crate::metrics::Metrics;
use crate::mqtt::{AckGuard, Bus, Incoming, Outgoing, Subscription, Undeliverable, Undelivered};
use crate::request::client::Client;
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::store::marks::{Mark, Marks, Suspect};
use crate::strategy;
use crate::wire::{Ask, Reply, Status, read};

/// The interface and what it needs.
pub struct MqttInterface {
    /// Publishes the replies.
    pub bus: Bus,
    /// Takes the jobs.
    pub dispatch: Dispatch,
    /// The device's topics.
    pub topics: DeviceTopics,
    /// Counts the replies.
    pub metrics: Metrics,
    /// The folder in which messages in hand are marked, if there is one.
    pub state: Option<PathBuf>,
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
    Answered(Box<StoredReply>),
    /// The reply was published and the requests are acknowledged.
    Published(Option<Key>),
}

/// What remains of a request when it is answered.
struct AnsweredRequest {
    key: Option<Key>,
    id: Option<String>,
    /// Its mark on disk, if it is being answered.
    mark: Option<Mark>,
    back: ReplyContext,
    /// The acknowledgements of the request and of its repetitions.
    acks: Vec<AckGuard>,
}

/// A reply before it is published.
struct StoredReply {
    request: AnsweredRequest,
    reply: Bytes,
    /// Whether the reply is stored for repetitions.
    is_kept: bool,
}

impl MqttInterface {
    /// Serves requests until `stop`, then until all accepted ones are answered, at most for
    /// [`DRAIN_MAX`]. Requests that were not read stay at the broker for the next start.
    pub async fn run(self, mut inbox: Subscription, stop: CancellationToken) {
        let mut replays = ReplayCache::default();
        let mut marks = Marks::open(self.state.as_deref());
        let mut running: JoinSet<AnswerStep> = JoinSet::new();
        let mut drain_until = None;
        // ends after `stop`
        loop {
            if drain_until.is_some() && running.is_empty() {
                return marks.close();
            }
            tokio::select! {
                Some(message) = inbox.recv(), if drain_until.is_none() => {
                    self.received(message, &mut marks, &mut replays, &mut running);
                }
                Some(done) = running.join_next(), if !running.is_empty() => {
                    match done {
                        Ok(AnswerStep::Answered(stored)) => {
                            stored.request.mark.into_iter().for_each(|mark| marks.answered(mark));
                            self.answered(*stored, &mut replays, &mut running);
                        }
                        Ok(AnswerStep::Published(Some(key))) => {
                            replays.published(&key).into_iter().for_each(AckGuard::ack);
                        }
                        Ok(AnswerStep::Published(None)) | Err(_) => {}
                    }
                }
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(tokio::time::Instant::from(clock::now()) + DRAIN_MAX);
                }
                Some(()) = OptionFuture::from(drain_until.map(tokio::time::sleep_until)) => {
                    tracing::warn!(left = running.len(), "stopped before all replies were out");
                    return marks.close();
                }
            }
        }
    }

    fn received(
        &self,
        message: Incoming,
        marks: &mut Marks,
        replays: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let catalog = self.dispatch.catalog();
        let is_task = |name: &str| catalog.tasks.contains_key(name);
        let (asked, valid) = match self.topics.read(&message.topic, is_task) {
            Some(read) if !message.retained => read,
            Some(_) => return self.unanswerable(message, "a retained message is no request"),
            None => return self.unanswerable(message, "the topic is not served"),
        };
        let own = self.topics.reply_to(&asked);
        let allowed = &catalog.mqtt.response_prefixes;
        let topic = self.topics.answer_to(&asked, message.response_topic.as_deref(), allowed);
        let mut back = ReplyContext {
            origin: ReplyOrigin {
                task: asked.task.clone(),
                ..ReplyOrigin::unread("mqtt", &asked.app)
            },
            topic: topic.as_ref().unwrap_or(&own).clone(),
            stream: None,
            correlation: message.correlation.clone(),
        };
        let client = client_of(&catalog, &asked.app, &message.properties);
        let content = content_of(&message, &asked);
        let mark = marks.check(content, message.again);
        let job = mark.map_err(died_with).and_then(|_| valid.and(topic));
        let job = job.and_then(|_| self.job_of(&catalog, (&asked, &client), &message, &mut back));
        let id = match &job {
            Ok(job) => job.key.clone(),
            Err(_) => id_of(&message),
        };
        let (key, receipt) = key_of(&message, id.as_deref(), client);
        let found = replays.look_up(&key, content, receipt, message.ack);
        let is_new = matches!(found, ReplayLookup::New(_) | ReplayLookup::Unkeyed(_));
        let mark = mark.ok().filter(|mark| marks.checked(*mark, job.is_ok() && is_new));
        let request = |key: Option<Key>, ack: AckGuard| AnsweredRequest {
            key,
            id,
            mark,
            back,
            acks: vec![ack],
        };
        match found {
            ReplayLookup::New(ack) => self.start(job, request(Some(key), ack), replays, running),
            ReplayLookup::Unkeyed(ack) => self.start(job, request(None, ack), replays, running),
            ReplayLookup::Runs => {}
            ReplayLookup::Replied(ack) => ack.ack(),
            ReplayLookup::Answered(reply, ack) => self.send(reply, request(None, ack), running),
            ReplayLookup::Conflict(ack) => {
                let message = "this id was already used for a different request; use another id";
                let refusal = job.err();
                let refusal =
                    refusal.unwrap_or_else(|| Refusal::field(Code::Conflict, "id", message));
                self.refuse(&refusal, request(None, ack), replays, running);
            }
        }
    }

    /// Settles a message that can't have a reply.
    fn unanswerable(&self, message: Incoming, why: &str) {
        self.bus.report().undelivered(Undelivered::Unanswerable, &message.topic, why);
        message.ack.ack();
    }

    /// Reads the payload, and checks the request.
    fn job_of(
        &self,
        catalog: &Catalog,
        (asked, client): (&RequestTopic, &Client),
        message: &Incoming,
        back: &mut ReplyContext,
    ) -> Result<Job, Refusal> {
        let payload = message.payload.as_ref().map_err(|bytes| {
            let message = format!("{bytes} bytes, at most {REQUEST_BYTES_MAX}");
            Refusal::new(Code::TooLarge, message)
        })?;
        let mut ask = ask_of(payload)?;
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
        let mut job = ask.check(client, catalog)?;
        if let Some(expiry) = message.expiry {
            job.time_left = job.time_left.min(expiry.max(Duration::from_millis(1)));
        }
        job.time_left = job.time_left.saturating_sub(message.arrived.elapsed());
        Ok(job)
    }

    fn start(
        &self,
        job: Result<Job, Refusal>,
        request: AnsweredRequest,
        replays: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let job = match job {
            Ok(job) => job,
            Err(refusal) => return self.refuse(&refusal, request, replays, running),
        };
        let (dispatch, bus, metrics) =
            (self.dispatch.clone(), self.bus.clone(), self.metrics.clone());
        running.spawn(async move {
            let format = job.format.clone();
            let reply = match strategy::submit(&dispatch, job).await {
                Err(refusal) => Reply::refused(request.id.clone(), &refusal),
                Ok(answer) => {
                    let stream = request.back.stream.as_deref();
                    let (text, end) = deliver(&bus, answer, stream, request.id.as_ref()).await;
                    answers::reply(request.id.clone(), &format, text, end)
                }
            };
            answers::replied(&metrics, &request.back.origin, &reply);
            let is_kept = reply.status == Status::Ok;
            let reply = encode(&reply);
            AnswerStep::Answered(Box::new(StoredReply { request, reply, is_kept }))
        });
    }

    fn refuse(
        &self,
        refusal: &Refusal,
        request: AnsweredRequest,
        replays: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let reply = Reply::refused(request.id.clone(), refusal);
        answers::replied(&self.metrics, &request.back.origin, &reply);
        let stored = StoredReply { request, reply: encode(&reply), is_kept: false };
        self.answered(stored, replays, running);
    }

    /// Stores a reply, then publishes it.
    fn answered(
        &self,
        StoredReply { mut request, reply, is_kept }: StoredReply,
        replays: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        if let Some(key) = &request.key {
            request.acks.extend(replays.answered(key, reply.clone(), is_kept));
        }
        self.send(reply, request, running);
    }

    /// Publishes a reply, then acknowledges its requests, also if the broker does not take the reply:
    /// it would deliver the requests again, and refuse their replies again.
    fn send(&self, reply: Bytes, request: AnsweredRequest, running: &mut JoinSet<AnswerStep>) {
        let bus = self.bus.clone();
        let AnsweredRequest { key, id: _, mark: _, back, acks } = request;
        running.spawn(async move {
            let settle = match publish(&bus, reply, back).await {
                Ok(()) => AckGuard::ack,
                Err(Unpublished) => AckGuard::leave,
            };
            acks.into_iter().for_each(settle);
            AnswerStep::Published(key)
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

/// The refusal of a message that the broker delivers again after it ended the service.
fn died_with(suspect: Suspect) -> Refusal {
    let times = suspect.deaths;
    let message = format!(
        "the service ended {times} time(s) with this message in hand, so it is not taken again; send a \
         different request, or this one anew"
    );
    tracing::error!(times, "a message is refused with which the service has ended before");
    Refusal::new(Code::Invalid, message)
}

/// The connection has ended for good.
struct Unpublished;

/// Publishes a reply and waits until the broker has answered. A reply that is too large for the broker
/// is replaced by a short one that says so.
async fn publish(bus: &Bus, payload: Bytes, back: ReplyContext) -> Result<(), Unpublished> {
    let message = |payload: Bytes| Outgoing {
        topic: back.topic.clone(),
        payload,
        correlation: back.correlation.clone(),
        ..Outgoing::default()
    };
    let outcome = publish_once(bus, message(payload.clone())).await?;
    if let Some(Undeliverable::TooLarge { size, most }) = outcome {
        publish_once(bus, message(too_large(&payload, size, most))).await?;
    }
    Ok(())
}

/// Publishes a message; returns why the broker did not take it, if so.
async fn publish_once(bus: &Bus, message: Outgoing) -> Result<Option<Undeliverable>, Unpublished> {
    let topic = message.topic.clone();
    match bus.publish(message) {
        Ok(answered) => answered.await.map(Result::err).map_err(|_| Unpublished),
        Err(_) => {
            bus.report().undelivered(Undelivered::Full, &topic, "the outbox is full");
            Ok(None)
        }
    }
}

/// The reply that stands for one which the broker does not take because of its size.
fn too_large(reply: &Bytes, size: usize, most: usize) -> Bytes {
    let reply: Option<Reply> = serde_json::from_slice(reply).ok();
    let message = format!("the reply's packet has {size} bytes, the broker accepts {most}");
    let refused =
        Reply::refused(reply.and_then(|reply| reply.id), &Refusal::new(Code::TooLarge, message));
    encode(&Reply { status: Status::Failed, ..refused })
}

/// A payload that begins with `{` is a JSON request, any other is a prompt.
fn ask_of(payload: &[u8]) -> Result<Ask, Refusal> {
    let text = std::str::from_utf8(payload).map_err(|e| {
        let at = e.valid_up_to();
        Refusal::new(Code::Malformed, format!("not valid UTF-8 at byte {at}"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') {
        read(text.as_bytes()).map_err(|refusal| no_request(text, refusal))
    } else {
        Ok(Ask { prompt: Some(text.to_owned()), ..Ask::default() })
    }
}

/// The refusal of a text that begins like a JSON request and is none: it also says how such a text is
/// sent as a prompt.
fn no_request(text: &str, refusal: Refusal) -> Refusal {
    let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let has = |key: &str| value.as_ref().is_some_and(|value| value.get(key).is_some());
    if ["prompt", "messages", "task", "input"].into_iter().any(has) {
        return refusal;
    }
    let hint = "a payload that begins with { is read as a JSON request: a text of this form goes \
                into \"prompt\"";
    Refusal { message: format!("{}; {hint}", refusal.message), ..refusal }
}

fn encode(reply: &Reply) -> Bytes {
    serde_json::to_vec(reply).unwrap_or_default().into()
}

/// The `id` of a request that has other mistakes.
fn id_of(message: &Incoming) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(message.payload.as_ref().ok()?).ok()?;
    value.get("id")?.as_str().map(str::to_owned)
}

/// A hash that tells requests apart.
fn content_of(message: &Incoming, asked: &RequestTopic) -> u64 {
    let mut hash = DefaultHasher::new();
    (&message.payload, &asked.task).hash(&mut hash);
    hash.finish()
}

/// The idempotency key: correlation data, else the `id`, else a hash of the payload. Empty ones count as
/// none. A request that the hash names is only recognised if the broker delivers it again.
fn key_of(message: &Incoming, id: Option<&str>, client: Client) -> (Key, Receipt) {
    let data = message.correlation.as_ref().filter(|data| !data.is_empty());
    let id = id.filter(|id| !id.is_empty());
    let name = match (data, id) {
        (Some(data), _) => [b"c:", data.as_ref()].concat(),
        (None, Some(id)) => [b"i:", id.as_bytes()].concat(),
        (None, None) => {
            let mut hash = DefaultHasher::new();
            (&message.payload, &message.topic).hash(&mut hash);
            [b"h:".as_slice(), &hash.finish().to_be_bytes()].concat()
        }
    };
    let receipt = match (message.again, data.is_some() || id.is_some()) {
        (true, _) => Receipt::Again,
        (false, true) => Receipt::Named,
        (false, false) => Receipt::Unnamed,
    };
    ((client, name), receipt)
}
