//! Admission of HTTP connections and requests: how many there may be, in all and for each address, and
//! which connection is closed for a new one.
//!
//! A connection costs a file and little memory, so there may be more of them than requests with an
//! answer: a health check is answered while all of those are. A connection that waits for its client is
//! closed if its place is needed, that of the address with the most connections first, and of these the
//! one that has waited longest.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::limits::{
    HTTP_ADDRESS_REQUESTS_MAX, HTTP_APP_REQUESTS_MAX, HTTP_BODIES_BYTES_MAX, HTTP_PLACE_WAIT,
    HTTP_REMOTE_REQUESTS_MAX, HTTP_REQUESTS_MAX, HTTP_RESERVE, HTTP_SHED_AFTER,
};
use crate::request::refusal::{Code, Refusal};

/// Time after which a request that found the service full may be sent again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All open connections; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Admission(Arc<Mutex<Table>>);

/// One open connection; it leaves the table when this is dropped.
pub(super) struct Connection {
    admission: Admission,
    number: u64,
    closing: CancellationToken,
}

#[derive(Default)]
struct Table {
    open: BTreeMap<u64, Entry>,
    /// Number of the next connection.
    next: u64,
}

struct Entry {
    address: IpAddr,
    /// The application of its last request, if that has a token of its own.
    app: Option<String>,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// Bytes of the body that is being received.
    body: usize,
    closing: CancellationToken,
}

/// What a connection waits for. The order is that in which connections are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The head of a request.
    Head,
    /// The body of a request.
    Body,
    /// The service: a request is being answered.
    Answer,
}

impl Admission {
    /// Adds a connection of this address; `None` if there are too many and none can be closed for it. For
    /// a program of this machine a place is awaited for [`HTTP_PLACE_WAIT`]: many that connect at once
    /// are no attack.
    pub(super) async fn admit(&self, address: IpAddr) -> Option<Connection> {
        let address = grouped(address);
        let began = clock::now();
        // bounded by the time
        loop {
            let closing = CancellationToken::new();
            let now = clock::now();
            if let Some(number) = self.lock().admit(address, closing.clone(), now) {
                return Some(Connection { admission: self.clone(), number, closing });
            }
            if !address.is_loopback() || now.duration_since(began) > HTTP_PLACE_WAIT {
                return None;
            }
            tokio::time::sleep(HTTP_PLACE_WAIT / 100).await;
        }
    }

    /// Closes the connection that has waited longest, if any waits.
    pub(super) fn close_one(&self) {
        self.lock().close(clock::now(), |_| true);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Waits until the connection has to be closed for another one.
    pub(super) async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// The next request is awaited.
    pub(super) fn waits_for_head(&self) {
        self.admission.lock().enter(self.number, Phase::Head, clock::now());
    }

    /// The head of a request has arrived.
    pub(super) fn has_head(&self) {
        self.admission.lock().enter(self.number, Phase::Answer, clock::now());
    }

    /// The body of the request is awaited.
    pub(super) fn waits_for_body(&self) {
        self.admission.lock().enter(self.number, Phase::Body, clock::now());
    }

    /// A part of the body has arrived. If all bodies together exceed their bound, the connection with
    /// the largest one is closed.
    pub(super) fn received(&self, bytes: usize) {
        self.admission.lock().received(self.number, bytes);
    }

    /// The body has arrived and the request is to be answered: of the application that has a token of its
    /// own, if it is one's.
    ///
    /// # Errors
    /// A refusal if as many requests as permitted are being answered.
    pub(super) fn has_request(&self, app: Option<&str>) -> Result<(), Refusal> {
        let is_admitted = self.admission.lock().request(self.number, app, clock::now());
        let refusal = || {
            let message = "too many requests are being answered; try again later";
            Refusal::new(Code::Busy, message).retry_after(RETRY_AFTER)
        };
        is_admitted.then_some(()).ok_or_else(refusal)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.admission.lock().open.remove(&self.number);
    }
}

/// An IPv4 address, or the /64 network of an IPv6 address, which is one customer's or one site's.
fn grouped(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
    }
}

