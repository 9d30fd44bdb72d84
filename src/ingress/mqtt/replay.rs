//! Requests by their key: the same key gives the same answer, once it was given.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{REPLAY_BYTES_MAX, REPLAY_MAX};
use crate::mqtt::AckGuard;

/// Who asked under which name.
pub(super) type Key = (String, Vec<u8>);

/// Requests that run, and answers that may be asked for again.
#[derive(Debug, Default)]
pub(super) struct ReplayCache {
    entries: BTreeMap<Key, ReplayEntry>,
    /// Answered, oldest first.
    answered: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct ReplayEntry {
    /// Tells another request under the same key from the same request again.
    content: u64,
    state: ReplayState,
}

#[derive(Debug)]
enum ReplayState {
    Running(Vec<AckGuard>),
    Answered(Bytes),
}

/// What is known of a key.
#[derive(Debug)]
pub(super) enum ReplayLookup {
    /// Nothing: go on with the ticket.
    New(AckGuard),
    /// It runs; the ticket is kept until it ends.
    Runs,
    /// This was the answer.
    Answered(Bytes, AckGuard),
    /// Another request had this key.
    Conflict(AckGuard),
}

impl ReplayCache {
    /// Looks a key up, and notes it as running if it is not known.
    pub(super) fn look(&mut self, key: &Key, content: u64, ack: AckGuard) -> ReplayLookup {
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

    /// The request has ended; `keep` is the answer that may be asked for again. Gives back the
    /// tickets of those who asked meanwhile.
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

    /// Forgets the oldest answers until the bounds hold.
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
