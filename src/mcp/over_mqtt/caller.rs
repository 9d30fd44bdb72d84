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

use super::parts::Parts;
use super::{ONLINE, ServiceTopics, WORKER, property};
use crate::clock;
use crate::limits::{
    CALL_TAKEN_MAX, MQTT_ANSWERS_MAX, MQTT_INBOX_MAX, REQUEST_BYTES_MAX, WORKERS_MAX,
};
use crate::mcp::contract::{LOST, NOT_TAKEN, deadline_of};
use crate::model::generate::Fault;
use crate::mqtt::{Bus, ConnectionState, Incoming, NotSent, Outgoing, Router, Subscription};
use crate::request::name::is_name;

/// Routes messages to and from all services that this device calls; cheap to clone.
#[derive(Clone)]
pub struct CallRouter {
    bus: Bus,
    caller: String,
    services: Arc<Mutex<BTreeMap<String, ServicePresence>>>,
}

/// The state of a service.
struct ServicePresence {
    topics: ServiceTopics,
    workers: watch::Sender<BTreeSet<String>>,
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
    /// A router for these services, by the base of their topics; `caller` is this device's name.
    pub fn new<'b>(bus: Bus, caller: &str, bases: impl Iterator<Item = &'b str>) -> CallRouter {
        let service = |base: &str| {
            let topics = ServiceTopics::new(base);
            let workers = watch::Sender::new(BTreeSet::new());
            (base.to_owned(), ServicePresence { topics, workers, to: None })
        };
        let services = Arc::new(Mutex::new(bases.map(service).collect()));
        CallRouter { bus, caller: caller.to_owned(), services }
    }

    /// Subscribes to the answers to `caller` and to the workers of these services.
    pub fn subscribe<'b>(
        router: &mut Router,
        caller: &str,
        bases: impl Iterator<Item = &'b str>,
    ) -> Subscription {
        let of = |base| {
            let topics = ServiceTopics::new(base);
            [topics.answer(caller), topics.worker("+")]
        };
        router.subscribe(bases.flat_map(of).collect(), MQTT_INBOX_MAX)
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
            if let Some(worker) = message.topic.strip_prefix(&service.topics.workers()) {
                // a name of any length would be kept
                let is_there =
                    is_name(worker) && message.payload.as_ref().is_ok_and(|said| said == ONLINE);
                service.workers.send_if_modified(|all| {
                    if is_there {
                        all.len() < WORKERS_MAX && all.insert(worker.to_owned())
                    } else {
                        all.remove(worker)
                    }
                });
                break;
            }
            if message.topic == service.topics.answer(&self.caller) {
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
            services.get(base).ok_or_else(|| unknown(base))?.workers.subscribe()
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

    /// A transport to a service, once one of its workers is present. It replaces an earlier one.
    ///
    /// # Errors
    /// As [`CallRouter::ready`].
    pub async fn call(&self, base: &str) -> Result<Caller, Fault> {
        let (to, inbox) = mpsc::channel(MQTT_ANSWERS_MAX);
        let (topics, workers) = {
            let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
            let service = services.get_mut(base).ok_or_else(|| unknown(base))?;
            service.to = Some(to);
            (service.topics.clone(), service.workers.subscribe())
        };
        self.ready(base).await?;
        let line = self.bus.connection();
        Ok(Caller {
            answer: topics.answer(&self.caller),
            topics,
            bus: self.bus.clone(),
            inbox,
            line,
            workers,
            calls: HashMap::new(),
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
    /// The topic for responses.
    answer: String,
    bus: Bus,
    inbox: mpsc::Receiver<AnswerPart>,
    line: watch::Receiver<ConnectionState>,
    workers: watch::Receiver<BTreeSet<String>>,
    /// Open calls by the correlation data of their messages.
    calls: HashMap<Bytes, OutgoingCall>,
    /// Received messages that were not handed on yet.
    ready: VecDeque<RxJsonRpcMessage<RoleClient>>,
}

/// A request without its response.
struct OutgoingCall {
    id: RequestId,
    parts: Parts,
    worker: Option<String>,
    /// The deadline for a worker to take it.
    taken_by: Instant,
}

impl Caller {
    fn put(&mut self, item: &TxJsonRpcMessage<RoleClient>) -> io::Result<()> {
        let payload = Bytes::from(serde_json::to_vec(item)?);
        match item {
            JsonRpcMessage::Request(request) => {
                if payload.len() > REQUEST_BYTES_MAX {
                    return Err(io::Error::other(format!(
                        "a call of {} bytes, at most {REQUEST_BYTES_MAX}",
                        payload.len()
                    )));
                }
                let mark = Bytes::from(fastrand::u128(..).to_be_bytes().to_vec());
                let message = Outgoing {
                    topic: self.topics.call(),
                    expiry: deadline_of(request.request.get_meta()),
                    payload,
                    correlation: Some(mark.clone()),
                    response_topic: Some(self.answer.clone()),
                    ..Outgoing::default()
                };
                // at most once: a call that was sent again might be paid for again
                self.bus.once(message).map_err(|failed| match failed {
                    NotSent::Busy => io::Error::other("the broker is not reachable"),
                    NotSent::Unacceptable => io::Error::other(format!(
                        "the call is too large: the broker accepts {} bytes",
                        self.bus.packet_max()
                    )),
                })?;
                let taken_by = Instant::from(clock::now()) + CALL_TAKEN_MAX;
                let call = OutgoingCall {
                    id: request.id.clone(),
                    parts: Parts::default(),
                    worker: None,
                    taken_by,
                };
                self.calls.insert(mark, call);
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
                self.calls.remove(&mark);
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

    fn came(&mut self, message: &AnswerPart) {
        let Some(mark) = &message.correlation else { return };
        let Some(call) = self.calls.get_mut(mark) else { return };
        if let Some(worker) = property(&message.properties, WORKER) {
            call.worker.get_or_insert_with(|| worker.to_owned());
        }
        let Ok(payload) = &message.payload else {
            return self.fail(mark, "a message of the answer exceeds the size limit");
        };
        match call.parts.take(payload, &message.properties) {
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
        let is_lost = |call: &OutgoingCall| match &call.worker {
            Some(worker) => !workers.contains(worker),
            None => call.taken_by <= now,
        };
        let lost = self.calls.iter().filter(|(_, call)| is_lost(call));
        let lost: Vec<Bytes> = lost.map(|(mark, _)| mark.clone()).collect();
        for mark in lost {
            let taken = self.calls.get(&mark).is_some_and(|call| call.worker.is_some());
            self.fail(
                &mark,
                if taken {
                    "the worker went offline during the call"
                } else {
                    "no worker took the call"
                },
            );
        }
    }

    /// The next deadline for a call to be taken.
    fn wake_at(&self) -> Option<Instant> {
        let open = self.calls.values().filter(|call| call.worker.is_none());
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
