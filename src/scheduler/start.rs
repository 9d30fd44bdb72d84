//! Who starts where: in the order of service, wherever there is room.

use std::time::Duration;

use heapless::Vec as Bounded;

use super::decision::Reason;
use super::event::Effect;
use super::queued::{BackendSet, QueuedJob, RunningJob};
use super::{Scheduler, route};
use crate::limits::{RUNNING_JOBS_MAX, WAITING_JOBS_MAX};
use crate::pressure::level::PressureStage;
use crate::request::job::Priority;
use crate::time::Time;

/// Engine time that batch jobs are owed when one of them is served before all others, in
/// milliseconds.
pub(super) const BATCH_TURN_MS: f64 = 1_000.0;

impl Scheduler {
    /// Starts whatever can start, in the order of service.
    pub(super) fn start(&mut self, now: Time) {
        if self.queue.len() == 0 {
            return;
        }
        self.give_batch_its_turn(now);
        // bounded: each turn takes one job out of a bounded queue
        while self.running.len() < RUNNING_JOBS_MAX {
            let open = self.open();
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
        let share = self.shares.equal_share();
        let is_above = |entry: &QueuedJob| self.shares.is_above(entry.app, share);
        let place = |at: usize, entry: &QueuedJob| Some((at, self.place_for(entry, open)?));
        if !self.queue.iter().any(is_above) {
            return self.queue.iter().enumerate().find_map(|(at, entry)| place(at, entry));
        }
        let mut order: Bounded<(Priority, bool, usize), WAITING_JOBS_MAX> = Bounded::new();
        for (at, entry) in self.queue.iter().enumerate() {
            let _ = order.push((entry.spec.priority, is_above(entry), at));
        }
        order.sort_unstable();
        order.iter().find_map(|(_, _, at)| place(*at, self.queue.iter().nth(*at)?))
    }

    /// Batch jobs that have waited while others were served get a turn.
    fn give_batch_its_turn(&mut self, now: Time) {
        for engine in self.open().and(self.sides.device).iter() {
            if self.backends[engine].owed < BATCH_TURN_MS
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

    /// Backends that can be asked and have room.
    fn open(&self) -> BackendSet {
        self.healthy.iter().filter(|b| self.has_room(*b)).collect()
    }

    /// Where the job can start at this moment. One that should leave goes to whoever has room; it
    /// may stay after all if nobody has and an engine here has nothing to do.
    fn place_for(&self, entry: &QueuedJob, open: BackendSet) -> Option<usize> {
        let best = self.sides.best(entry, self.askable(entry)).and(open);
        let fits = |b: &usize| self.may_start(entry, *b);
        let leaving = || {
            entry.offload?;
            let may = entry.candidates().and(open);
            let others = may.without(entry.failed).and(self.sides.away());
            let idle = |b: &usize| self.running.count_at(*b) == 0 && self.may_start(entry, *b);
            self.nearest(others).or_else(|| may.and(self.sides.device).iter().find(idle))
        };
        best.iter().find(fits).or_else(leaving)
    }

    /// The nearest of these others, in the order of the catalog.
    fn nearest(&self, others: BackendSet) -> Option<usize> {
        [self.sides.peer, self.sides.cloud].into_iter().find_map(|side| side.and(others).first())
    }

    /// Models elsewhere that have failed at this job and may not be asked again for now.
    pub(super) fn barred(&self, entry: &QueuedJob) -> BackendSet {
        if self.retries.may() { BackendSet::default() } else { entry.failed.and(self.sides.away()) }
    }

    /// Models that are well and may be asked for this job, as far as earlier failures are concerned.
    pub(super) fn askable(&self, entry: &QueuedJob) -> BackendSet {
        self.healthy.without(self.barred(entry))
    }

    fn may_start(&self, entry: &QueuedJob, backend: usize) -> bool {
        if !self.sides.device.has(backend) {
            return true;
        }
        let elsewhere = self.healthy.and(self.sides.away()).and(entry.candidates());
        if self.device_pressure.stage >= PressureStage::Closed && !elsewhere.is_empty() {
            return false;
        }
        if self.device_pressure.stage >= PressureStage::Shed
            && entry.spec.priority == Priority::Batch
        {
            return false;
        }
        // a second job is of use to an engine that works on the most urgent only if it is that
        let known = &self.backends[backend];
        self.running.count_at(backend) == 0 || !known.profile.preemptive || {
            let here = self.running.at(backend);
            let order = entry.order();
            let most = here.map(|run| (run.order().0, run.entry.order())).min();
            most.is_none_or(|most| (true, order) < most)
        }
    }

    /// Starts a job for which there is no room to wait elsewhere, if it may go there.
    pub(super) fn start_elsewhere(&mut self, mut entry: QueuedJob, now: Time) -> Option<QueuedJob> {
        let _ = self.afford(&mut entry);
        let may = entry.candidates().and(self.open()).and(self.sides.away());
        let may = may.without(self.barred(&entry));
        if may.is_empty() || self.running.len() >= RUNNING_JOBS_MAX {
            return Some(entry);
        }
        entry.offload = Some(entry.offload.unwrap_or(Reason::Queue));
        let Some(backend) = self.nearest(may) else {
            return Some(entry);
        };
        self.run(entry, backend, false, now);
        None
    }

    fn run(&mut self, mut entry: QueuedJob, backend: usize, promoted: bool, now: Time) {
        let reason = route::why(&entry, backend, &self.backends, self.resting_near(&entry));
        if self.sides.away().has(backend) {
            self.retries.asked(entry.failed.has(backend));
        }
        if self.sides.device.has(backend) {
            self.assign_engine(&mut entry, backend);
            // it stays after all
            entry.offload = None;
        }
        if entry.offload.is_none() || entry.figures.is_none() {
            entry.figures = Some(Box::new(self.figures_at(&entry, Some(backend), now)));
        } else {
            self.update_remote_states(&mut entry);
        }
        let time_left: Duration = now.until(entry.due());
        let priority = if promoted { Priority::Interactive } else { entry.spec.priority };
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
        self.running.add(RunningJob { promoted, hold, ..run });
    }

    fn resting_near(&self, entry: &QueuedJob) -> Reason {
        entry.home.map_or(Reason::Resting, |home| self.open_reason(home))
    }
}
