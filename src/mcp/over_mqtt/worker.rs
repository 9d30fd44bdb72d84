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

use super::identity::{OpenedCall, ReceivedCall, WorkerIdentity};
use super::parts::{Numbers, place_of};
use super::sealed::{CallNames, CallSeal, TAG_BYTES};
use super::signed::RefusalReason;
use super::{KEY, OFFLINE, ONLINE, ServiceTopics, WORKER, property};
use crate::clock;
use crate::limits::call::{CALLS_MAX, CALLS_REMEMBERED_MAX};
use crate::limits::{DRAIN_MAX, NAME_BYTES_MAX};
use crate::mcp::contract::NOT_TAKEN;
use crate::mcp::pair::pair;
use crate::mcp::server::{ModelHost, serve_client};
use crate::mqtt::{
    Bus, ConnectionState, FixedPresence, Incoming, NotSent, Outgoing, Presence, PresenceMessages,
    Subscription, Undelivered,
};
use crate::request::client::Client;
use crate::request::name::is_name;

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
    /// Its identity, if it accepts encrypted calls of known callers and no others.
    pub identity: Option<Arc<WorkerIdentity>>,
}

/// The topic filters of the worker `name`, which accepts encrypted calls or those in plain text.
pub fn filters(topics: &ServiceTopics, name: &str, is_encrypted: bool) -> Vec<String> {
    let calls = if is_encrypted { topics.call_to(name) } else { topics.calls() };
    vec![calls, topics.tell()]
}

/// The topic of a worker's presence.
pub fn presence_topic(topics: &ServiceTopics, name: &str) -> String {
    topics.worker(name)
}

/// The presence of a worker.
pub fn presence(
    topics: &ServiceTopics,
    name: &str,
    identity: Option<Arc<WorkerIdentity>>,
) -> Presence {
    let messages: Arc<dyn PresenceMessages> = match identity {
        Some(identity) => identity,
        None => {
            let (online, offline) = (Bytes::from_static(ONLINE), Bytes::from_static(OFFLINE));
            Arc::new(FixedPresence { online, offline })
        }
    };
    Presence { topic: topics.worker(name), messages, is_asserted: true }
}

/// A call that is being served.
struct IncomingCall {
    bus: Bus,
    host: Arc<dyn ModelHost>,
    worker: String,
    /// Who called: the name is proven by the key of an encrypted call, and else only stated.
    client: Client,
    answer: String,
    mark: Bytes,
    numbers: Numbers,
    /// The keys of an encrypted call.
    seal: Option<Arc<CallSeal>>,
}

/// How a running call is stopped.
struct CallStop {
    stop: CancellationToken,
    mark: Bytes,
    /// The keys of an encrypted call, which its cancellation proves.
    seal: Option<Arc<CallSeal>>,
}

/// The connection to the broker broke: the rest of the answer can't be delivered.
struct Broken;

