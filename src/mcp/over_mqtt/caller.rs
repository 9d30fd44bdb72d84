//! The caller: the services that this device calls, over its one connection to the broker.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rmcp::RoleClient;
use rmcp::model::{ClientNotification, ErrorData, GetMeta, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::keys::CallerPair;
use super::parts::{Parts, place_of};
use super::sealed::{CALL_SEAL_BYTES, CallNames, CallSeal, call_digest, seal_call};
use super::signed::{RefusalReason, RefusalStatement, Statement, base64};
use super::workers::{OnlineWorkers, Workers};
use super::{KEY, ServiceTopics, WORKER, property};
use crate::catalog::public_key::ServicePublicKey;
use crate::clock;
use crate::limits::call::CALL_TAKEN_MAX;
use crate::limits::{MQTT_ANSWERS_MAX, MQTT_INBOX_MAX, REQUEST_BYTES_MAX};
use crate::mcp::contract::{LOST, NOT_TAKEN, deadline_of};
use crate::model::generate::Fault;
use crate::mqtt::{
    Bus, ConnectionState, Incoming, NotSent, Outgoing, Router, Subscription, SubscriptionFilters,
};
use crate::random;

/// Routes messages to and from all services that this device calls; cheap to clone.
#[derive(Clone)]
pub struct CallRouter {
    bus: Bus,
    filters: SubscriptionFilters,
    caller: String,
    /// The key pair for services with a key.
    pair: Arc<Mutex<Option<Arc<CallerPair>>>>,
    services: Arc<Mutex<BTreeMap<String, ServicePresence>>>,
}

/// The state of a service.
struct ServicePresence {
    workers: Workers,
    /// The transport that receives its responses at present.
    to: Option<mpsc::Sender<AnswerPart>>,
}

/// A message of an answer.
struct AnswerPart {
    payload: Result<Bytes, usize>,
    correlation: Option<Bytes>,
    properties: Vec<(String, String)>,
}

impl CallRouter {
    /// A router for calls with the answers of [`CallRouter::subscribe`]; `caller` is this device's name,
    /// `pair` its key pair for services with a key.
    pub fn new(
        (bus, filters): (Bus, SubscriptionFilters),
        (caller, pair): (&str, Option<CallerPair>),
    ) -> CallRouter {
        let (caller, pair) = (caller.to_owned(), Arc::new(Mutex::new(pair.map(Arc::new))));
        CallRouter { bus, filters, caller, pair, services: Arc::default() }
    }

    /// The key pair for services with a key, if there was none before.
    pub fn set_pair(&self, pair: Option<CallerPair>) {
        let mut known = self.pair.lock().unwrap_or_else(PoisonError::into_inner);
        *known = known.take().or(pair.map(Arc::new));
    }

    /// The subscription to the answers of services, none at first.
    pub fn subscribe(router: &mut Router) -> Subscription {
        router.subscribe(Vec::new(), MQTT_INBOX_MAX)
    }

    /// Begins to watch the workers of a service, by the base of its topics, with its pinned key.
    pub fn add(&self, base: &str, key: Option<ServicePublicKey>) {
        let workers = Workers::new(ServiceTopics::new(base), key);
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.insert(base.to_owned(), ServicePresence { workers, to: None });
        self.filters.replace(self.filters_of(services.keys()));
    }

    /// Forgets a service.
    pub fn remove(&self, base: &str) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.remove(base);
        self.filters.replace(self.filters_of(services.keys()));
    }

    /// The topic filters of the answers to this caller and of the workers of these services.
    fn filters_of<'b>(&self, bases: impl Iterator<Item = &'b String>) -> Vec<String> {
        let of = |base: &String| {
            let topics = ServiceTopics::new(base);
            [topics.answer(&self.caller), topics.worker("+")]
        };
        bases.flat_map(of).collect()
    }

    /// Distributes the messages of the subscription until the connection ends.
    pub async fn run(self, mut inbox: Subscription) {
        while let Some(message) = inbox.recv().await {
            self.take(message);
        }
    }

    /// Notes a worker, or hands an answer to its caller; without a caller it is dropped.
    ///
    /// The message is acknowledged at once: a call is made at most once, so its answer is of no use
    /// to a later process.
    fn take(&self, message: Incoming) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        for service in services.values_mut() {
            if let Some(worker) = service.workers.topics.worker_of(&message.topic) {
                let said = message.payload.as_deref().unwrap_or_default();
                let noted = service.workers.note(worker, said);
                if let Err(why) = noted {
                    let problem = format!("presence {}", service.workers.topics.workers());
                    self.bus.report().problem(&problem, &why);
                }
                break;
            }
            if service.workers.topics.caller_of(&message.topic) == Some(&self.caller) {
                let part = AnswerPart {
                    payload: message.payload,
                    correlation: message.correlation,
                    properties: message.properties,
                };
                if let Some(to) = &service.to
                    && to.try_send(part).is_err()
                {
                    tracing::debug!("an answer of a service has no caller");
                }
                break;
            }
        }
        message.ack.ack();
    }

    /// Waits until the connection to the broker is up and a worker of this service is present.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if there is no such service, or the connection has ended for good.
    pub async fn ready(&self, base: &str) -> Result<(), Fault> {
        let mut workers = {
            let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            services.get(base).ok_or_else(|| unknown(base))?.workers.online()
        };
        let mut line = self.bus.connection();
        let gone = |_| Fault::unavailable("the line to the broker has ended".to_owned());
        // either may end while the other is waited for
        while *line.borrow_and_update() != ConnectionState::Up
            || workers.borrow_and_update().is_empty()
        {
            tokio::select! {
                changed = line.changed() => changed.map_err(gone)?,
                changed = workers.changed() => changed.map_err(gone)?,
            }
        }
        Ok(())
    }

    /// Why a worker of this service is not called although it is there, if there is one.
    pub fn ignored(&self, base: &str) -> watch::Receiver<Option<String>> {
        let services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let service = services.get(base).map(|service| service.workers.ignored());
        service.unwrap_or_else(|| watch::channel(None).1)
    }

    /// A transport to a service, once one of its workers is present. It replaces an earlier one.
    ///
    /// # Errors
    /// As [`CallRouter::ready`].
    pub async fn call(&self, base: &str) -> Result<Caller, Fault> {
        let (to, inbox) = mpsc::channel(MQTT_ANSWERS_MAX);
        let (topics, key, workers) = {
            let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            let service = services.get_mut(base).ok_or_else(|| unknown(base))?;
            service.to = Some(to);
            (service.workers.topics.clone(), service.workers.key, service.workers.online())
        };
        let pair = self.pair.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let proof = match (key, pair) {
            (None, _) => None,
            (Some(key), Some(pair)) => Some((key, pair)),
            (Some(_), None) => {
                return Err(Fault::unavailable("this caller has no key of its own".to_owned()));
            }
        };
        self.ready(base).await?;
        let line = self.bus.connection();
        Ok(Caller {
            answer: topics.answer(&self.caller),
            caller: self.caller.clone(),
            topics,
            proof,
            bus: self.bus.clone(),
            inbox,
            line,
            workers,
            calls: HashMap::new(),
            slow: BTreeSet::new(),
            ready: VecDeque::new(),
        })
    }
}

