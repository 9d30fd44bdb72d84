//! Offload decisions: which jobs of an engine go to a remote backend so that all meet their
//! deadlines, and when that is decided.
//!
//! The decision for each engine of this device, in order; the code below has the same numbers:
//! 1. *The certificate*: while every job of the engine is in time by the worst-case figures, no job
//!    is offloaded for load.
//! 2. *Hopeless*: a job that is late even by the 20 % quantile, or makes another late, is offloaded
//!    at once.
//! 3. *No better choice*: a job that by the median makes one late that can't be offloaded itself is
//!    offloaded at once; and so is one that is late by the median after its offload deadline: a
//!    remote answer is still in time more often than a local one.
//! 4. *The offload deadline*: a job that is late by the 95 % quantile, or makes another late, is
//!    offloaded when there is just time left for a remote answer. Until then it stays: that
//!    quantile is mostly too careful, and another job may end early or be cancelled. A job that
//!    stays at that moment stays for good, but for 3.
//!
//! Heat, memory and disk never offload a job by themselves: they change the speed of the engines.

use std::time::Duration;

use heapless::Vec as Bounded;

use super::feasibility;
use super::feasibility::{LINE_MAX, Offload, OrderedJob, ServiceOrder, find_offloads};
use super::queued::{BackendSet, QueuedJob, RunningJob, ServiceTurn};
use super::service::JobTime;
use super::{Effect, Scheduler, route};
use crate::decision::spread::{Level, Spread};
use crate::decision::{Case, Figures, Predicted, Reason, ServerState};
use crate::model::context::Locality;
use crate::pressure::level::PressureCause;
use crate::request::job::{JobId, Mode};
use crate::time::Time;

/// Lower bound of the speed in estimates, so that every time is finite.
const USABLE_MIN: f64 = 1e-6;

/// Where a job of a service order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobPlace {
    Waiting(usize),
    Running(JobId),
}

/// The key of the service order: not served before all others, and the turn.
pub(super) type ServiceKey = (bool, ServiceTurn);

impl Scheduler {
    /// Finds the jobs to offload, and when to decide again.
    pub(super) fn decide(&mut self, now: Time) {
        self.offload_check_at = None;
        if self.load() == (0, 0) {
            return;
        }
        let remote = self.free_remote();
        for engine in self.healthy.and(self.sides.device).iter() {
            let is_batching = self.backends[engine].profile.batch.width() > 1;
            let slots = self.free_slots_of(remote);
            if !is_batching && slots == 0 {
                continue;
            }
            let order = self.order(engine);
            if is_batching {
                self.choose_width(engine, &order, now);
            }
            if slots > 0 {
                self.decide_at(engine, &order, (remote, slots), now);
            }
        }
    }

    /// Decides for one engine, with so many free slots of remote backends.
    fn decide_at(
        &mut self,
        engine: usize,
        order: &[(ServiceKey, JobPlace)],
        (remote, mut slots): (BackendSet, usize),
        now: Time,
    ) {
        if self.is_certified(engine, order, now) {
            return;
        }
        let (line, places) = self.line(engine, order, remote, now);
        if line.iter().all(|item| item.offload_deadline.is_none()) {
            return;
        }
        let (to_offload, wait) = find_offloads(&line);
        if let Some(wait) = wait {
            let at = now + Duration::from_secs_f64((wait / 1e3).clamp(1e-3, 1e6));
            self.offload_check_at = Some(self.offload_check_at.map_or(at, |other| other.min(at)));
        }
        let mut left: Bounded<usize, LINE_MAX> = Bounded::new();
        for (candidate, level) in to_offload {
            if slots == 0 {
                return;
            }
            let figures = self.figures(engine, &line, &places, (candidate, &left), remote);
            let Some(figures) = figures else { continue };
            let reason = self.reason(&line, candidate.late, level, &left);
            if self.offload(places[candidate.item], reason, figures) {
                slots -= 1;
            }
            let _ = left.push(candidate.item);
        }
    }

