//! Diverts progress notifications from the transport, in their order, before rmcp handles them, and
//! bounds what a server sends without having been asked.
//!
//! rmcp handles each incoming notification in a task of its own, so that progress arrives at a
//! handler in any order, and the result before the last of it. `Transport::receive` is called one
//! message after the other: here each progress notification goes straight to the reader of its
//! request, and the reader's channel is closed when the response passes.
//!
//! rmcp spawns a task for each notification and each request of a server. Of the other notifications this
//! client counts those of changed tools; all end here. A connection with more of them, or more requests, than an
//! [`Allowance`] permits is closed.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::io;
use std::time::Instant;

use rmcp::RoleClient;
use rmcp::model::{
    ClientNotification, ClientRequest, GetMeta, JsonRpcMessage, NumberOrString,
    ProgressNotification, ProgressToken, RequestId, ServerNotification,
};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::{mpsc, watch};

use super::transport::BoxTransport;
use crate::clock::now;
use crate::limits::{
    PROGRESS_MAX, RUNNING_JOBS_MAX, SERVER_NOTES_MAX, SERVER_NOTES_PER_S, SERVER_REQUESTS_MAX,
    SERVER_REQUESTS_PER_S,
};

/// A progress notification of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProgressEvent {
    /// A piece of the answer.
    Piece(String),
    /// A sign of life.
    Alive,
    /// The reader is too slow, or the server sent more than an answer may have.
    Overflow,
}

/// The reader of a request's progress, stored in the request's extensions.
#[derive(Clone)]
pub(super) struct ProgressSink(pub(super) mpsc::Sender<ProgressEvent>);

/// A transport that diverts progress.
pub(super) struct OrderedProgress {
    inner: BoxTransport<RoleClient>,
    readers: HashMap<NumberOrString, mpsc::Sender<ProgressEvent>>,
    tokens: HashMap<RequestId, NumberOrString>,
    /// Requests without a response.
    open: HashSet<RequestId>,
    /// Progress notifications that may still come: [`PROGRESS_MAX`] for each call.
    progress_left: usize,
    /// Notifications, and responses to nothing.
    notes: Allowance,
    /// Requests of the server.
    requests: Allowance,
    /// How often the server has said that its tools have changed.
    tools_announced: watch::Sender<u64>,
}

/// A token bucket: so many messages at once, and then so many a second.
struct Allowance {
    left: f64,
    most: f64,
    per_s: f64,
    at: Instant,
}

impl Allowance {
    fn new(most: u32, per_s: u32) -> Allowance {
        let most = f64::from(most);
        Allowance { left: most, most, per_s: f64::from(per_s), at: now() }
    }

    /// Takes one message; false if there are too many.
    fn take(&mut self) -> bool {
        let now = now();
        let refilled = now.duration_since(self.at).as_secs_f64() * self.per_s;
        (self.left, self.at) = ((self.left + refilled).min(self.most) - 1.0, now);
        self.left >= 0.0
    }
}

/// What becomes of a message of the server that rmcp does not handle.
enum Diverted {
    /// It ends here.
    Stop,
    /// The server sends without end: the connection is closed.
    Close(&'static str),
}

impl OrderedProgress {
    pub(super) fn new(
        inner: BoxTransport<RoleClient>,
        tools_announced: watch::Sender<u64>,
    ) -> OrderedProgress {
        OrderedProgress {
            inner,
            readers: HashMap::new(),
            tokens: HashMap::new(),
            open: HashSet::new(),
            progress_left: 0,
            notes: Allowance::new(SERVER_NOTES_MAX, SERVER_NOTES_PER_S),
            requests: Allowance::new(SERVER_REQUESTS_MAX, SERVER_REQUESTS_PER_S),
            tools_announced,
        }
    }

