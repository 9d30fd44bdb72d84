//! The worker: takes its share of a service's calls and serves each on its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;
use rmcp::RoleServer;
use rmcp::model::{ErrorData, JsonRpcMessage};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::parts::Numbers;
use super::{OFFLINE, ONLINE, ServiceTopics, WORKER};
use crate::clock;
use crate::limits::{CALLS_MAX, CALLS_REMEMBERED_MAX, DRAIN_MAX, NAME_BYTES_MAX};
use crate::mcp::contract::NOT_TAKEN;
use crate::mcp::pair::pair;
use crate::mcp::server::{ModelHost, serve};
use crate::mqtt::{
    Bus, ConnectionState, Incoming, NotSent, Outgoing, Presence, Subscription, Undelivered,
};

/// The delay before a message is published again, if the outbox is full.
const ANSWER_RETRY: Duration = Duration::from_millis(2);
/// Most bytes of an answer's packet besides payload, topic, mark and the worker's name: the names of
/// three user properties, a number, and the heads of the packet and of each property.
const PART_HEAD_BYTES: usize = 128;

/// One worker of a service.
pub struct Worker {
    /// The worker's own connection to the broker.
    pub bus: Bus,
    /// The model host that answers.
    pub host: Arc<dyn ModelHost>,
    /// The service's topics.
    pub topics: ServiceTopics,
    /// Its name, unique among workers.
    pub name: String,
}

/// The topic filters of a worker.
pub fn filters(topics: &ServiceTopics) -> Vec<String> {
    vec![topics.calls(), topics.tell()]
}

/// The presence message of a worker.
pub fn presence(topics: &ServiceTopics, name: &str) -> Presence {
    Presence {
        topic: topics.worker(name),
        online: Bytes::from_static(ONLINE),
        offline: Bytes::from_static(OFFLINE),
    }
}

/// A call that is being served.
struct IncomingCall {
    bus: Bus,
    host: Arc<dyn ModelHost>,
    worker: String,
    answer: String,
    mark: Bytes,
    numbers: Numbers,
}

/// The connection to the broker broke: the rest of the answer can't be delivered.
struct Broken;

impl Worker {
    /// Serves until `stop`, then until all accepted calls are answered.
    pub async fn run(self, mut inbox: Subscription, stop: CancellationToken) {
        let mut running: JoinSet<Bytes> = JoinSet::new();
        let mut stops: BTreeMap<Bytes, CancellationToken> = BTreeMap::new();
        let mut recent: VecDeque<Bytes> = VecDeque::new();
        let mut drain_until = None;
        // ends after `stop`
        loop {
            if drain_until.is_some() && running.is_empty() {
                return;
            }
            tokio::select! {
                Some(message) = inbox.recv(), if drain_until.is_none() => {
                    let call = self.call_of(&message);
                    // acknowledged on receipt: a call is made at most once
                    message.ack.ack();
                    if message.topic == self.topics.tell() {
                        if let Some(stop) = message.correlation.and_then(|mark| stops.remove(&mark)) {
                            stop.cancel();
                        }
                        continue;
                    }
                    let Some(call) = call else {
                        let why = "a call needs correlation data, and a response topic of the service";
                        let report = self.bus.report();
                        report.undelivered(Undelivered::Unanswerable, &message.topic, why);
                        continue;
                    };
                    if recent.contains(&call.mark) {
                        continue;
                    }
                    recent.push_back(call.mark.clone());
                    if recent.len() > CALLS_REMEMBERED_MAX {
                        recent.pop_front();
                    }
                    let (stop, mark) = (CancellationToken::new(), call.mark.clone());
                    stops.insert(mark.clone(), stop.clone());
                    let is_full = running.len() >= CALLS_MAX;
                    let payload = message.payload.unwrap_or_default();
                    running.spawn(async move {
                        tokio::select! {
                            _ = call.run(payload, is_full) => {}
                            () = stop.cancelled() => {}
                        }
                        mark
                    });
                }
                Some(ended) = running.join_next(), if !running.is_empty() => {
                    if let Ok(mark) = ended {
                        stops.remove(&mark);
                    }
                }
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::from(clock::now()) + DRAIN_MAX);
                }
                Some(()) = OptionFuture::from(drain_until.map(tokio::time::sleep_until)) => {
                    tracing::warn!(left = running.len(), "stopped before all calls were answered");
                    return;
                }
            }
        }
    }

    /// A call that can be answered: it has correlation data and a response topic.
    fn call_of(&self, message: &Incoming) -> Option<IncomingCall> {
        let is_mark = |mark: &Bytes| (1..=NAME_BYTES_MAX).contains(&mark.len());
        let mark = message.correlation.clone().filter(is_mark)?;
        let answer = message.response_topic.clone()?;
        let caller = answer.strip_prefix(&self.topics.answers())?;
        if !crate::request::name::is_name(caller) || message.retained {
            return None;
        }
        Some(IncomingCall {
            bus: self.bus.clone(),
            host: Arc::clone(&self.host),
            worker: self.name.clone(),
            answer,
            mark,
            numbers: Numbers::default(),
        })
    }
}