    /// The jobs of an engine in service order, without recalled ones.
    pub(super) fn order(&self, engine: usize) -> Bounded<(ServiceKey, JobPlace), LINE_MAX> {
        let backend = &self.backends[engine];
        let shares = self.shares.equal_shares();
        let mut order: Bounded<(ServiceKey, JobPlace), LINE_MAX> = Bounded::new();
        for (at, entry) in self.queue.iter().enumerate() {
            if entry.home == Some(engine) && entry.offload.is_none() {
                let _ =
                    order.push(((true, self.service_turn(entry, shares)), JobPlace::Waiting(at)));
            }
        }
        let holds_all = !backend.profile.preemptive || !self.has_free_slot(engine);
        let top = self.top_of(engine);
        // in order already, unless an application is above its share
        if !order.is_sorted_by_key(|(order, _)| *order) {
            order.sort_unstable_by_key(|(order, _)| *order);
        }
        for run in self.running.at(engine).filter(|run| run.recalled.is_none()) {
            let job = run.entry.job();
            let first =
                run.promoted || (holds_all && (!backend.profile.preemptive || top == Some(job)));
            let place = (!first, self.service_turn(&run.entry, shares));
            let at = order.partition_point(|(other, _)| *other < place);
            let _ = order.insert(at, (place, JobPlace::Running(job)));
        }
        order
    }

    /// The remaining work of a job at full speed, and the engine time that it has had.
    pub(super) fn remaining(
        &self,
        engine: usize,
        place: JobPlace,
    ) -> Option<(&QueuedJob, JobTime, f64)> {
        let rates = &self.backends[engine].rates;
        match place {
            JobPlace::Waiting(at) => {
                let entry = self.queue.iter().nth(at)?;
                Some((entry, rates.time(&entry.load), 0.0))
            }
            JobPlace::Running(job) => {
                let run = self.running.get(job)?;
                Some((&run.entry, run.remaining(rates, &self.predictor), run.served))
            }
        }
    }

    /// Whether all jobs are in time in the worst case: step 1 of [`find_offloads`], which mostly
    /// decides, without the figures for the other steps.
    fn is_certified(&self, engine: usize, order: &[(ServiceKey, JobPlace)], now: Time) -> bool {
        let speed = self.speed();
        let backend = &self.backends[engine];
        let service = backend.service(order.len());
        feasibility::all_in_time(order.iter().map(|((_, (_, _, due, _)), place)| {
            let own = match place {
                JobPlace::Waiting(at) => {
                    let entry = self.queue.iter().nth(*at);
                    entry.map(|entry| backend.rates.worst_ms(&entry.load))
                }
                JobPlace::Running(_) => {
                    let time = self.remaining(engine, *place).map(|(_, time, _)| time);
                    time.map(|time| JobTime { read: time.read.worst, write: time.write.worst })
                }
            };
            let own = own.unwrap_or_default();
            (service.own_ms(&own) / speed, service.delay_ms(&own) / speed, ms_until(now, *due))
        }))
    }

    /// The figures of every job of an engine, in service order.
    fn line(
        &self,
        engine: usize,
        order: &[(ServiceKey, JobPlace)],
        remote: BackendSet,
        now: Time,
    ) -> (ServiceOrder, Bounded<JobPlace, LINE_MAX>) {
        let slow = 1.0 / self.speed();
        let service = self.backends[engine].service(order.len());
        let mut line = ServiceOrder::new();
        let mut places = Bounded::new();
        for ((after, (priority, above, ..)), place) in order {
            let Some((entry, time, served)) = self.remaining(engine, *place) else { continue };
            let left = ms_until(now, entry.due());
            let may_offload = match place {
                JobPlace::Waiting(_) => true,
                JobPlace::Running(job) => {
                    self.running.get(*job).is_some_and(RunningJob::may_offload)
                }
            };
            let group = if *after { 1 + 2 * *priority as u8 + u8::from(*above) } else { 0 };
            let item = OrderedJob {
                own: service.own(&time).map(|ms| ms * slow),
                delay: service.delay(&time).map(|ms| ms * slow),
                left,
                group,
                offload_deadline: self
                    .offload_deadline(entry, served, remote, left)
                    .filter(|_| may_offload),
            };
            let _ = line.push(item);
            let _ = places.push(*place);
        }
        (line, places)
    }

