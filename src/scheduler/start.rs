//! Starting jobs: in service order, at every backend with a free slot.

use std::time::Duration;

use heapless::Vec as Bounded;

use super::event::Effect;
use super::fairness::EqualShares;
use super::queued::{BackendSet, QueuedJob, RunningJob, ServiceTurn};
use super::{Scheduler, route};
use crate::decision::Reason;
use crate::limits::{RUNNING_JOBS_MAX, WAITING_JOBS_MAX};
use crate::pressure::level::PressureStage;
use crate::request::job::Priority;
use crate::time::Time;

/// Reserved engine time from which on a batch job is served before all others, in milliseconds.
pub(super) const BATCH_TURN_MS: f64 = 1_000.0;

impl Scheduler {
    /// Starts whatever can start, in the order of service.
    pub(super) fn start(&mut self, now: Time) {
        if self.queue.len() == 0 {
            return;
        }
        self.start_batch_turns(now);
        // bounded: each turn takes one job out of a bounded queue
        while self.running.len() < RUNNING_JOBS_MAX {
            let open = self.free_backends();
            if open.is_empty() {
                return;
            }
            let Some((at, backend)) = self.first_to_start(open) else { return };
            let mut entry = self.queue.take(at);
            let offload = if self.sides.device.has(backend) {
                self.assign_engine(&mut entry, backend);
                self.offload_at_start(&entry, backend, now)
            } else {
                None
            };
            if offload.is_some() {
                entry.figures = Some(Box::new(self.figures_at(&entry, Some(backend), now)));
                entry.offload = offload;
                // there is room: it was taken out just before
                let _ = self.queue.offer(entry);
                continue;
            }
            self.run(entry, backend, false, now);
            self.afford_all(now);
        }
    }

    /// The first job in the order of service that can start, and where.
    fn first_to_start(&self, open: BackendSet) -> Option<(usize, usize)> {
        let shares = self.shares.equal_shares();
        let is_above = |entry: &QueuedJob| self.shares.is_above(entry.app, shares);
        let place = |at: usize, entry: &QueuedJob| Some((at, self.place_for(entry, open, shares)?));
        if !self.queue.iter().any(is_above) {
            return self.queue.iter().enumerate().find_map(|(at, entry)| place(at, entry));
        }
        let mut order: Bounded<(ServiceTurn, usize), WAITING_JOBS_MAX> = Bounded::new();
        for (at, entry) in self.queue.iter().enumerate() {
            let _ = order.push((self.service_turn(entry, shares), at));
        }
        order.sort_unstable();
        order.iter().find_map(|(_, at)| place(*at, self.queue.iter().nth(*at)?))
    }

    /// The turn of a job. A client that had more than its share of the engines is served as the last of
    /// its class, and has no `interactive` one: else a single client could keep all others waiting.
    pub(super) fn service_turn(&self, entry: &QueuedJob, shares: EqualShares) -> ServiceTurn {
        let (priority, due, job) = entry.order();
        let is_above = self.shares.is_above(entry.app, shares);
        let priority = if is_above { priority.max(Priority::Normal) } else { priority };
        (priority, is_above, due, job)
    }

    /// The priority that an engine is told. A job goes before those of clients that had more than their
    /// share, though they were started with a higher one.
    fn priority_at(&self, entry: &QueuedJob, engine: usize, shares: EqualShares) -> Priority {
        let (own, is_above, _, _) = self.service_turn(entry, shares);
        let excess = self.running.at(engine);
        let excess = excess.filter(|run| !is_above && self.shares.is_above(run.entry.app, shares));
        excess.map(|run| run.told).fold(own, Priority::min)
    }

    /// Starts a batch job at each engine where enough time is reserved for one.
    fn start_batch_turns(&mut self, now: Time) {
        for engine in self.free_backends().and(self.sides.device).iter() {
            if self.backends[engine].batch_reserve_ms < BATCH_TURN_MS
                || self.device_pressure.stage >= PressureStage::Shed
            {
                continue;
            }
            let waits = |e: &QueuedJob| {
                e.spec.priority == Priority::Batch && e.home == Some(engine) && e.offload.is_none()
            };
            if self.running.at(engine).any(|run| run.promoted) {
                continue;
            }
            let Some(at) = self.queue.iter().position(waits) else { continue };
            let entry = self.queue.take(at);
            self.run(entry, engine, true, now);
        }
    }

    /// Healthy backends with a free slot.
    pub(super) fn free_backends(&self) -> BackendSet {
        self.healthy.iter().filter(|b| self.has_free_slot(*b)).collect()
    }