impl Worker {
    /// Serves until `stop`, then until all accepted calls are answered.
    pub async fn run(self, mut inbox: Subscription, stop: CancellationToken) {
        let mut calls = RunningCalls::default();
        let mut drain_until = None;
        // ends after `stop`
        loop {
            if drain_until.is_some() && calls.tasks.is_empty() {
                return;
            }
            let renew_at = self.identity.as_ref().map(|identity| identity.renew_at().into());
            tokio::select! {
                Some(message) = inbox.recv(), if drain_until.is_none() => {
                    self.take(message, &mut calls);
                    self.renew();
                }
                Some(ended) = calls.tasks.join_next(), if !calls.tasks.is_empty() => {
                    if let Ok(number) = ended {
                        calls.stops.remove(&number);
                    }
                }
                Some(()) = OptionFuture::from(renew_at.map(tokio::time::sleep_until)) => self.renew(),
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::from(clock::now()) + DRAIN_MAX);
                }
                Some(()) = OptionFuture::from(drain_until.map(tokio::time::sleep_until)) => {
                    let left = calls.tasks.len();
                    tracing::warn!(left, "stopped before all calls were answered");
                    return;
                }
            }
        }
    }

    /// Renews the key for calls when it is due, and tells it.
    fn renew(&self) {
        if self.identity.as_ref().is_some_and(|identity| identity.renew(clock::now())) {
            self.bus.announce();
        }
    }

    /// Takes a message: a call, or a cancellation.
    fn take(&self, message: Incoming, calls: &mut RunningCalls) {
        if message.topic == self.topics.tell() {
            calls.cancel(&message);
            // acknowledged on receipt: a call is made at most once
            return message.ack.ack();
        }
        let call = self.call_of(&message);
        let Some((mut call, caller)) = call else {
            message.ack.ack();
            let why = "a call needs correlation data, and a response topic of the service";
            let report = self.bus.report();
            return report.undelivered(Undelivered::Unanswerable, &message.topic, why);
        };
        let payload = match &self.identity {
            Some(identity) => match self.open(identity, &message, &caller, &mut call) {
                Some(text) => text.into(),
                None => return message.ack.ack(),
            },
            None if calls.is_repeated(&call.mark) => return message.ack.ack(),
            None => message.payload.clone().unwrap_or_default(),
        };
        message.ack.ack();
        let (stop, mark) = (CancellationToken::new(), call.mark.clone());
        let entry = CallStop { stop: stop.clone(), mark, seal: call.seal.clone() };
        calls.next += 1;
        let number = calls.next;
        calls.stops.insert(number, entry);
        let is_full = calls.tasks.len() >= CALLS_MAX;
        calls.tasks.spawn(async move {
            tokio::select! {
                _ = call.run(payload, is_full) => {}
                () = stop.cancelled() => {}
            }
            number
        });
    }

    /// A call that can be answered: it has correlation data and a response topic. With it the caller.
    fn call_of(&self, message: &Incoming) -> Option<(IncomingCall, String)> {
        let is_mark = |mark: &Bytes| (1..=NAME_BYTES_MAX).contains(&mark.len());
        let mark = message.correlation.clone().filter(is_mark)?;
        let answer = message.response_topic.clone()?;
        let caller = self.topics.caller_of(&answer)?.to_owned();
        if !is_name(&caller) || message.retained {
            return None;
        }
        let call = IncomingCall {
            bus: self.bus.clone(),
            host: Arc::clone(&self.host),
            worker: self.name.clone(),
            client: self.host.catalog().client_named(&caller),
            answer,
            mark,
            numbers: Numbers::default(),
            seal: None,
        };
        Some((call, caller))
    }

    /// The text of an encrypted call that is to be served.
    fn open(
        &self,
        identity: &WorkerIdentity,
        message: &Incoming,
        caller: &str,
        call: &mut IncomingCall,
    ) -> Option<Vec<u8>> {
        let (topic, payload) = (&message.topic, message.payload.as_deref().unwrap_or_default());
        let names = CallNames { topic, answer: &call.answer, mark: &call.mark };
        let key = property(&message.properties, KEY).unwrap_or_default();
        let received = ReceivedCall { caller, key, names, payload };
        let reason = match identity.open(&received, clock::now()) {
            OpenedCall::New(text, seal) => {
                call.seal = Some(seal);
                call.client = Client::vouched(caller, caller);
                return Some(text);
            }
            OpenedCall::Repeated => return None,
            OpenedCall::Refused(reason) => reason,
        };
        let why = match reason {
            RefusalReason::Caller => format!(
                "a call as {caller:?} is not encrypted with the key that pilotlight.mqtt.callers has for \
                 this name, or there is none"
            ),
            RefusalReason::Key => {
                "a call is encrypted for a key that is not in use any more, or in plain text"
                    .to_owned()
            }
        };
        self.bus.report().undelivered(Undelivered::Unanswerable, topic, &why);
        if let Some(said) = identity.refuse(&received, reason) {
            // without it the caller waits until its call counts as not taken
            let _ = self.bus.once(Outgoing {
                topic: call.answer.clone(),
                payload: said.into(),
                correlation: Some(call.mark.clone()),
                properties: vec![(WORKER.to_owned(), self.name.clone())],
                ..Outgoing::default()
            });
        }
        None
    }
}

/// The calls that are being served.
#[derive(Default)]
struct RunningCalls {
    tasks: JoinSet<u64>,
    /// By the number of the call; two callers may have chosen the same correlation data.
    stops: BTreeMap<u64, CallStop>,
    next: u64,
    /// Those in plain text that were served lately.
    recent: VecDeque<Bytes>,
}

impl RunningCalls {
    /// Whether a call in plain text was served already; otherwise it is noted.
    fn is_repeated(&mut self, mark: &Bytes) -> bool {
        if self.recent.contains(mark) {
            return true;
        }
        self.recent.push_back(mark.clone());
        if self.recent.len() > CALLS_REMEMBERED_MAX {
            self.recent.pop_front();
        }
        false
    }

    /// Stops the call that this message cancels, if its caller has sent it.
    fn cancel(&mut self, message: &Incoming) {
        let payload = message.payload.as_deref().unwrap_or_default();
        let is_meant = |call: &CallStop| {
            Some(&call.mark) == message.correlation.as_ref()
                && call.seal.as_ref().is_none_or(|seal| seal.is_cancellation(payload))
        };
        let meant = self.stops.iter().find(|(_, call)| is_meant(call));
        let meant = meant.map(|(number, _)| *number);
        if let Some(call) = meant.and_then(|number| self.stops.remove(&number)) {
            call.stop.cancel();
        }
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
        let (behind, client) = (Arc::clone(&self.host), self.client.clone());
        let served = Box::pin(async move { serve_client(behind, client, theirs).await });
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
        let rest = rest + if self.seal.is_some() { TAG_BYTES } else { 0 };
        let most = self.bus.packet_max().saturating_sub(rest);
        for (mut payload, mut properties) in self.numbers.split(text, most) {
            if let Some(seal) = &self.seal {
                let (number, more) = place_of(&properties).map_err(|_| Broken)?;
                payload = seal.seal(number, more, &payload).ok_or(Broken)?;
            }
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
