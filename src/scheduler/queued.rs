//! Queued and running jobs: the specification, and what the attempts so far have shown.

use heapless::Vec as Bounded;

use super::fairness::AppId;
use super::job::JobSpec;
use super::predict::{Load, Predictor, Rates};
use super::profile::BackendId;
use super::service::JobTime;
use crate::decision::{Attempt, Figures, Predicted, Reason};
use crate::limits::{ATTEMPTS_MAX, SERVERS_MAX};
use crate::model::context::Locality;
use crate::money::Usd;
use crate::request::job::{JobId, Priority};
use crate::time::Time;

/// A set of backends, by their slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BackendSet(u64);

/// Slots of backends: those of the catalog, and retired ones that still run jobs.
pub(super) const SLOTS_MAX: usize = 2 * SERVERS_MAX;
const _: () = assert!(SLOTS_MAX <= u64::BITS as usize);

impl BackendSet {
    pub(super) fn add(&mut self, backend: usize) {
        self.0 |= 1 << backend;
    }

    pub(super) fn has(self, backend: usize) -> bool {
        self.0 >> backend & 1 == 1
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn and(self, other: BackendSet) -> BackendSet {
        BackendSet(self.0 & other.0)
    }

    pub(super) fn or(self, other: BackendSet) -> BackendSet {
        BackendSet(self.0 | other.0)
    }

    pub(super) fn without(self, other: BackendSet) -> BackendSet {
        BackendSet(self.0 & !other.0)
    }

    pub(super) fn first(self) -> Option<usize> {
        (self.0 != 0).then(|| self.0.trailing_zeros() as usize)
    }

    /// The same backends at other slots; those without one are left out.
    pub(super) fn moved(self, slots: &[Option<usize>]) -> BackendSet {
        self.iter().filter_map(|old| slots.get(old).copied().flatten()).collect()
    }

    pub(super) fn iter(mut self) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || {
            let first = self.first()?;
            // the lowest bit goes
            self.0 &= self.0 - 1;
            Some(first)
        })
    }
}

impl FromIterator<usize> for BackendSet {
    fn from_iter<T: IntoIterator<Item = usize>>(backends: T) -> BackendSet {
        let mut set = BackendSet::default();
        for backend in backends {
            set.add(backend);
        }
        set
    }
}

/// A classification whose confidence is below the margin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Classified {
    /// The backend that made it.
    pub(super) backend: BackendId,
    /// Where that backend is, which the decision record states.
    pub(super) locality: Locality,
    /// How sure it is, 0 ..= 1.
    pub(super) confidence: f32,
}

/// A backend where an attempt failed, or whose answer was not good enough.
#[derive(Debug)]
pub(super) struct Tried {
    pub(super) server: BackendId,
    pub(super) locality: Locality,
    /// None once the backend has left the catalog and runs no more jobs.
    pub(super) slot: Option<usize>,
    /// What the backend lacks for this job; none if it may be tried again.
    pub(super) lacks: Option<Reason>,
    /// The only backends that may answer what this one rejected; empty if all may.
    pub(super) fallbacks: Vec<String>,
}

impl Tried {
    /// Whether a backend of this name may not answer what this one rejected.
    pub(super) fn bars(&self, server: &BackendId) -> bool {
        let is_named = |name: &String| name == server.as_str();
        !self.fallbacks.is_empty() && self.server != *server && !self.fallbacks.iter().any(is_named)
    }
}

/// One job that is not settled.
#[derive(Debug)]
pub(super) struct QueuedJob {
    pub(super) spec: Box<JobSpec>,
    /// Its priority, deadline and identifier.
    pub(super) order: (Priority, Time, JobId),
    pub(super) app: AppId,
    /// Backends that may be asked and can do it, whether they are up or not.
    pub(super) able: BackendSet,
    /// Every attempt that failed or was not good enough.
    pub(super) tried: Bounded<Tried, ATTEMPTS_MAX>,
    /// Backends that may not answer what another has refused.
    pub(super) closed: BackendSet,
    /// Backends that it can't pay for now.
    pub(super) broke: BackendSet,
    /// The surest classification below the margin.
    pub(super) best: Option<Classified>,
    pub(super) attempts: Vec<Attempt>,
    /// The slot of the engine that would answer it on this device.
    pub(super) home: Option<usize>,
    /// Its load on that engine.
    pub(super) load: Load,
    /// The prediction at its arrival.
    pub(super) predicted: Option<Predicted>,
    /// Why it is offloaded, once that is decided.
    pub(super) offload: Option<Reason>,
    pub(super) figures: Option<Box<Figures>>,
    /// It was recalled from an engine; that is done once.
    pub(super) was_recalled: bool,
}

