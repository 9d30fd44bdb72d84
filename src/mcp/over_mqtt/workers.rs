//! The workers of a service, as a caller knows them from their presence.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::signed::{Order, PresenceStatement, Statement, WorkerState};
use super::{ONLINE, ServiceTopics};
use crate::catalog::public_key::{KEY_BYTES, ServicePublicKey, key_of};
use crate::limits::call::WORKERS_MAX;
use crate::request::name::is_name;

/// A worker that is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OnlineWorker {
    /// Its present key for calls; none in a service without a key.
    pub(super) key: Option<[u8; KEY_BYTES]>,
    /// The start of its process; a call of an earlier start has no answer.
    pub(super) start: u64,
}

/// The workers that are online, by name.
pub(super) type OnlineWorkers = BTreeMap<String, OnlineWorker>;

/// What the presence topics of a service say.
pub(super) struct Workers {
    pub(super) topics: ServiceTopics,
    /// The pinned key, which must have signed it; a service without one is called in plain text.
    pub(super) key: Option<ServicePublicKey>,
    online: watch::Sender<OnlineWorkers>,
    /// The latest message of each worker, also of those that are offline.
    latest: BTreeMap<String, Order>,
    /// Why a message of a worker was ignored.
    ignored: watch::Sender<Option<String>>,
}

impl Workers {
    pub(super) fn new(topics: ServiceTopics, key: Option<ServicePublicKey>) -> Workers {
        Workers {
            topics,
            key,
            online: watch::Sender::default(),
            latest: BTreeMap::new(),
            ignored: watch::Sender::default(),
        }
    }

    pub(super) fn online(&self) -> watch::Receiver<OnlineWorkers> {
        self.online.subscribe()
    }

    pub(super) fn ignored(&self) -> watch::Receiver<Option<String>> {
        self.ignored.subscribe()
    }

    /// Notes what was said on the presence topic of `worker`.
    ///
    /// # Errors
    /// Why it is ignored, with a remedy.
    pub(super) fn note(&mut self, worker: &str, said: &[u8]) -> Result<(), String> {
        let noted = match self.key {
            Some(key) => self.note_signed(worker, said, &key),
            None => self.note_plain(worker, said),
        };
        if let Err(why) = &noted {
            self.ignored.send_if_modified(|old| old.replace(why.clone()).as_ref() != Some(why));
        }
        noted
    }

    fn note_plain(&self, worker: &str, said: &[u8]) -> Result<(), String> {
        let is_there = said == ONLINE && is_name(worker);
        self.online.send_if_modified(|online| {
            if is_there {
                let plain = OnlineWorker { key: None, start: 0 };
                let has_room = online.len() < WORKERS_MAX || online.contains_key(worker);
                has_room && online.insert(worker.to_owned(), plain) != Some(plain)
            } else {
                online.remove(worker).is_some()
            }
        });
        if PresenceStatement::is_form_of(said) {
            return Err(format!(
                "the worker {worker:?} accepts encrypted calls only: set service_key of the server to the \
                 public key that `pilotlight key` prints there"
            ));
        }
        Ok(())
    }

    fn note_signed(
        &mut self,
        worker: &str,
        said: &[u8],
        key: &ServicePublicKey,
    ) -> Result<(), String> {
        if !is_name(worker) {
            return Err("a presence topic has no valid name".to_owned());
        }
        let statement = PresenceStatement::verified(key, said);
        let statement = statement.filter(|said| said.topic == self.topics.worker(worker));
        let Some(PresenceStatement { state, order, key: call_key, .. }) = statement else {
            return Err(self.unproven(worker, said, key));
        };
        match self.latest.get(worker) {
            Some(latest) if *latest == order => return Ok(()),
            Some(latest) if *latest > order => {
                return Err(format!(
                    "presence of the worker {worker:?} is older than that before: somebody repeats \
                     messages, or the clock and the state folder of the worker were reset; then \
                     restart this service"
                ));
            }
            Some(_) => {}
            None => self.make_room()?,
        }
        let call_key = call_key.as_deref().and_then(key_of);
        self.latest.insert(worker.to_owned(), order);
        self.online.send_if_modified(|online| match (state, call_key) {
            (WorkerState::Online, Some(_)) => {
                let now = OnlineWorker { key: call_key, start: order[0] };
                online.insert(worker.to_owned(), now) != Some(now)
            }
            (WorkerState::Online, None) | (WorkerState::Offline, _) => {
                online.remove(worker).is_some()
            }
        });
        self.ignored.send_replace(None);
        Ok(())
    }

    /// Forgets a worker that is offline if there are too many.
    fn make_room(&mut self) -> Result<(), String> {
        if self.latest.len() < WORKERS_MAX {
            return Ok(());
        }
        let online = self.online.borrow();
        let offline = self.latest.keys().find(|worker| !online.contains_key(*worker)).cloned();
        drop(online);
        match offline {
            Some(worker) => {
                self.latest.remove(&worker);
                Ok(())
            }
            None => Err(format!("there are more than {WORKERS_MAX} workers")),
        }
    }