impl IncomingCall {
    async fn run(mut self, payload: Bytes, is_full: bool) -> Result<(), Broken> {
        let request = match serde_json::from_slice::<RxJsonRpcMessage<RoleServer>>(&payload) {
            Ok(JsonRpcMessage::Request(request)) => request,
            Ok(_) => return Ok(()),
            Err(error) => {
                let error = ErrorData::parse_error(format!("not a call: {error}"), None);
                return self.send(&JsonRpcMessage::error(error, None)).await;
            }
        };
        let id = request.id.clone();
        if is_full {
            let why = format!("this worker is at its limit of {CALLS_MAX} calls");
            let error = JsonRpcMessage::error(ErrorData::new(NOT_TAKEN, why, None), Some(id));
            return self.send(&error).await;
        }
        // it has been taken
        self.publish(Bytes::new()).await?;
        let (mut ours, theirs) = pair();
        let behind = Arc::clone(&self.host);
        let served = Box::pin(async move { serve(behind, theirs).await });
        let answers = async {
            if ours.send(JsonRpcMessage::Request(request)).await.is_err() {
                return Ok(());
            }
            // bounded by what an answer may have
            while let Some(message) = ours.receive().await {
                let is_last = match &message {
                    JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => true,
                    JsonRpcMessage::Notification(_) => false,
                    // it has no way back
                    JsonRpcMessage::Request(_) => continue,
                };
                self.send(&message).await?;
                if is_last {
                    break;
                }
            }
            Ok(())
        };
        let serving = async {
            // it runs in a task of its own until this is dropped
            let _served = served.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = answers => ended,
            () = serving => Ok(()),
        }
    }

    async fn send(&mut self, message: &TxJsonRpcMessage<RoleServer>) -> Result<(), Broken> {
        match serde_json::to_vec(message) {
            Ok(text) => self.publish(text.into()).await,
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written");
                Err(Broken)
            }
        }
    }

    /// Publishes a text; waits while the outbox is full.
    async fn publish(&mut self, text: Bytes) -> Result<(), Broken> {
        // the rest of the packet: topic, mark, and properties with at most 20 digits
        let rest = self.answer.len() + self.mark.len() + self.worker.len() + PART_HEAD_BYTES;
        let most = self.bus.packet_max().saturating_sub(rest);
        for (payload, mut properties) in self.numbers.split(text, most) {
            properties.push((WORKER.to_owned(), self.worker.clone()));
            let message = Outgoing {
                topic: self.answer.clone(),
                payload,
                correlation: Some(self.mark.clone()),
                properties,
                ..Outgoing::default()
            };
            // ends when there is room, or with the connection
            while let Err(failed) = self.bus.once(message.clone()) {
                let is_down = *self.bus.connection().borrow() != ConnectionState::Up;
                if is_down || failed == NotSent::Unacceptable {
                    // the caller is told that this worker is gone
                    return Err(Broken);
                }
                tokio::time::sleep(ANSWER_RETRY).await;
            }
        }
        Ok(())
    }
}
