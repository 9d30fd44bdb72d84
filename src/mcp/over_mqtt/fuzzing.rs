//! Entry points of the fuzz targets `parts` and `envelope`: texts in several messages, signed presence, and
//! encrypted calls.

use bytes::Bytes;

use super::identity::{OpenedCall, ReceivedCall, WorkerIdentity};
use super::keys::{CallerPair, ServicePair};
use super::parts::{Numbers, Parts};
use super::sealed::{CallNames, seal_call};
use super::signed::{PresenceStatement, Statement, base64};
use super::workers::Workers;
use super::{MORE, SEQ, ServiceTopics};
use crate::catalog::public_key::{KEY_BYTES, key_of};
use crate::catalog::secret::Secret;
use crate::clock;
use crate::mqtt::PresenceMessages;

/// The text of an answer in messages of at most `most` bytes, as they are sent, and what is read of them
/// if each comes twice.
///
/// # Errors
/// As for an answer.
pub fn there_and_back(text: &Bytes, most: usize) -> Result<Option<Bytes>, String> {
    let mut parts = Parts::default();
    let mut whole = None;
    for (payload, properties) in Numbers::default().split(text.clone(), most) {
        let read = parts.take(&payload, &properties)?;
        whole = whole.or(read);
        if parts.take(&payload, &properties)?.is_some() {
            return Err("a repeated message counts twice".to_owned());
        }
    }
    Ok(whole)
}

/// A message of a stranger.
#[derive(Debug, Clone)]
pub struct PartMessage {
    /// Its number, as it is stated.
    pub seq: String,
    /// Whether more of the text follows.
    pub has_more: bool,
    /// Its part of the text.
    pub payload: Bytes,
}

/// The texts that are read of these messages.
///
/// # Errors
/// As for an answer.
pub fn joined(messages: Vec<PartMessage>) -> Result<Vec<Bytes>, String> {
    let mut parts = Parts::default();
    let mut whole = Vec::new();
    for PartMessage { seq, has_more, payload } in messages {
        let mut properties = vec![(SEQ.to_owned(), seq)];
        if has_more {
            properties.push((MORE.to_owned(), "1".to_owned()));
        }
        whole.extend(parts.take(&payload, &properties)?);
    }
    Ok(whole)
}

const NAMES: CallNames<'_> = CallNames { topic: "a/call/w", answer: "a/answer/c", mark: b"mark" };

fn service() -> ServicePair {
    ServicePair::new(&Secret([1; KEY_BYTES])).expect("any seed is one")
}

/// Notes a presence message of a stranger; with `is_signed`, these bytes as a statement that the service
/// has signed. The worker that is online, if it counts.
///
/// # Errors
/// Why it is ignored.
pub fn presence(said: &[u8], is_signed: bool) -> Result<Option<[u8; KEY_BYTES]>, String> {
    let service = service();
    let mut workers = Workers::new(ServiceTopics::new("a"), Some(service.public()));
    let message = if is_signed {
        let signed = format!("{}.{}", PresenceStatement::header(), base64(said));
        format!("{signed}.{}", base64(service.0.sign(signed.as_bytes()).as_ref())).into_bytes()
    } else {
        said.to_vec()
    };
    workers.note("w", &message)?;
    let online = workers.online();
    let worker = online.borrow().get("w").copied();
    Ok(worker.and_then(|worker| worker.key))
}

/// The text of a call that a worker reads: of these bytes as a stranger sends them, and of these bytes as
/// a known caller encrypts them.
pub fn call(bytes: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let caller = CallerPair::new(&Secret([2; KEY_BYTES])).expect("any seed is one");
    let known = [("c".to_owned(), caller.public())].into();
    let worker = ("a/worker/w".to_owned(), "w".to_owned());
    let worker = WorkerIdentity::new(service(), worker, known, 1);
    let online = PresenceStatement::verified(&service().public(), &worker.online());
    let key = online.and_then(|said| said.key).unwrap_or_default();
    let open = |payload: &[u8]| {
        let received = ReceivedCall { caller: "c", key: &key, names: NAMES, payload };
        match worker.open(&received, clock::now()) {
            OpenedCall::New(text, _) => Some(text),
            OpenedCall::Repeated => None,
            OpenedCall::Refused(reason) => {
                worker.refuse(&received, reason).expect("a first refusal is signed");
                None
            }
        }
    };
    let stranger = open(bytes);
    let sealed = key_of(&key).and_then(|key| seal_call(&caller, &key, NAMES, bytes));
    (stranger, sealed.and_then(|(payload, _)| open(&payload)))
}