    /// Why a presence message does not count.
    fn unproven(&self, worker: &str, said: &[u8], key: &ServicePublicKey) -> String {
        let topic = self.topics.worker(worker);
        if PresenceStatement::is_form_of(said) {
            return format!(
                "presence on {topic} is not signed with the expected key {key}: the worker has another \
                 key (set service_key to what `pilotlight key` prints there), or a stranger poses as it"
            );
        }
        format!(
            "presence on {topic} is not signed, expected is the key {key}: the worker accepts calls in \
             plain text (set pilotlight.mqtt.callers there), or a stranger poses as it"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::OFFLINE;
    use super::super::keys::ServicePair;
    use super::super::signed::{LAST_OF_CONNECTION, base64};
    use super::*;
    use crate::catalog::secret::Secret;

    fn pair(seed: u8) -> ServicePair {
        ServicePair::new(&Secret([seed; KEY_BYTES])).unwrap()
    }

    fn said(seed: u8, worker: &str, state: WorkerState, order: Order) -> String {
        let topic = format!("a/worker/{worker}");
        let key =
            (state == WorkerState::Online).then(|| base64(&[order[2].to_le_bytes()[0]; KEY_BYTES]));
        PresenceStatement { topic, state, order, key }.signed_by(&pair(seed)).unwrap()
    }

    fn workers(key: Option<u8>) -> Workers {
        Workers::new(ServiceTopics::new("a"), key.map(|seed| pair(seed).public()))
    }

    fn online(workers: &Workers) -> Vec<String> {
        workers.online.borrow().keys().cloned().collect()
    }

    #[test]
    fn who_has_the_key_is_online() {
        use WorkerState::{Offline, Online};
        let mut workers = workers(Some(1));
        let mut note = |who: &str, said: &str| workers.note(who, said.as_bytes());
        for (stranger, expected) in [
            (said(2, "w", Online, [1, 1, 0]), "not signed with the expected key service-ed25519:"),
            (said(1, "v", Online, [1, 1, 0]), "not signed with the expected key"),
            (r#"{"state":"online"}"#.to_owned(), "is not signed, expected is the key service-"),
        ] {
            let why = note("w", &stranger).unwrap_err();
            assert!(why.contains(expected) && why.contains("a/worker/w"), "{why}");
        }
        let first = said(1, "w", Online, [1, 1, 0]);
        note("w", &first).unwrap();
        // a forged end, an old one, and one of another worker
        note("w", std::str::from_utf8(OFFLINE).unwrap()).unwrap_err();
        note("w", &said(1, "w", Offline, [1, 0, LAST_OF_CONNECTION])).unwrap_err();
        note("w", &said(1, "v", Offline, [9, 0, LAST_OF_CONNECTION])).unwrap_err();
        note("w", "").unwrap_err();
        assert_eq!(online(&workers), ["w"]);
        assert_eq!(workers.online.borrow()["w"].key, Some([0; KEY_BYTES]));
        // a new key on the same connection, and no way back
        workers.note("w", said(1, "w", Online, [1, 1, 5]).as_bytes()).unwrap();
        workers.note("w", first.as_bytes()).unwrap_err();
        assert_eq!(workers.online.borrow()["w"].key, Some([5; KEY_BYTES]));
        // its own end, which does not hold for the next connection
        let end = said(1, "w", Offline, [1, 1, LAST_OF_CONNECTION]);
        workers.note("w", end.as_bytes()).unwrap();
        assert!(online(&workers).is_empty());
        workers.note("w", said(1, "w", Online, [1, 1, 6]).as_bytes()).unwrap_err();
        workers.note("w", said(1, "w", Online, [1, 2, 0]).as_bytes()).unwrap();
        workers.note("w", end.as_bytes()).unwrap_err();
        assert_eq!(online(&workers), ["w"]);
    }

    #[test]
    fn without_a_key_what_is_said_counts() {
        let mut workers = workers(None);
        workers.note("w", ONLINE).unwrap();
        workers.note("a/b", ONLINE).unwrap();
        assert_eq!(online(&workers), ["w"]);
        workers.note("w", OFFLINE).unwrap();
        assert!(online(&workers).is_empty());
        let signed = said(1, "w", WorkerState::Online, [1, 1, 0]);
        let why = workers.note("w", signed.as_bytes()).unwrap_err();
        assert!(why.contains("accepts encrypted calls only: set service_key"), "{why}");
        assert!(online(&workers).is_empty());
    }

    #[test]
    fn there_is_room_for_so_many() {
        use WorkerState::{Offline, Online};
        let mut workers = workers(Some(1));
        for n in 0..WORKERS_MAX {
            let name = format!("w{n}");
            workers.note(&name, said(1, &name, Online, [1, 1, 0]).as_bytes()).unwrap();
        }
        let more = said(1, "more", Online, [1, 1, 0]);
        workers.note("more", more.as_bytes()).unwrap_err();
        let end = said(1, "w5", Offline, [1, 1, LAST_OF_CONNECTION]);
        workers.note("w5", end.as_bytes()).unwrap();
        workers.note("more", more.as_bytes()).unwrap();
        assert_eq!(online(&workers).len(), WORKERS_MAX);
    }
}
