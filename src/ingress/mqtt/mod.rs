//! The MQTT door: a prompt comes on a topic, its one reply goes out on another.
//!
//! A request is acknowledged to the broker when its reply has been: if the power fails in
//! between, the broker hands it out again.

pub mod health;
mod replay;
pub mod topics;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::replay::{Key, ReplayCache, ReplayLookup};
use self::topics::{Asked, DeviceTopics};
use super::answers;
use crate::catalog::catalog::Catalog;
use crate::clock;
use crate::dispatch::{Answer, Dispatch};
use crate::limits::{DRAIN_MAX, REQUEST_BYTES_MAX};
use crate::metrics::Metrics;
use crate::mqtt::{AckGuard, Bus, Incoming, Outgoing};
use crate::request::job::Job;
use crate::request::refusal::{Code, Refusal};
use crate::strategy;
use crate::wire::{Ask, Reply, Status, read};

/// The door.
pub struct MqttInterface {
    /// Where replies go.
    pub bus: Bus,
    /// Where jobs go.
    pub dispatch: Dispatch,
    /// Tasks and defaults.
    pub catalog: std::sync::Arc<Catalog>,
    /// Our topics.
    pub topics: DeviceTopics,
    /// Counts.
    pub metrics: Metrics,
}

/// A request that was read: where its answer goes and how it is marked.
#[derive(Debug, Clone)]
struct Return {
    topic: String,
    stream: Option<String>,
    correlation: Option<Bytes>,
}

/// What a request's task comes to, one after the other.
enum AnswerStep {
    /// The reply is known and not yet out. Who asks under the same key from now on must get it
    /// anew: the one that goes out may be with its asker before the next request is looked at.
    Answered { key: Option<Key>, keep: Option<Bytes>, reply: Bytes, back: Return, ack: AckGuard },
    /// The reply is out: the requests may be acknowledged.
    Out(#[expect(dead_code, reason = "acknowledged when they are dropped")] Vec<AckGuard>),
}

impl MqttInterface {
    /// Serves requests until `stop`, then until all that were taken have been answered.
    pub async fn run(self, mut inbox: mpsc::Receiver<Incoming>, stop: CancellationToken) {
        self.serve(&mut inbox, stop).await;
        inbox.close();
        // what was not looked at waits at the broker for the next start
        while let Ok(message) = inbox.try_recv() {
            message.ack.leave();
        }
    }

    async fn serve(&self, inbox: &mut mpsc::Receiver<Incoming>, stop: CancellationToken) {
        let mut seen = ReplayCache::default();
        let mut running: JoinSet<AnswerStep> = JoinSet::new();
        let mut drain_until = None;
        // ends after `stop`
        loop {
            if drain_until.is_some() && running.is_empty() {
                return;
            }
            tokio::select! {
                Some(message) = inbox.recv(), if drain_until.is_none() => {
                    self.received(message, &mut seen, &mut running);
                }
                Some(done) = running.join_next(), if !running.is_empty() => {
                    if let Ok(AnswerStep::Answered { key, keep, reply, back, ack }) = done {
                        let mut acks = vec![ack];
                        if let Some(key) = key {
                            acks.extend(seen.ended(&key, keep));
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
        seen: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        if message.retained {
            tracing::debug!(topic = message.topic, "a retained request is ignored");
            return;
        }
        let Some(asked) = self.topics.read(&message.topic) else {
            tracing::debug!(topic = message.topic, "request on a topic that is not served");
            return;
        };
        let own = self.topics.reply_to(&asked);
        let topic = self.topics.answer_to(&asked, message.response_topic.as_deref());
        let mut back = Return {
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
            Some(key) => match seen.look(key, content, message.ack) {
                ReplayLookup::New(ack) => ack,
                ReplayLookup::Runs => return,
                ReplayLookup::Answered(reply, ack) => {
                    return self.send(reply, back, vec![ack], running);
                }
                ReplayLookup::Conflict(ack) => {
                    let message =
                        "this id was already used for a different request; use another id";
                    let refusal = Refusal::field(Code::Conflict, "id", message);
                    return self.refuse(job.key.clone(), &refusal, back, ack, running);
                }
            },
        };
        self.start(job, key, back, ack, seen, running);
    }

    /// Reads the payload; also says what it was, as a number, to tell requests apart.
    fn job_of(
        &self,
        asked: &Asked,
        message: &Incoming,
        back: &mut Return,
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
        back: Return,
        ack: AckGuard,
        seen: &mut ReplayCache,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let id = job.key.clone();
        let format = job.format.clone();
        match strategy::submit(&self.dispatch, job) {
            Err(refusal) => {
                if let Some(key) = key {
                    drop(seen.ended(&key, None));
                }
                self.refuse(id, &refusal, back, ack, running);
            }
            Ok(answer) => {
                let (bus, metrics) = (self.bus.clone(), self.metrics.clone());
                running.spawn(async move {
                    let (text, end) =
                        deliver(&bus, answer, back.stream.as_deref(), id.as_ref()).await;
                    let reply = answers::reply(id, &format, text, end);
                    metrics.replied("mqtt", &reply);
                    let payload = encode(&reply);
                    let keep = (reply.status == Status::Ok).then(|| payload.clone());
                    AnswerStep::Answered { key, keep, reply: payload, back, ack }
                });
            }
        }
    }

    fn refuse(
        &self,
        id: Option<String>,
        refusal: &Refusal,
        back: Return,
        ack: AckGuard,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let reply = Reply::refused(id, refusal);
        self.metrics.replied("mqtt", &reply);
        self.send(encode(&reply), back, vec![ack], running);
    }

    fn send(
        &self,
        reply: Bytes,
        back: Return,
        acks: Vec<AckGuard>,
        running: &mut JoinSet<AnswerStep>,
    ) {
        let bus = self.bus.clone();
        running.spawn(async move {
            publish(&bus, reply, back).await;
            AnswerStep::Out(acks)
        });
    }
}

/// Reads the answer, and hands its pieces out if they are wanted.
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
        let piece = json!({"id": id, "n": chunk.n, "text": chunk.text});
        tell(bus, topic, &piece);
    }
    let last = json!({"id": id, "n": count, "done": true, "count": count});
    tell(bus, topic, &last);
    (text, answer.end().await)
}

/// Publishes a piece, if it can go out now.
fn tell(bus: &Bus, topic: &str, piece: &serde_json::Value) {
    let payload = Bytes::from(piece.to_string());
    let _ = bus.once(Outgoing { topic: topic.to_owned(), payload, ..Outgoing::default() });
}

/// Publishes and waits until the broker has it.
async fn publish(bus: &Bus, payload: Bytes, back: Return) {
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

/// The asker's name for a request that could not be read as a whole.
fn id_of(message: &Incoming) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(message.payload.as_ref().ok()?).ok()?;
    value.get("id")?.as_str().map(str::to_owned)
}

/// Correlation data or the id; a message without either is only known when it comes again.
fn key_of(message: &Incoming, job: &Job, app: &str, content: u64) -> Option<Key> {
    let name = match (&message.correlation, &job.key) {
        (Some(data), _) => [b"c:", data.as_ref()].concat(),
        (None, Some(id)) => [b"i:", id.as_bytes()].concat(),
        (None, None) => [b"h:".as_slice(), &content.to_be_bytes()].concat(),
    };
    let named = message.correlation.is_some() || job.key.is_some();
    (named || message.again).then(|| (app.to_owned(), name))
}