    /// Stores the reader of this request's progress.
    fn note(&mut self, message: &mut TxJsonRpcMessage<RoleClient>) {
        if let JsonRpcMessage::Notification(note) = message
            && let ClientNotification::CancelledNotification(cancelled) = &note.notification
            && let Some(id) = &cancelled.params.request_id
        {
            self.open.remove(id);
        }
        let JsonRpcMessage::Request(request) = message else {
            return;
        };
        // rmcp gives up the discovery after 10 s and initializes: an engine that was loading its model
        // answers both, and rmcp fails at the first answer
        if let ClientRequest::InitializeRequest(_) = &request.request {
            self.open.clear();
        }
        self.open.insert(request.id.clone());
        let token = request.request.get_meta().get_progress_token();
        let ClientRequest::CallToolRequest(call) = &mut request.request else {
            return;
        };
        let Some(ProgressSink(reader)) = call.extensions.remove::<ProgressSink>() else {
            return;
        };
        let Some(ProgressToken(token)) = token else {
            return;
        };
        self.tokens.insert(request.id.clone(), token.clone());
        self.readers.insert(token, reader);
        self.progress_left =
            (self.progress_left + PROGRESS_MAX).min(PROGRESS_MAX * RUNNING_JOBS_MAX);
    }

    /// Sends progress to its reader, and passes responses and requests on.
    fn divert(
        &mut self,
        message: RxJsonRpcMessage<RoleClient>,
    ) -> Result<RxJsonRpcMessage<RoleClient>, Diverted> {
        let id = match message {
            JsonRpcMessage::Notification(note) => return Err(self.noted(note.notification)),
            JsonRpcMessage::Response(ref response) => response.id.clone(),
            JsonRpcMessage::Error(ref error) => match &error.id {
                Some(id) => id.clone(),
                None if self.notes.take() => return Ok(message),
                None => return Err(Diverted::Close("errors")),
            },
            JsonRpcMessage::Request(_) if self.requests.take() => return Ok(message),
            JsonRpcMessage::Request(_) => return Err(Diverted::Close("requests")),
        };
        if self.answered(&id) {
            Ok(message)
        } else if self.notes.take() {
            Err(Diverted::Stop)
        } else {
            Err(Diverted::Close("responses to no request"))
        }
    }

    fn noted(&mut self, note: ServerNotification) -> Diverted {
        if let ServerNotification::ToolListChangedNotification(_) = note {
            self.tools_announced.send_modify(|n| *n += 1);
        }
        let ServerNotification::ProgressNotification(ProgressNotification { params, .. }) = note
        else {
            return if self.notes.take() {
                Diverted::Stop
            } else {
                Diverted::Close("notifications")
            };
        };
        if self.progress_left == 0 {
            return Diverted::Close("progress notifications");
        }
        self.progress_left -= 1;
        let ProgressToken(token) = params.progress_token;
        let beat = params.message.map_or(ProgressEvent::Alive, ProgressEvent::Piece);
        self.hand_on(&token, beat);
        Diverted::Stop
    }

    /// Ends the request with this response; false if there is none.
    fn answered(&mut self, id: &RequestId) -> bool {
        if let Some(token) = self.tokens.remove(id) {
            self.readers.remove(&token);
        }
        self.open.remove(id)
    }

    /// Never waits: one slow reader must not block the connection for all others.
    fn hand_on(&mut self, token: &NumberOrString, beat: ProgressEvent) {
        let Some(reader) = self.readers.get(token) else {
            return;
        };
        // one place is reserved for the overflow event
        if reader.capacity() > 1 {
            let _ = reader.try_send(beat);
        } else {
            let _ = reader.try_send(ProgressEvent::Overflow);
            self.readers.remove(token);
        }
    }

    /// Removes requests whose reader has gone; their responses may never come.
    fn sweep(&mut self) {
        self.readers.retain(|_, reader| !reader.is_closed());
        let readers = &self.readers;
        self.tokens.retain(|_, token| readers.contains_key(token));
    }
}

impl Transport<RoleClient> for OrderedProgress {
    type Error = io::Error;

    fn send(
        &mut self,
        mut item: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        self.sweep();
        self.note(&mut item);
        self.inner.send(item)
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        // bounded by what the other side sends
        loop {
            let message = self.inner.receive().await?;
            match self.divert(message) {
                Ok(message) => return Some(message),
                Err(Diverted::Stop) => {}
                Err(Diverted::Close(kind)) => {
                    tracing::warn!(kind, "a server sent too many messages without a call; closed");
                    return None;
                }
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.inner.close().await
    }
}
