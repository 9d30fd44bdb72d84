//! Replay cache: a request repeated under its idempotency key gets the stored answer.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{REPLAY_BYTES_MAX, REPLAY_MAX};
use crate::mqtt::AckGuard;

/// An idempotency key: the application, and its name for the request.
pub(super) type Key = (String, Vec<u8>);

/// Running requests and stored answers, by idempotency key.
#[derive(Debug, Default)]
pub(super) struct ReplayCache {
    entries: BTreeMap<Key, ReplayEntry>,
    /// Keys of stored answers, oldest first.
    answered: VecDeque<Key>,
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
    Answered(Bytes),
}

/// The result of a lookup.
#[derive(Debug)]
pub(super) enum ReplayLookup {
    /// The key is new: the request has to be run.
    New(AckGuard),
    /// The request is running; its acknowledgement is kept until it ends.
    Runs,
    /// The stored answer.
    Answered(Bytes, AckGuard),
    /// The key belongs to a different request.
    Conflict(AckGuard),
}

impl ReplayCache {
    /// Looks a key up; a new one is entered as running.
    pub(super) fn look_up(&mut self, key: &Key, content: u64, ack: AckGuard) -> ReplayLookup {
        match self.entries.get_mut(key) {
            None => {
                let entry = ReplayEntry { content, state: ReplayState::Running(Vec::new()) };
                self.entries.insert(key.clone(), entry);
                ReplayLookup::New(ack)
            }
            Some(entry) if entry.content != content => ReplayLookup::Conflict(ack),
            Some(ReplayEntry { state: ReplayState::Running(acks), .. }) => {
                acks.push(ack);
                ReplayLookup::Runs
            }
            Some(ReplayEntry { state: ReplayState::Answered(reply), .. }) => {
                ReplayLookup::Answered(reply.clone(), ack)
            }
        }
    }

    /// Ends a running request; `keep` is the answer to store, if any. Returns the acknowledgements of
    /// its repetitions.
    pub(super) fn ended(&mut self, key: &Key, keep: Option<Bytes>) -> Vec<AckGuard> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Vec::new();
        };
        let ReplayState::Running(acks) = &mut entry.state else {
            return Vec::new();
        };
        let acks = std::mem::take(acks);
        match keep.filter(|reply| reply.len() <= REPLAY_BYTES_MAX) {
            Some(reply) => {
                self.bytes += reply.len();
                entry.state = ReplayState::Answered(reply);
                self.answered.push_back(key.clone());
                self.shrink();
            }
            None => {
                self.entries.remove(key);
            }
        }
        acks
    }

    /// Removes the oldest answers until [`REPLAY_MAX`] and [`REPLAY_BYTES_MAX`] hold.
    fn shrink(&mut self) {
        while self.answered.len() > REPLAY_MAX || self.bytes > REPLAY_BYTES_MAX {
            let Some(oldest) = self.answered.pop_front() else {
                return;
            };
            if let Some(ReplayEntry { state: ReplayState::Answered(reply), .. }) =
                self.entries.remove(&oldest)
            {
                self.bytes -= reply.len();
            }
        }
    }
}