    /// The backend where the job can start now. An offloaded job takes any free remote backend; if
    /// there is none, an idle engine answers it after all.
    fn place_for(&self, entry: &QueuedJob, open: BackendSet, shares: EqualShares) -> Option<usize> {
        let best = self.sides.best(entry, self.askable(entry)).and(open);
        let fits = |b: &usize| self.may_start(entry, *b, shares);
        let offloaded = || {
            entry.offload?;
            let may = entry.candidates().and(open);
            let others = may.without(entry.failed()).and(self.sides.remote());
            let idle =
                |b: &usize| self.running.count_at(*b) == 0 && self.may_start(entry, *b, shares);
            self.nearest(others).or_else(|| may.and(self.sides.device).iter().find(idle))
        };
        best.iter().find(fits).or_else(offloaded)
    }

    /// The nearest of these remote backends, in the order of the catalog.
    pub(super) fn nearest(&self, others: BackendSet) -> Option<usize> {
        [self.sides.peer, self.sides.cloud].into_iter().find_map(|side| side.and(others).first())
    }

    /// Remote backends that failed at this job and are barred while no retry is left.
    pub(super) fn barred(&self, entry: &QueuedJob) -> BackendSet {
        if self.retries.may() {
            BackendSet::default()
        } else {
            entry.failed().and(self.sides.remote())
        }
    }

    /// Healthy backends that are not barred for this job.
    pub(super) fn askable(&self, entry: &QueuedJob) -> BackendSet {
        self.healthy.without(self.barred(entry))
    }

    fn may_start(&self, entry: &QueuedJob, backend: usize, shares: EqualShares) -> bool {
        if !self.sides.device.has(backend) {
            return true;
        }
        let remote = self.healthy.and(self.sides.remote()).and(entry.candidates());
        if self.device_pressure.stage >= PressureStage::Closed && !remote.is_empty() {
            return false;
        }
        if self.device_pressure.stage >= PressureStage::Shed
            && entry.spec.priority == Priority::Batch
        {
            return false;
        }
        // an engine that preempts gains from one more than it computes at once only if that is one of the
        // most urgent
        let known = &self.backends[backend];
        let width = known.width.min(known.profile.batch.width()) as usize;
        self.running.count_at(backend) < width || !known.profile.preemptive || {
            let priority = self.priority_at(entry, backend, shares);
            let order = (true, priority, entry.due(), entry.job());
            self.running.at(backend).filter(|run| run.order() < order).count() < width
        }
    }

    /// Starts a job for which the queue is full at a remote backend, if it may go there.
    pub(super) fn start_remote(&mut self, mut entry: QueuedJob, now: Time) -> Option<QueuedJob> {
        let _ = self.afford(&mut entry);
        let may = entry.candidates().and(self.free_remote()).without(self.barred(&entry));
        let has_room = self.running.len() < RUNNING_JOBS_MAX;
        let Some(backend) = self.nearest(may).filter(|_| has_room) else {
            return Some(entry);
        };
        entry.offload = Some(entry.offload.unwrap_or(Reason::Queue));
        self.run(entry, backend, false, now);
        None
    }

    fn run(&mut self, mut entry: QueuedJob, backend: usize, promoted: bool, now: Time) {
        let reason = route::why(&entry, backend, &self.backends, self.open_reason_near(&entry));
        if self.sides.remote().has(backend) {
            self.retries.asked(entry.failed().has(backend));
        }
        if self.sides.device.has(backend) {
            self.assign_engine(&mut entry, backend);
            // no offload after all
            entry.offload = None;
        }
        if entry.offload.is_none() || entry.figures.is_none() {
            entry.figures = Some(Box::new(self.figures_at(&entry, Some(backend), now)));
        } else {
            self.update_remote_states(&mut entry);
        }
        let time_left: Duration = now.until(entry.due());
        let priority = match (promoted, self.sides.device.has(backend)) {
            (true, _) => Priority::Interactive,
            (false, true) => self.priority_at(&entry, backend, self.shares.equal_shares()),
            (false, false) => entry.spec.priority,
        };
        let (job, backend_id) = (entry.job(), self.named(backend).0);
        let (hold, line) = self.hold(&entry, backend);
        self.effects.push(Effect::Start {
            job,
            backend: backend_id,
            time_left,
            priority,
            hold: line,
        });
        let run = RunningJob::started(entry, backend, reason, now);
        self.running.add(RunningJob { promoted, hold, told: priority, ..run });
    }

    fn open_reason_near(&self, entry: &QueuedJob) -> Reason {
        entry.home.map_or(Reason::Unhealthy, |home| self.open_reason(home))
    }
}