fn unknown(base: &str) -> Fault {
    Fault::unavailable(format!("{base} is not subscribed to"))
}

/// A client's transport to one service.
pub struct Caller {
    topics: ServiceTopics,
    caller: String,
    /// The topic for responses.
    answer: String,
    /// The pinned key of the service, and this caller's keys.
    proof: Option<(ServicePublicKey, Arc<CallerPair>)>,
    bus: Bus,
    inbox: mpsc::Receiver<AnswerPart>,
    line: watch::Receiver<ConnectionState>,
    workers: watch::Receiver<OnlineWorkers>,
    /// Open calls by the correlation data of their messages.
    calls: HashMap<Bytes, OutgoingCall>,
    /// Workers that did not take a call: others are preferred.
    slow: BTreeSet<String>,
    /// Received messages that were not handed on yet.
    ready: VecDeque<RxJsonRpcMessage<RoleClient>>,
}

/// A request without its response.
struct OutgoingCall {
    id: RequestId,
    parts: Parts,
    /// The worker that has it, and the start of its process.
    worker: Option<(String, u64)>,
    /// The keys of an encrypted call, and the digest that a refusal of it has.
    seal: Option<(CallSeal, String)>,
    /// The deadline for a worker to take it.
    taken_by: Instant,
}

/// A call before it is sent.
struct AddressedCall {
    message: Outgoing,
    worker: Option<(String, u64)>,
    seal: Option<(CallSeal, String)>,
}

