//! Diverts progress notifications from the transport, in their order, before rmcp handles them.
//!
//! rmcp handles each incoming notification in a task of its own, so that progress arrives at a
//! handler in any order, and the result before the last of it. `Transport::receive` is called one
//! message after the other: here each progress notification goes straight to the reader of its
//! request, and the reader's channel is closed when the response passes.

use std::collections::HashMap;
use std::future::Future;
use std::io;

use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, GetMeta, JsonRpcMessage, NumberOrString, ProgressToken, RequestId,
    ServerNotification,
};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::mpsc;

use super::transport::BoxTransport;

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
}

impl OrderedProgress {
    pub(super) fn new(inner: BoxTransport<RoleClient>) -> OrderedProgress {
        OrderedProgress { inner, readers: HashMap::new(), tokens: HashMap::new() }
    }

    /// Stores the reader of this request's progress.
    fn note(&mut self, message: &mut TxJsonRpcMessage<RoleClient>) {
        let JsonRpcMessage::Request(request) = message else {
            return;
        };
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
    }

    /// Sends progress to its reader; returns every other message.
    fn divert(
        &mut self,
        message: RxJsonRpcMessage<RoleClient>,
    ) -> Option<RxJsonRpcMessage<RoleClient>> {
        match &message {
            JsonRpcMessage::Notification(note) => {
                let ServerNotification::ProgressNotification(progress) = &note.notification else {
                    return Some(message);
                };
                let ProgressToken(token) = &progress.params.progress_token;
                if !self.readers.contains_key(token) {
                    return Some(message);
                }
                let beat = match &progress.params.message {
                    Some(text) => ProgressEvent::Piece(text.clone()),
                    None => ProgressEvent::Alive,
                };
                self.hand_on(token, beat);
                None
            }
            JsonRpcMessage::Response(response) => {
                self.forget(&response.id);
                Some(message)
            }
            JsonRpcMessage::Error(error) => {
                if let Some(id) = &error.id {
                    self.forget(id);
                }
                Some(message)
            }
            JsonRpcMessage::Request(_) => Some(message),
        }
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

    fn forget(&mut self, id: &RequestId) {
        if let Some(token) = self.tokens.remove(id) {
            self.readers.remove(&token);
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
            if let Some(message) = self.divert(message) {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.inner.close().await
    }
}