impl QueuedJob {
    pub(super) fn job(&self) -> JobId {
        self.spec.job
    }

    /// Its deadline.
    pub(super) fn due(&self) -> Time {
        self.order.1
    }

    /// Its key in the order of waiting jobs.
    pub(super) fn order(&self) -> (Priority, Time, JobId) {
        self.order
    }

    /// The backends that may be asked for it.
    pub(super) fn candidates(&self) -> BackendSet {
        self.capable().without(self.broke)
    }

    /// The same, whether they can be paid for or not.
    pub(super) fn capable(&self) -> BackendSet {
        self.able.without(self.tried(|lacks| lacks.is_some())).without(self.closed)
    }

    /// Backends where it failed and that may be tried again.
    pub(super) fn failed(&self) -> BackendSet {
        self.tried(|lacks| lacks.is_none())
    }

    fn tried(&self, wanted: impl Fn(Option<Reason>) -> bool) -> BackendSet {
        let tried = self.tried.iter().filter(|tried| wanted(tried.lacks));
        tried.filter_map(|tried| tried.slot).collect()
    }

    /// What a backend was found to lack for this job.
    pub(super) fn lacks(&self, backend: usize) -> Option<Reason> {
        self.tried.iter().filter(|tried| tried.slot == Some(backend)).find_map(|tried| tried.lacks)
    }

    /// What the first backend lacked that was found unfit.
    pub(super) fn first_lack(&self) -> Option<Reason> {
        self.tried.iter().find_map(|tried| tried.lacks)
    }

    /// Follows the backends to other slots.
    pub(super) fn moved(&mut self, slots: &[Option<usize>]) {
        let new = |old: usize| slots.get(old).copied().flatten();
        for set in [&mut self.able, &mut self.closed, &mut self.broke] {
            *set = set.moved(slots);
        }
        for tried in &mut self.tried {
            tried.slot = tried.slot.and_then(new);
        }
        self.home = self.home.and_then(new);
    }
}

/// The place of a job in the order of service: its priority, whether its client had more than its share of
/// the engines, its deadline and its identifier. The least is served first.
pub(super) type ServiceTurn = (Priority, bool, Time, JobId);

/// A job that runs at a backend.
#[derive(Debug)]
pub(super) struct RunningJob {
    pub(super) entry: QueuedJob,
    pub(super) backend: usize,
    pub(super) started: Time,
    pub(super) reason: Reason,
    /// Milliseconds of engine time at full speed that it has had.
    pub(super) served: f64,
    /// Why it was recalled, and the figures of that decision.
    pub(super) recalled: Option<(Reason, Box<Figures>)>,
    /// It is served before all others: the turn of a batch job.
    pub(super) promoted: bool,
    /// The priority that its engine was told.
    pub(super) told: Priority,
    /// The most that the attempt can cost.
    pub(super) hold: Usd,
}

impl RunningJob {
    /// A job that a backend has been given.
    pub(super) fn started(
        entry: QueuedJob,
        backend: usize,
        reason: Reason,
        now: Time,
    ) -> RunningJob {
        RunningJob {
            told: entry.spec.priority,
            entry,
            backend,
            started: now,
            reason,
            served: 0.0,
            recalled: None,
            promoted: false,
            hold: Usd::NONE,
        }
    }

    /// Its key in the service order of one engine; the least is computed first.
    pub(super) fn order(&self) -> (bool, Priority, Time, JobId) {
        let (_, due, job) = self.entry.order();
        (!self.promoted, self.told, due, job)
    }

    /// Time at full speed for the rest of its prompt, most likely, in milliseconds; 0 if it is read.
    pub(super) fn reading_ms(&self, rates: &Rates) -> f64 {
        (rates.reading_ms(&self.entry.load) - self.served).max(0.0)
    }

    /// Remaining work at full speed.
    pub(super) fn remaining(&self, rates: &Rates, predictor: &Predictor) -> JobTime {
        rates.rest(predictor, &self.entry.spec, &self.entry.load, self.served)
    }
}