impl Caller {
    fn put(&mut self, item: &TxJsonRpcMessage<RoleClient>) -> io::Result<()> {
        let payload = Bytes::from(serde_json::to_vec(item)?);
        match item {
            JsonRpcMessage::Request(request) => {
                let most =
                    REQUEST_BYTES_MAX - if self.proof.is_some() { CALL_SEAL_BYTES } else { 0 };
                if payload.len() > most {
                    let size = payload.len();
                    return Err(io::Error::other(format!(
                        "a call of {size} bytes, at most {most}"
                    )));
                }
                let mark = Bytes::copy_from_slice(&random::bytes::<16>()?);
                let AddressedCall { mut message, worker, seal } = self.addressed(payload, &mark)?;
                message.expiry = deadline_of(request.request.get_meta());
                message.response_topic = Some(self.answer.clone());
                message.correlation = Some(mark.clone());
                // at most once: a call that was sent again might be paid for again
                self.bus.once(message).map_err(|failed| match failed {
                    NotSent::Busy => io::Error::other("the broker is not reachable"),
                    NotSent::Unacceptable => io::Error::other(format!(
                        "the call is too large: the broker accepts {} bytes",
                        self.bus.packet_max()
                    )),
                })?;
                let taken_by = Instant::from(clock::now()) + CALL_TAKEN_MAX;
                let (id, parts) = (request.id.clone(), Parts::default());
                self.calls.insert(mark, OutgoingCall { id, parts, worker, seal, taken_by });
                Ok(())
            }
            JsonRpcMessage::Notification(note) => {
                let ClientNotification::CancelledNotification(cancelled) = &note.notification
                else {
                    // single requests have no session that a notification could belong to
                    return Ok(());
                };
                let id = cancelled.params.request_id.as_ref();
                let mark = self.calls.iter().find(|(_, call)| Some(&call.id) == id);
                let Some(mark) = mark.map(|(mark, _)| mark.clone()) else { return Ok(()) };
                let seal = self.calls.remove(&mark).and_then(|call| call.seal);
                let payload = seal.map_or(payload, |(seal, _)| seal.cancellation());
                let topic = self.topics.tell();
                let told =
                    Outgoing { topic, payload, correlation: Some(mark), ..Outgoing::default() };
                // without it the worker works until the call's deadline
                let _ = self.bus.once(told);
                Ok(())
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => Ok(()),
        }
    }

    /// The message of a call: to any worker in plain text, or encrypted to the one with the fewest open
    /// calls of this caller.
    fn addressed(&self, text: Bytes, mark: &[u8]) -> io::Result<AddressedCall> {
        let Some((_, pair)) = &self.proof else {
            let message =
                Outgoing { topic: self.topics.call(), payload: text, ..Outgoing::default() };
            return Ok(AddressedCall { message, worker: None, seal: None });
        };
        let open = |name: &String| {
            let of = |call: &&OutgoingCall| call.worker.as_ref().is_some_and(|(of, _)| of == name);
            self.calls.values().filter(of).count()
        };
        let workers = self.workers.borrow();
        let known =
            workers.iter().filter_map(|(name, worker)| Some((name, worker.key?, worker.start)));
        let chosen = known
            .min_by_key(|(name, _, _)| (self.slow.contains(*name), open(name), fastrand::u32(..)));
        let (name, key, start) =
            chosen.ok_or_else(|| io::Error::other("no worker of the service is online"))?;
        let topic = self.topics.call_to(name);
        let names = CallNames { topic: &topic, answer: &self.answer, mark };
        let sealed = seal_call(pair, &key, names, &text);
        let (payload, seal) =
            sealed.ok_or_else(|| io::Error::other(format!("the key of {name} is not usable")))?;
        let key = base64(&key);
        let digest = call_digest(names, &key, &payload);
        let properties = vec![(KEY.to_owned(), key)];
        let message = Outgoing { topic, payload, properties, ..Outgoing::default() };
        let worker = Some((name.clone(), start));
        Ok(AddressedCall { message, worker, seal: Some((seal, digest)) })
    }

    fn came(&mut self, message: &AnswerPart) {
        let Some(mark) = &message.correlation else { return };
        let Some(call) = self.calls.get_mut(mark) else { return };
        if call.seal.is_some() {
            return self.came_sealed(message);
        }
        if let Some(worker) = property(&message.properties, WORKER) {
            call.worker.get_or_insert_with(|| (worker.to_owned(), 0));
        }
        let Ok(payload) = &message.payload else {
            return self.fail(mark, "a message of the answer exceeds the size limit");
        };
        self.joined(mark, payload, &message.properties);
    }

    /// A message on an encrypted call. What the call's worker has not sent does not exist.
    fn came_sealed(&mut self, message: &AnswerPart) {
        let (Some(mark), Ok(payload)) = (&message.correlation, &message.payload) else { return };
        let Some(call) = self.calls.get(mark) else { return };
        let Some((seal, digest)) = &call.seal else { return };
        if RefusalStatement::is_form_of(payload) {
            let said = (self.proof.as_ref())
                .and_then(|(service, _)| RefusalStatement::verified(service, payload));
            // of this very message, and not of one that somebody has made of it
            let said = said.filter(|said| said.digest == *digest && !call.parts.has_begun());
            return said.map_or((), |said| self.refused(mark, &said));
        }
        let place = place_of(&message.properties);
        let opened = place.ok().and_then(|(seq, more)| seal.open(seq, more, payload));
        let Some(text) = opened else {
            let text = format!(
                "a message on {} is not from the worker of its call and is ignored: a stranger, or a \
                 broker, sends or changes answers",
                self.answer
            );
            return self.bus.report().problem(&format!("forged {}", self.answer), &text);
        };
        if let Some((worker, _)) = &call.worker {
            self.slow.remove(worker);
        }
        self.joined(mark, &text, &message.properties);
    }

    /// The worker does not serve the call.
    fn refused(&mut self, mark: &Bytes, said: &RefusalStatement) {
        let Some((_, pair)) = &self.proof else { return };
        let worker = &said.worker;
        let why = match said.reason {
            RefusalReason::Caller => format!(
                "the worker {worker} does not know this caller: add {:?}: \"{}\" to \
                 pilotlight.mqtt.callers there",
                self.caller,
                pair.public()
            ),
            RefusalReason::Key => format!("the worker {worker} has a new key; call it again"),
        };
        self.fail(mark, &why);
    }

    /// Adds a message to the answer of its call.
    fn joined(&mut self, mark: &Bytes, payload: &Bytes, properties: &[(String, String)]) {
        let Some(call) = self.calls.get_mut(mark) else { return };
        match call.parts.take(payload, properties) {
            // the worker has taken it
            Ok(Some(text)) if text.is_empty() => {}
            Ok(Some(text)) => match serde_json::from_slice::<RxJsonRpcMessage<RoleClient>>(&text) {
                Ok(answer) => {
                    if matches!(answer, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_)) {
                        self.calls.remove(mark);
                    }
                    self.ready.push_back(answer);
                }
                Err(error) => self.fail(mark, &format!("the answer cannot be parsed: {error}")),
            },
            Ok(None) => {}
            Err(why) => self.fail(mark, &why),
        }
    }

