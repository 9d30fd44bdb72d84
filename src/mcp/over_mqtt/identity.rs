//! The identity of a worker with a service's key: its signed presence, its keys for calls, and the calls
//! that it has served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use hpke::kem::X25519HkdfSha256;
use hpke::{Kem, Serializable};

use super::keys::{Private, ServicePair};
use super::sealed::{CallNames, CallSeal, call_digest, open_call};
use super::signed::{
    LAST_OF_CONNECTION, Order, PresenceStatement, RefusalReason, RefusalStatement, Statement,
    WorkerState, base64,
};
use crate::catalog::public_key::{CallerPublicKey, KEY_BYTES};
use crate::clock;
use crate::limits::call::{CALL_KEY_CALLS_MAX, CALL_KEY_GRACE, CALL_KEY_MAX, REFUSALS_MAX};
use crate::mqtt::PresenceMessages;

/// The proof of one worker.
pub struct WorkerIdentity {
    service: ServicePair,
    /// The topic of its presence.
    topic: String,
    name: String,
    /// The keys of the callers that may call, by name.
    callers: BTreeMap<String, CallerPublicKey>,
    /// Grows with each start of the process.
    start: u64,
    state: Mutex<State>,
}

struct State {
    connection: u64,
    /// Messages on this connection.
    message: u64,
    key: CallKey,
    /// The key before, and until when it is accepted.
    previous: Option<(CallKey, Instant)>,
    /// Start of the present second, and the refusals that were signed in it.
    refusals: (Instant, u32),
}

/// A key pair for calls. It is never on disk: with its end the recorded calls can't be decrypted any more.
struct CallKey {
    private: Private,
    public: [u8; KEY_BYTES],
    until: Instant,
    /// The calls for this key, by caller and correlation data.
    served: BTreeSet<(String, Bytes)>,
}

impl CallKey {
    fn new(now: Instant) -> CallKey {
        let (private, public) = X25519HkdfSha256::gen_keypair();
        let public = public.to_bytes().into();
        CallKey { private, public, until: now + CALL_KEY_MAX, served: BTreeSet::new() }
    }
}

/// A call as it was received.
pub(super) struct ReceivedCall<'c> {
    pub(super) caller: &'c str,
    /// The key that it names, in Base64.
    pub(super) key: &'c str,
    pub(super) names: CallNames<'c>,
    pub(super) payload: &'c [u8],
}

/// What a received call is.
pub(super) enum OpenedCall {
    /// One to be served.
    New(Vec<u8>, Arc<CallSeal>),
    /// One that was served already.
    Repeated,
    /// None that this worker can serve.
    Refused(RefusalReason),
}

