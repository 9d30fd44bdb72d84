//! Requests by their key: the same key gives the same answer, once it was given.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::{REPLAY_BYTES_MAX, REPLAY_MAX};
use crate::mqtt::Ticket;

/// Who asked under which name.
pub(super) type Key = (String, Vec<u8>);

/// Requests that run, and answers that may be asked for again.
#[derive(Debug, Default)]
pub(super) struct Seen {
    entries: BTreeMap<Key, Entry>,
    /// Answered, oldest first.
    answered: VecDeque<Key>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// Tells another request under the same key from the same request again.
    content: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(Vec<Ticket>),
    Answered(Bytes),
}

/// What is known of a key.
#[derive(Debug)]
pub(super) enum Known {
    /// Nothing: go on with the ticket.
    New(Ticket),
    /// It runs; the ticket is kept until it ends.
    Runs,
    /// This was the answer.
    Answered(Bytes, Ticket),
    /// Another request had this key.
    Conflict(Ticket),
}

impl Seen {
    /// Looks a key up, and notes it as running if it is not known.
    pub(super) fn look(&mut self, key: &Key, content: u64, ticket: Ticket) -> Known {
        match self.entries.get_mut(key) {
            None => {
                let entry = Entry { content, state: State::Running(Vec::new()) };
                self.entries.insert(key.clone(), entry);
                Known::New(ticket)
            }
            Some(entry) if entry.content != content => Known::Conflict(ticket),
            Some(Entry { state: State::Running(tickets), .. }) => {
                tickets.push(ticket);
                Known::Runs
            }
            Some(Entry { state: State::Answered(reply), .. }) => {
                Known::Answered(reply.clone(), ticket)
            }
        }
    }

    /// The request has ended; `keep` is the answer that may be asked for again. Gives back the
    /// tickets of those who asked meanwhile.
    pub(super) fn ended(&mut self, key: &Key, keep: Option<Bytes>) -> Vec<Ticket> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Vec::new();
        };
        let State::Running(tickets) = &mut entry.state else {
            return Vec::new();
        };
        let tickets = std::mem::take(tickets);
        match keep.filter(|reply| reply.len() <= REPLAY_BYTES_MAX) {
            Some(reply) => {
                self.bytes += reply.len();
                entry.state = State::Answered(reply);
                self.answered.push_back(key.clone());
                self.shrink();
            }
            None => {
                self.entries.remove(key);
            }
        }
        tickets
    }

    /// Forgets the oldest answers until the bounds hold.
    fn shrink(&mut self) {
        while self.answered.len() > REPLAY_MAX || self.bytes > REPLAY_BYTES_MAX {
            let Some(oldest) = self.answered.pop_front() else {
                return;
            };
            if let Some(Entry { state: State::Answered(reply), .. }) = self.entries.remove(&oldest)
            {
                self.bytes -= reply.len();
            }
        }
    }
}