    /// Fails a call that will have no response.
    fn fail(&mut self, mark: &Bytes, why: &str) {
        if let Some(call) = self.calls.remove(mark) {
            let code = if call.parts.has_begun() { LOST } else { NOT_TAKEN };
            let error = ErrorData::new(code, why.to_owned(), None);
            self.ready.push_back(JsonRpcMessage::error(error, Some(call.id)));
        }
    }

    /// The calls of workers that are gone, and those that no worker took in time.
    fn sweep(&mut self) {
        let now = Instant::from(clock::now());
        let workers = self.workers.borrow_and_update().clone();
        let mut lost = Vec::new();
        for (mark, call) in &self.calls {
            let worker = call.worker.as_ref();
            let is_gone = worker
                .is_some_and(|(name, start)| workers.get(name).is_none_or(|w| w.start != *start));
            if is_gone {
                lost.push((mark.clone(), "the worker went offline during the call"));
            } else if !call.parts.has_begun() && call.taken_by <= now {
                self.slow.extend(worker.map(|(name, _)| name.clone()));
                lost.push((mark.clone(), "no worker took the call"));
            }
        }
        self.slow.retain(|name| workers.contains_key(name));
        for (mark, why) in lost {
            self.fail(&mark, why);
        }
    }

    /// The next deadline for a call to be taken.
    fn wake_at(&self) -> Option<Instant> {
        let open = self.calls.values().filter(|call| !call.parts.has_begun());
        open.map(|call| call.taken_by).min()
    }
}

impl Transport<RoleClient> for Caller {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        std::future::ready(self.put(&item))
    }

    /// Ends when the connection to the broker is down or no worker is present.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        // ends with the connection
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if *self.line.borrow() != ConnectionState::Up || self.workers.borrow().is_empty() {
                return None;
            }
            let wake = self
                .wake_at()
                .unwrap_or_else(|| Instant::from(clock::now()) + Duration::from_secs(3600));
            tokio::select! {
                message = self.inbox.recv() => self.came(&message?),
                changed = self.line.changed() => changed.ok()?,
                changed = self.workers.changed() => {
                    changed.ok()?;
                    self.sweep();
                }
                () = tokio::time::sleep_until(wake) => self.sweep(),
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.inbox.close();
        Ok(())
    }
}