    /// Time until the offload deadline of a job, in milliseconds; none if it may not be offloaded,
    /// or if a remote answer would most likely come too late.
    fn offload_deadline(
        &self,
        entry: &QueuedJob,
        served: f64,
        remote: BackendSet,
        left: f64,
    ) -> Option<f64> {
        let time = self.remote_ms(entry, served, remote)?;
        (entry.spec.mode == Mode::PreferLocal && left >= time.p50).then_some(left - time.p95)
    }

    /// Time of an answer of the best of these remote backends, in milliseconds, for a job that has
    /// had `served` milliseconds of an engine.
    fn remote_ms(&self, entry: &QueuedJob, served: f64, remote: BackendSet) -> Option<Spread> {
        let may = entry.candidates().without(entry.failed()).and(remote);
        let best = self.nearest(may)?;
        let length = entry.home.and_then(|home| {
            let rates = &self.backends[home].rates;
            rates.length(&self.predictor, &entry.spec, &entry.load, served)
        });
        Some(self.backends[best].rates.e2e_ms(length.as_ref()))
    }

    /// Healthy remote backends with a free slot.
    pub(super) fn free_remote(&self) -> BackendSet {
        self.free_backends().and(self.sides.remote())
    }

    /// The share of their full speed at which the engines compute now, above 0.
    pub(super) fn speed(&self) -> f64 {
        self.device_pressure.usable().max(USABLE_MIN)
    }

    /// Free slots of these remote backends, less those that offloaded jobs will take.
    fn free_slots_of(&self, remote: BackendSet) -> usize {
        let free = |b: usize| self.backends[b].slots().saturating_sub(self.running.count_at(b));
        let taken = self.queue.iter().filter(|entry| entry.offload.is_some()).count();
        remote.iter().map(free).sum::<usize>().saturating_sub(taken)
    }

    /// Why a job is offloaded at its start at this engine, if so: it can't be recalled once it has
    /// started, or no slot was free before, or it was in the service order of another engine.
    pub(super) fn offload_at_start(
        &self,
        entry: &QueuedJob,
        engine: usize,
        now: Time,
    ) -> Option<Reason> {
        let remote = self.free_remote();
        let left = ms_until(now, entry.due());
        let slow = 1.0 / self.speed();
        let own = self.time_at_start(entry, engine).map(|ms| ms * slow);
        if own.worst <= left || own.p95 <= left || entry.offload.is_some() {
            return None;
        }
        let offload_deadline = Some(self.offload_deadline(entry, 0.0, remote, left)?);
        let alone = [OrderedJob { own, delay: own, left, group: 0, offload_deadline }];
        let level = find_offloads(&alone).0.first().map(|(_, level)| *level);
        let must = if entry.spec.is_buffered { level } else { level.or(Some(Level::Careful)) };
        let must = must.filter(|_| self.free_slots_of(remote) > 0)?;
        Some(self.reason(&alone, 0, must, &[]))
    }

    /// Offloads the job; returns whether it still waits or runs.
    fn offload(&mut self, place: JobPlace, reason: Reason, figures: Figures) -> bool {
        let figures = Box::new(figures);
        match place {
            JobPlace::Waiting(at) => {
                let Some(entry) = self.queue.iter_mut().nth(at) else { return false };
                entry.offload = Some(reason);
                entry.figures = Some(figures);
            }
            JobPlace::Running(job) => {
                let Some(run) = self.running.get_mut(job) else { return false };
                run.recalled = Some((reason, figures));
                run.entry.was_recalled = true;
                self.effects.push(Effect::Recall { job });
            }
        }
        true
    }