impl WorkerIdentity {
    /// The identity of the worker `name` with this presence topic.
    pub fn new(
        service: ServicePair,
        (topic, name): (String, String),
        callers: BTreeMap<String, CallerPublicKey>,
        start: u64,
    ) -> WorkerIdentity {
        let now = clock::now();
        let key = CallKey::new(now);
        let state = State { connection: 0, message: 0, key, previous: None, refusals: (now, 0) };
        WorkerIdentity { service, topic, name, callers, start, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the key for calls ends.
    pub(super) fn renew_at(&self) -> Instant {
        self.state().key.until
    }

    /// Replaces the key for calls if its time is over, or its memory full; returns whether it did, and so
    /// the presence is to be published.
    pub(super) fn renew(&self, now: Instant) -> bool {
        let mut state = self.state();
        let is_due = state.key.until <= now || state.key.served.len() >= CALL_KEY_CALLS_MAX;
        if is_due {
            let previous = std::mem::replace(&mut state.key, CallKey::new(now));
            state.previous = Some((previous, now + CALL_KEY_GRACE));
            state.message += 1;
        } else if state.previous.as_ref().is_some_and(|(_, until)| *until <= now) {
            state.previous = None;
        }
        is_due
    }

    /// Decrypts a call; each is served once.
    pub(super) fn open(&self, call: &ReceivedCall<'_>, now: Instant) -> OpenedCall {
        let Some(caller) = self.callers.get(call.caller) else {
            return OpenedCall::Refused(RefusalReason::Caller);
        };
        let mut state = self.state();
        let State { key, previous, .. } = &mut *state;
        let previous = previous.as_mut().filter(|(_, until)| *until > now).map(|(key, _)| key);
        let mut keys = [Some(key), previous].into_iter().flatten();
        let key = keys.find(|key| base64(&key.public) == call.key);
        // a call that is not remembered could be served twice
        let Some(key) = key.filter(|key| key.served.len() < 2 * CALL_KEY_CALLS_MAX) else {
            return OpenedCall::Refused(RefusalReason::Key);
        };
        let mark = Bytes::copy_from_slice(call.names.mark);
        let id = (call.caller.to_owned(), mark);
        if key.served.contains(&id) {
            return OpenedCall::Repeated;
        }
        match open_call(&key.private, caller, call.names, call.payload) {
            Some((text, seal)) => {
                key.served.insert(id);
                OpenedCall::New(text, Arc::new(seal))
            }
            None => OpenedCall::Refused(RefusalReason::Caller),
        }
    }

    /// The message that refuses a call; none if there were too many in this second, for a stranger can
    /// cause them.
    pub(super) fn refuse(&self, call: &ReceivedCall<'_>, reason: RefusalReason) -> Option<String> {
        let now = clock::now();
        let mut state = self.state();
        let (second, count) = &mut state.refusals;
        if now.duration_since(*second).as_secs() > 0 {
            (*second, *count) = (now, 0);
        }
        *count += 1;
        if *count > REFUSALS_MAX {
            return None;
        }
        drop(state);
        let digest = call_digest(call.names, call.key, call.payload);
        let statement = RefusalStatement { digest, worker: self.name.clone(), reason };
        statement.signed_by(&self.service).ok()
    }

    fn presence(&self, state: WorkerState, order: Order, key: Option<String>) -> Bytes {
        let topic = self.topic.clone();
        let statement = PresenceStatement { topic, state, order, key };
        // numbers and text can always be written
        statement.signed_by(&self.service).unwrap_or_default().into()
    }
}

impl PresenceMessages for WorkerIdentity {
    fn begin(&self) {
        let mut state = self.state();
        state.connection += 1;
        state.message = 0;
    }

    fn online(&self) -> Bytes {
        let state = self.state();
        let order = [self.start, state.connection, state.message];
        let key = base64(&state.key.public);
        drop(state);
        self.presence(WorkerState::Online, order, Some(key))
    }

    fn offline(&self) -> Bytes {
        let order = [self.start, self.state().connection, LAST_OF_CONNECTION];
        self.presence(WorkerState::Offline, order, None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::CallerPair;
    use super::super::sealed::seal_call;
    use super::*;
    use crate::catalog::secret::Secret;
    use crate::limits::call::CALL_KEY_GRACE;

    fn caller(seed: u8) -> CallerPair {
        CallerPair::new(&Secret([seed; KEY_BYTES])).unwrap()
    }

    fn identity(start: u64) -> WorkerIdentity {
        let service = ServicePair::new(&Secret([1; KEY_BYTES])).unwrap();
        let callers = [("c".to_owned(), caller(2).public())].into();
        WorkerIdentity::new(service, ("a/worker/w".to_owned(), "w".to_owned()), callers, start)
    }

    fn statement(worker: &WorkerIdentity, message: &Bytes) -> PresenceStatement {
        PresenceStatement::verified(&worker.service.public(), message).unwrap()
    }

    /// Sends a call of this caller under this name; whether it is served, and why not.
    fn call(
        worker: &WorkerIdentity,
        pair: &CallerPair,
        (name, mark): (&str, &[u8]),
        now: Instant,
    ) -> Result<(), Option<RefusalReason>> {
        let sent = Sent::new(worker, pair, mark);
        sent.arrive(worker, name, now)
    }

    struct Sent {
        key: String,
        mark: Vec<u8>,
        payload: Bytes,
    }

    impl Sent {
        fn new(worker: &WorkerIdentity, pair: &CallerPair, mark: &[u8]) -> Sent {
            let public = worker.state().key.public;
            let names = CallNames { topic: "a/call/w", answer: "a/answer/c", mark };
            let (payload, _) = seal_call(pair, &public, names, b"{}").unwrap();
            Sent { key: base64(&public), mark: mark.to_vec(), payload }
        }

        fn arrive(
            &self,
            worker: &WorkerIdentity,
            caller: &str,
            now: Instant,
        ) -> Result<(), Option<RefusalReason>> {
            let names = CallNames { topic: "a/call/w", answer: "a/answer/c", mark: &self.mark };
            let call = ReceivedCall { caller, key: &self.key, names, payload: &self.payload };
            match worker.open(&call, now) {
                OpenedCall::New(text, _) => {
                    assert_eq!(text, b"{}");
                    Ok(())
                }
                OpenedCall::Repeated => Err(None),
                OpenedCall::Refused(reason) => Err(Some(reason)),
            }
        }
    }

    #[test]
    fn a_call_is_served_once_by_one_process() {
        let (worker, now) = (identity(1), clock::now());
        let sent = Sent::new(&worker, &caller(2), b"one");
        assert_eq!(sent.arrive(&worker, "c", now), Ok(()));
        assert_eq!(sent.arrive(&worker, "c", now), Err(None), "twice");
        // the same worker after a restart, and another one with the same service key
        let other = identity(2);
        assert_eq!(sent.arrive(&other, "c", now), Err(Some(RefusalReason::Key)));
        // a changed mark makes no new call of it
        let again = Sent { mark: b"two".to_vec(), ..sent };
        assert_eq!(again.arrive(&worker, "c", now), Err(Some(RefusalReason::Caller)));
    }

    #[test]
    fn only_known_callers_are_served() {
        let (worker, now) = (identity(1), clock::now());
        let wrong = Err(Some(RefusalReason::Caller));
        assert_eq!(call(&worker, &caller(3), ("c", b"1"), now), wrong);
        assert_eq!(call(&worker, &caller(2), ("d", b"2"), now), wrong);
        assert_eq!(call(&worker, &caller(2), ("c", b"3"), now), Ok(()));
    }

    #[test]
    fn keys_end_and_their_calls_with_them() {
        let (worker, now) = (identity(1), clock::now());
        let known = caller(2);
        let (served, late) = (Sent::new(&worker, &known, b"1"), Sent::new(&worker, &known, b"2"));
        assert_eq!(served.arrive(&worker, "c", now), Ok(()));
        assert!(!worker.renew(now));
        let then = worker.renew_at();
        assert!(worker.renew(then) && !worker.renew(then));
        // a call that was on its way is served, one that was served already is not
        assert_eq!(late.arrive(&worker, "c", then), Ok(()));
        assert_eq!(served.arrive(&worker, "c", then), Err(None));
        let (over, third) = (then + CALL_KEY_GRACE, Sent::new(&worker, &known, b"3"));
        assert_eq!(served.arrive(&worker, "c", over), Err(Some(RefusalReason::Key)));
        assert_eq!(third.arrive(&worker, "c", over), Ok(()));
        assert!(!worker.renew(over));
        assert!(worker.state().previous.is_none(), "the private key is forgotten");
    }

    #[test]
    fn a_full_memory_renews_the_key() {
        let (worker, now) = (identity(1), clock::now());
        let mark = |n: usize| ("c".to_owned(), Bytes::from(n.to_be_bytes().to_vec()));
        worker.state().key.served.extend((0..CALL_KEY_CALLS_MAX).map(mark));
        assert!(worker.renew(now));
        assert_eq!(call(&worker, &caller(2), ("c", b"1"), now), Ok(()));
    }

    #[test]
    fn presence_has_an_order() {
        let worker = identity(7);
        let mut orders = Vec::new();
        for connection in 0..2 {
            worker.begin();
            let online = statement(&worker, &worker.online());
            assert_eq!((online.state, online.order[1]), (WorkerState::Online, connection + 1));
            orders.push(online.order);
            assert!(worker.renew(worker.renew_at()));
            let renewed = statement(&worker, &worker.online());
            assert_ne!(renewed.key, online.key);
            orders.push(renewed.order);
            let offline = statement(&worker, &worker.offline());
            assert_eq!((offline.state, offline.key), (WorkerState::Offline, None));
            orders.push(offline.order);
        }
        assert!(orders.is_sorted_by(|one, next| one < next), "{orders:?}");
    }

    #[test]
    fn refusals_are_bounded() {
        let worker = identity(1);
        let names = CallNames { topic: "a/call/w", answer: "a/answer/c", mark: b"1" };
        let call = ReceivedCall { caller: "c", key: "k", names, payload: b"p" };
        let signed = (0..3 * REFUSALS_MAX).filter_map(|_| worker.refuse(&call, RefusalReason::Key));
        let signed: Vec<String> = signed.collect();
        assert!(signed.len() < 3 * REFUSALS_MAX as usize, "{}", signed.len());
        let said = RefusalStatement::verified(&worker.service.public(), signed[0].as_bytes());
        let said = said.unwrap();
        assert_eq!((said.digest, said.reason), (call_digest(names, "k", b"p"), RefusalReason::Key));
        assert_ne!(call_digest(names, "kp", b""), call_digest(names, "k", b"p"));
    }
}
