//! Replay cache: a request repeated under its idempotency key gets the stored answer, and one that the
//! broker delivers again has no second reply.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{REPLAY_BYTES_MAX, REPLAY_MAX};
use crate::mqtt::AckGuard;
use crate::request::client::Client;

/// An idempotency key: the client, and its name for the request.
pub(super) type Key = (Client, Vec<u8>);

/// Running requests and stored answers, by idempotency key.
#[derive(Debug, Default)]
pub(super) struct ReplayCache {
    entries: BTreeMap<Key, ReplayEntry>,
    /// What was replied, by principal.
    replied: BTreeMap<String, Replied>,
}

/// The replied requests of one principal.
#[derive(Debug, Default)]
struct Replied {
    /// Their keys, oldest first; one may be listed several times.
    keys: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct ReplayEntry {
    /// Hash of the request: a different request under the same key is a conflict.
    content: u64,
    state: ReplayState,
}

#[derive(Debug)]
enum ReplayState {
    /// With the repetitions that wait for the same answer.
    Running(Vec<AckGuard>),
    /// Answered, and the broker has not taken the reply yet; with what the broker delivered again.
    Publishing { reply: Bytes, is_kept: bool, repeated: Vec<AckGuard> },
    /// The broker has taken the reply; it is stored, if its client may ask for it again.
    Replied(Option<Bytes>),
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receipt {
    /// From its client, with a key of the client's.
    Named,
    /// From its client, without a key.
    Unnamed,
    /// From the broker, which delivers it again since it was not acknowledged.
    Again,
}

/// The result of a lookup.
#[derive(Debug)]
pub(super) enum ReplayLookup {
    /// The key is new: the request has to be run.
    New(AckGuard),
    /// An equal request is known; this one has no key of its client's, and has to be run too.
    Unkeyed(AckGuard),
    /// The request is running; its acknowledgement is kept until it ends.
    Runs,
    /// The request has had its reply, and was not acknowledged in time.
    Replied(AckGuard),
    /// The stored answer.
    Answered(Bytes, AckGuard),
    /// The key belongs to a different request.
    Conflict(AckGuard),
}

impl ReplayCache {
    /// Looks a key up; a new one is entered as running.
    pub(super) fn look_up(
        &mut self,
        key: &Key,
        content: u64,
        receipt: Receipt,
        ack: AckGuard,
    ) -> ReplayLookup {
        let Some(entry) = self.entries.get_mut(key) else {
            return self.enter(key, content, ack);
        };
        let is_same = entry.content == content;
        match (&mut entry.state, receipt) {
            (ReplayState::Running(_) | ReplayState::Publishing { .. }, Receipt::Unnamed) => {
                ReplayLookup::Unkeyed(ack)
            }
            // a failed answer is not stored: its client may try again
            (ReplayState::Replied(_), Receipt::Unnamed)
            | (ReplayState::Replied(None), Receipt::Named) => self.enter(key, content, ack),
            (_, Receipt::Named | Receipt::Again) if !is_same => ReplayLookup::Conflict(ack),
            (ReplayState::Running(acks), Receipt::Named | Receipt::Again) => {
                acks.push(ack);
                ReplayLookup::Runs
            }
            (ReplayState::Publishing { repeated, .. }, Receipt::Again) => {
                repeated.push(ack);
                ReplayLookup::Runs
            }
            (ReplayState::Replied(_), Receipt::Again) => ReplayLookup::Replied(ack),
            (
                ReplayState::Publishing { reply, .. } | ReplayState::Replied(Some(reply)),
                Receipt::Named,
            ) => ReplayLookup::Answered(reply.clone(), ack),
        }
    }

    fn enter(&mut self, key: &Key, content: u64, ack: AckGuard) -> ReplayLookup {
        let entry = ReplayEntry { content, state: ReplayState::Running(Vec::new()) };
        if let Some(old) = self.entries.insert(key.clone(), entry)
            && let Some(replied) = self.replied.get_mut(&key.0.principal)
        {
            replied.bytes -= old.state.bytes(key);
        }
        ReplayLookup::New(ack)
    }

    /// Notes the reply of a running request; `is_kept` states whether it is stored once it is published.
    /// Returns the acknowledgements of its repetitions.
    pub(super) fn answered(&mut self, key: &Key, reply: Bytes, is_kept: bool) -> Vec<AckGuard> {
        let Some(entry) = self.entries.get_mut(key) else { return Vec::new() };
        // a later request with the same text is another request
        let is_hash = key.1.starts_with(b"h:");
        let is_kept = is_kept && !is_hash && reply.len() <= REPLAY_BYTES_MAX;
        let publishing = ReplayState::Publishing { reply, is_kept, repeated: Vec::new() };
        match std::mem::replace(&mut entry.state, publishing) {
            ReplayState::Running(acks) => acks,
            ReplayState::Publishing { repeated, .. } => repeated,
            ReplayState::Replied(_) => Vec::new(),
        }
    }

    /// Notes that a reply was published. Returns the acknowledgements of what the broker delivered
    /// again meanwhile.
    pub(super) fn published(&mut self, key: &Key) -> Vec<AckGuard> {
        let Some(entry) = self.entries.get_mut(key) else { return Vec::new() };
        let ReplayState::Publishing { reply, is_kept, repeated } = &mut entry.state else {
            return Vec::new();
        };
        let acks = std::mem::take(repeated);
        let stored = is_kept.then(|| std::mem::take(reply));
        entry.state = ReplayState::Replied(stored);
        let replied = self.replied.entry(key.0.principal.clone()).or_default();
        replied.bytes += entry.state.bytes(key);
        replied.keys.push_back(key.clone());
        self.shrink();
        acks
    }

    /// Removes the oldest replied requests of the principal that has the most, until [`REPLAY_MAX`] and
    /// [`REPLAY_BYTES_MAX`] hold for all together.
    fn shrink(&mut self) {
        // bounded: each turn takes one key away
        while self.replied.values().map(|replied| replied.keys.len()).sum::<usize>() > REPLAY_MAX
            || self.replied.values().map(|replied| replied.bytes).sum::<usize>() > REPLAY_BYTES_MAX
        {
            let Some((principal, most)) =
                self.replied.iter_mut().max_by_key(|(_, replied)| replied.size())
            else {
                return;
            };
            let Some(oldest) = most.keys.pop_front() else { return };
            let state = self.entries.get(&oldest).map(|entry| &entry.state);
            if let Some(state @ ReplayState::Replied(_)) = state {
                most.bytes -= state.bytes(&oldest);
                self.entries.remove(&oldest);
            }
            if most.keys.is_empty() {
                let principal = principal.clone();
                self.replied.remove(&principal);
            }
        }
    }
}

impl Replied {
    /// How much it has of both bounds, in bytes.
    fn size(&self) -> usize {
        self.bytes.max(self.keys.len() * (REPLAY_BYTES_MAX / REPLAY_MAX))
    }
}

impl ReplayState {
    /// The bytes of a replied request: a client's key may have 64 KiB.
    fn bytes(&self, key: &Key) -> usize {
        match self {
            ReplayState::Replied(stored) => key.1.len() + stored.as_ref().map_or(0, Bytes::len),
            ReplayState::Running(_) | ReplayState::Publishing { .. } => 0,
        }
    }
}