    /// The reason of an offload: heat, memory or disk if the late job would be in time without it.
    pub(super) fn reason(
        &self,
        line: &[OrderedJob],
        late: usize,
        level: Level,
        gone: &[usize],
    ) -> Reason {
        let speed = self.speed();
        let before = feasibility::ahead(line, late, gone).at(level);
        let would_end = (before + line[late].own.at(level)) * speed;
        if would_end > line[late].left {
            return Reason::Deadline;
        }
        match self.device_pressure.cause {
            PressureCause::Load => Reason::Deadline,
            PressureCause::Heat => Reason::Hot,
            PressureCause::Memory => Reason::Memory,
            PressureCause::Disk => Reason::Disk,
        }
    }

    /// The figures behind an offload.
    fn figures(
        &self,
        engine: usize,
        line: &[OrderedJob],
        places: &[JobPlace],
        (candidate, left): (Offload, &[usize]),
        remote: BackendSet,
    ) -> Option<Figures> {
        let group = line[candidate.item].group;
        // any job before may have been offloaded for one that can't be
        let is_fixed = line[candidate.late].offload_deadline.is_none();
        let first = line.iter().position(|item| is_fixed || item.group == group).unwrap_or(0);
        let stays = (first..=candidate.late).filter(|at| !left.contains(at));
        let stays: Vec<usize> = stays.collect();
        let speed = self.speed();
        let case = |&at: &usize| Case {
            work: line[at].own.map(|ms| ms * speed),
            delay: (line[at].delay != line[at].own).then(|| line[at].delay.map(|ms| ms * speed)),
            left: line[at].left,
            group: line[at].group,
            offload_deadline: line[at].offload_deadline,
        };
        let (entry, _, served) = self.remaining(engine, places[candidate.item])?;
        Some(Figures {
            ahead: feasibility::ahead(line, first, left).map(|ms| ms * speed),
            line: stays.iter().map(case).collect(),
            own: stays.iter().position(|at| *at == candidate.item).unwrap_or(0),
            away: self.remote_ms(entry, served, remote),
            ..self.figures_at(entry, None, self.last_event_at)
        })
    }

    /// The figures behind the start of a job at a backend, or its refusal.
    pub(super) fn figures_at(
        &self,
        entry: &QueuedJob,
        backend: Option<usize>,
        now: Time,
    ) -> Figures {
        let remote = self.free_remote();
        let left = ms_until(now, entry.due());
        let is_here = backend.is_some_and(|backend| self.sides.device.has(backend));
        let is_full = is_here && self.free_slots_of(remote) == 0;
        let case = |backend: usize| Case {
            work: self.time_at_start(entry, backend),
            delay: None,
            left,
            group: 0,
            offload_deadline: self.offload_deadline(entry, 0.0, remote, left).filter(|_| is_here),
        };
        Figures {
            mode: entry.spec.mode,
            priority: entry.spec.priority,
            streamed: !entry.spec.is_buffered,
            duty: f64::from(self.device_pressure.duty),
            stage: self.device_pressure.stage,
            cause: self.device_pressure.cause,
            ahead: Spread::default(),
            line: backend.map(case).into_iter().collect(),
            own: 0,
            away: self.remote_ms(entry, 0.0, remote).filter(|_| !is_full),
            parallel: 1,
            servers: self.states(entry),
        }
    }