impl Table {
    fn admit(&mut self, address: IpAddr, closing: CancellationToken, now: Instant) -> Option<u64> {
        let is_remote = |entry: &Entry| !entry.address.is_loopback();
        let is_same = |entry: &Entry| entry.address == address;
        let is_there = if address.is_loopback() {
            true
        } else {
            self.has_room(HTTP_ADDRESS_REQUESTS_MAX, now, is_same)
                && self.has_room(HTTP_REMOTE_REQUESTS_MAX, now, is_remote)
        };
        if !is_there || !self.has_room(HTTP_REQUESTS_MAX, now, |_| true) {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let entry = Entry { address, app: None, phase: Phase::Head, since: now, body: 0, closing };
        self.open.insert(number, entry);
        Some(number)
    }

    /// Whether one more of these connections may be opened, for which another one of them may have to be
    /// closed.
    fn has_room(
        &mut self,
        requests: usize,
        now: Instant,
        belongs: impl Fn(&Entry) -> bool,
    ) -> bool {
        let count = self.open.values().filter(|entry| belongs(entry)).count();
        count < requests + HTTP_RESERVE || self.close(now, belongs)
    }

    /// Closes one of these connections that has waited for its client for [`HTTP_SHED_AFTER`]; false if
    /// none has.
    fn close(&mut self, now: Instant, belongs: impl Fn(&Entry) -> bool) -> bool {
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for entry in self.open.values() {
            *held.entry(entry.address).or_default() += 1;
        }
        let has_waited = |entry: &Entry| {
            let waited = now.saturating_duration_since(entry.since);
            entry.phase != Phase::Answer && waited >= HTTP_SHED_AFTER
        };
        let waiting = self.open.iter().filter(|(_, entry)| has_waited(entry) && belongs(entry));
        let most = |entry: &Entry| std::cmp::Reverse(held.get(&entry.address).copied());
        let first = waiting.min_by_key(|(_, entry)| (most(entry), entry.phase, entry.since));
        let number = first.map(|(number, _)| *number);
        number.is_some_and(|number| self.remove(number))
    }

    /// Closes a connection; it no longer counts, although its task ends a moment later.
    fn remove(&mut self, number: u64) -> bool {
        let removed = self.open.remove(&number);
        removed.inspect(|entry| entry.closing.cancel()).is_some()
    }

    fn enter(&mut self, number: u64, phase: Phase, now: Instant) {
        if let Some(entry) = self.open.get_mut(&number) {
            (entry.phase, entry.since, entry.body) = (phase, now, 0);
        }
    }

    fn received(&mut self, number: u64, bytes: usize) {
        if let Some(entry) = self.open.get_mut(&number) {
            entry.body += bytes;
        }
        let all: usize = self.open.values().map(|entry| entry.body).sum();
        if all > HTTP_BODIES_BYTES_MAX {
            let size = |(_, entry): &(&u64, &Entry)| entry.body;
            let largest = self.open.iter().max_by_key(size).map(|(number, _)| *number);
            if let Some(number) = largest {
                self.remove(number);
            }
        }
    }

    /// Whether this connection's request may be answered; if so, it counts.
    fn request(&mut self, number: u64, app: Option<&str>, now: Instant) -> bool {
        let Some(entry) = self.open.get_mut(&number) else { return false };
        entry.app = app.map(str::to_owned);
        let address = entry.address;
        let answered = |belongs: &dyn Fn(&Entry) -> bool| {
            let others = self.open.iter().filter(|(other, _)| **other != number);
            others.filter(|(_, e)| e.phase == Phase::Answer && belongs(e)).count()
        };
        let is_same_app = |entry: &Entry| entry.app.as_deref() == app;
        let is_admitted = answered(&|_| true) < HTTP_REQUESTS_MAX
            && (app.is_none() || answered(&is_same_app) < HTTP_APP_REQUESTS_MAX)
            && (address.is_loopback()
                || answered(&|entry| entry.address == address) < HTTP_ADDRESS_REQUESTS_MAX
                    && answered(&|entry| !entry.address.is_loopback()) < HTTP_REMOTE_REQUESTS_MAX);
        // a refused request is answered too, with the refusal
        self.enter(number, Phase::Answer, now);
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table, the time that it is told, and the tokens of its connections.
    #[derive(Default)]
    struct Case {
        table: Table,
        seconds: u64,
        tokens: BTreeMap<u64, CancellationToken>,
    }

    impl Case {
        fn now(&mut self) -> Instant {
            self.seconds += 1;
            clock::now() + Duration::from_secs(self.seconds)
        }

        fn admit(&mut self, address: &str) -> Option<u64> {
            let (token, now) = (CancellationToken::new(), self.now());
            let address = grouped(address.parse().unwrap());
            let number = self.table.admit(address, token.clone(), now)?;
            self.tokens.insert(number, token);
            Some(number)
        }

        fn answer(&mut self, number: u64) -> bool {
            let now = self.now();
            self.table.request(number, None, now)
        }

        fn is_closed(&self, number: u64) -> bool {
            self.tokens[&number].is_cancelled()
        }
    }

    #[test]
    fn the_longest_waiting_connection_makes_room() {
        let mut case = Case::default();
        let all: Vec<u64> = (0..HTTP_REQUESTS_MAX + HTTP_RESERVE)
            .map(|_| case.admit("127.0.0.1").unwrap())
            .collect();
        let now = case.now();
        case.table.enter(all[0], Phase::Body, now);
        assert!(case.answer(all[1]));
        case.admit("127.0.0.1").unwrap();
        assert!(case.is_closed(all[2]), "the oldest of those that wait for a head");
        assert!(!case.is_closed(all[0]) && !case.is_closed(all[1]));
        assert_eq!(case.table.open.len(), HTTP_REQUESTS_MAX + HTTP_RESERVE);
    }

    #[test]
    fn the_address_with_the_most_connections_makes_room() {
        let mut case = Case::default();
        let other = case.admit("127.0.0.1").unwrap();
        let many: Vec<u64> = (0..HTTP_REQUESTS_MAX + HTTP_RESERVE - 1)
            .map(|_| case.admit("127.0.0.2").unwrap())
            .collect();
        case.admit("127.0.0.1").unwrap();
        assert!(!case.is_closed(other) && case.is_closed(many[0]));
    }

    #[test]
    fn a_request_needs_no_place_of_the_reserve() {
        let mut case = Case::default();
        for _ in 0..HTTP_REQUESTS_MAX {
            let number = case.admit("127.0.0.1").unwrap();
            assert!(case.answer(number));
        }
        let more: Vec<u64> = (0..HTTP_RESERVE).map(|_| case.admit("127.0.0.1").unwrap()).collect();
        assert!(!case.answer(more[0]), "refused with a reply");
        case.admit("127.0.0.1").unwrap();
        assert!(case.is_closed(more[1]));
    }

    #[test]
    fn an_application_with_a_token_leaves_room_for_others() {
        let mut case = Case::default();
        let mut ask = |app: Option<&str>| {
            let (number, now) = (case.admit("127.0.0.1").unwrap(), case.now());
            case.table.request(number, app, now)
        };
        let admitted = (0..HTTP_APP_REQUESTS_MAX + 5).filter(|_| ask(Some("camera"))).count();
        assert_eq!(admitted, HTTP_APP_REQUESTS_MAX);
        assert!(ask(Some("door")) && ask(None));
    }

    #[test]
    fn one_other_machine_leaves_room_for_the_next() {
        let mut case = Case::default();
        let mut machine = |address: &str| {
            let mut all = Vec::new();
            for _ in 0..2 * HTTP_REQUESTS_MAX {
                let Some(number) = case.admit(address) else { break };
                if case.answer(number) {
                    all.push(number);
                }
            }
            all.len()
        };
        assert_eq!(machine("192.0.2.1"), HTTP_ADDRESS_REQUESTS_MAX);
        assert_eq!(machine("::ffff:192.0.2.1"), 0, "the same machine");
        assert_eq!(machine("2001:db8::1"), HTTP_ADDRESS_REQUESTS_MAX);
        assert_eq!(machine("2001:db8::2"), 0, "the same network");
        // refusals are answered too, and take from the reserve of all other machines
        assert!(machine("192.0.2.2") <= HTTP_ADDRESS_REQUESTS_MAX);
        assert_eq!(machine("192.0.2.3"), 0);
        assert!(machine("127.0.0.1") >= HTTP_REQUESTS_MAX / 4 - HTTP_RESERVE, "this machine");
    }

    #[test]
    fn the_largest_body_makes_room_for_the_others() {
        let mut case = Case::default();
        let (large, small) = (case.admit("127.0.0.1").unwrap(), case.admit("127.0.0.1").unwrap());
        case.table.received(large, HTTP_BODIES_BYTES_MAX);
        assert!(!case.is_closed(large));
        case.table.received(small, 1);
        assert!(case.is_closed(large) && !case.is_closed(small));
    }
}