    /// Brings the states of remote backends in a record up to date: since the offload was decided
    /// they may have come up, gone down or been replaced.
    pub(super) fn update_remote_states(&self, entry: &mut QueuedJob) {
        let states = self.states(entry);
        let Some(figures) = &mut entry.figures else { return };
        let known = std::mem::take(&mut figures.servers);
        let merged = states.into_iter().map(|state| {
            let mut known = known
                .iter()
                .filter(|known| known.locality == Locality::Device && known.server == state.server);
            let is_kept = state.locality == Locality::Device && !state.removed;
            known.next().filter(|_| is_kept).cloned().unwrap_or(state)
        });
        figures.servers = merged.collect();
    }

    fn states(&self, entry: &QueuedJob) -> Vec<ServerState> {
        let spec = &entry.spec;
        let lacks = |at: usize, backend: &super::BackendSlot| {
            let profile = &backend.profile;
            if spec.model.as_ref().is_some_and(|name| !profile.answers_to(name)) {
                return Some(Reason::Model);
            }
            if let Some(reason) = route::forbidden(spec, backend) {
                return Some(reason);
            }
            let well = self.healthy.has(at);
            let lack = entry.lacks(at).or_else(|| route::lacks(spec, backend));
            let lack = lack.or_else(|| entry.closed.has(at).then_some(Reason::Policy));
            let lack = lack.or_else(|| entry.broke.has(at).then_some(Reason::Budget));
            lack.or_else(|| (!well).then(|| self.open_reason(at)))
        };
        let state = |(at, backend): (usize, &super::BackendSlot)| ServerState {
            server: backend.profile.server.as_str().to_owned(),
            locality: backend.profile.locality,
            lacks: lacks(at, backend),
            full: self.sides.remote().has(at) && !self.has_free_slot(at),
            removed: false,
        };
        let listed = self.backends.iter().enumerate().filter(|(_, backend)| !backend.retired);
        let mut states: Vec<ServerState> = listed.map(state).collect();
        // the record lists a removed backend if the job was tried there
        for tried in &entry.tried {
            let is_removed = tried.slot.is_none_or(|slot| self.backends[slot].retired);
            if is_removed && !states.iter().any(|state| state.server == tried.server.as_str()) {
                states.push(ServerState {
                    server: tried.server.as_str().to_owned(),
                    locality: tried.locality,
                    lacks: Some(Reason::Unhealthy),
                    full: false,
                    removed: true,
                });
            }
        }
        states
    }

    /// The predicted time of the answer of this device, for a job that arrives; none if the device takes
    /// no jobs for its pressure, or the time is beyond [`PREDICTION_MAX`](crate::limits::PREDICTION_MAX).
    pub(super) fn predict(&self, entry: &QueuedJob) -> Option<Predicted> {
        let engine = entry.home?;
        if self.device_pressure.usable() <= 0.0 {
            return None;
        }
        let backend = &self.backends[engine];
        let service = backend.service(self.jobs_at(engine) + 1);
        let add = |before: Spread, time: &JobTime| before.with(&service.delay(time), |a, b| a + b);
        let mut before = Spread::default();
        for other in self.queue.iter().filter(|other| other.home == Some(engine)) {
            if other.offload.is_none() && other.order() < entry.order() {
                before = add(before, &backend.rates.time(&other.load));
            }
        }
        for run in self.running.at(engine) {
            let is_before = !backend.profile.preemptive
                || !self.has_free_slot(engine)
                || run.entry.order() < entry.order();
            if is_before {
                before = add(before, &run.remaining(&backend.rates, &self.predictor));
            }
        }
        let own = service.own(&backend.rates.time(&entry.load));
        let speed = self.speed();
        let end = |level| {
            let ms = (before.at(level) + own.at(level)) / speed;
            (ms * 10.0).round() / 10.0
        };
        let predicted = Predicted { p50: end(Level::Likely), p95: end(Level::Careful) };
        predicted.is_plausible().then_some(predicted)
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285 years of microseconds")]
pub(super) fn ms_until(now: Time, due: Time) -> f64 {
    due.0.saturating_sub(now.0) as f64 / 1e3
}
