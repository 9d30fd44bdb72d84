//! The scheduler: a pure function of events and time that returns effects. It does nothing itself.
//!
//! A *job specification* is what the scheduler knows of a job; a *backend* is a model with a number
//! of slots, an *engine* a backend on this device; *up* means that the backend can be asked; an
//! *attempt* is one job at one backend; a job is *offloaded* when a remote backend answers it in
//! place of an engine; it is *settled* when its one result is known, and then forgotten.
//!
//! Invariants after every event: each accepted job is either waiting or running, no backend runs
//! more jobs than its slots, the queue is within its bounds, and a job that can start has started.

mod attempts;
pub mod batch_speeds;
mod breaker;
mod budget;
mod charge;
mod concurrency;
mod event;
mod fairness;
mod feasibility;
mod job;
mod learned;
mod membership;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect")]
mod membership_tests;
mod offload;
mod predict;
mod profile;
mod queue;
mod queued;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect")]
mod remote_tests;
mod replay;
mod route;
mod running;
mod service;
mod start;
pub mod strategy;
#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one effect")]
mod tests;
mod width;
mod window;

use std::time::Duration;

use self::breaker::Breaker;
use self::concurrency::{ConcurrencyLimit, RetryBudget};
pub use self::event::{Answered, Effect, Event, Sent, Verdict};
use self::fairness::Shares;
pub use self::job::{JobSpec, TokenTimes};
pub use self::learned::Learned;
use self::predict::{Load, Predictor, Rates};
pub use self::profile::{BackendId, BackendProfile};
use self::queue::Queue;
use self::queued::{BackendSet, QueuedJob, SLOTS_MAX};
pub use self::replay::explain;
use self::route::Sides;
pub use self::route::mode_allows;
use self::running::RunningJobs;
use self::service::{EngineService, JobTime};
pub use crate::decision;
pub use crate::decision::spread::Spread;
use crate::decision::{Decision, Pressure, Reason, Route};
use crate::limits::{BATCH_SHARE, DRAIN_MAX, HOPS_MAX, RETRY_AFTER_MAX};
use crate::model::context::Locality;
use crate::money::Caps;
use crate::money::account::SpendingAccount;
use crate::pressure::level::{DevicePressure, PressureCause, PressureStage};
use crate::request::job::JobId;
use crate::request::refusal::{Code, Refusal};
use crate::time::Time;

#[derive(Debug)]
struct BackendSlot {
    profile: BackendProfile,
    up: bool,
    /// Why it can't be started.
    failed: Option<String>,
    /// It has left the catalog and gets no more jobs; its slot is freed when its last job ends.
    retired: bool,
    breaker: Breaker,
    flow: ConcurrencyLimit,
    rates: Rates,
    /// The engine was ended to give its memory back.
    unloaded: bool,
    /// Most jobs that an engine is to compute at once, of those that fit in its batch.
    width: u32,
    /// Engine time that is reserved for batch jobs, in milliseconds; negative if they had it in
    /// advance.
    batch_reserve_ms: f64,
}

impl BackendSlot {
    /// A backend that is down and has answered nothing.
    fn new(profile: BackendProfile) -> BackendSlot {
        BackendSlot {
            rates: Rates::stated(&profile),
            profile,
            up: false,
            failed: None,
            retired: false,
            breaker: Breaker::default(),
            flow: ConcurrencyLimit::default(),
            unloaded: false,
            width: u32::MAX,
            batch_reserve_ms: 0.0,
        }
    }

    /// Jobs that the backend is given at once. A remote one with a half-open breaker gets one, and
    /// then at most as many as its concurrency limit allows.
    fn slots(&self) -> usize {
        let offered = self.profile.slots.max(1);
        let slots = match self.profile.locality {
            Locality::Device => offered,
            Locality::Peer | Locality::Cloud if self.breaker.is_half_open() => 1,
            Locality::Peer | Locality::Cloud => self.flow.slots(offered),
        };
        slots as usize
    }

    /// How the backend serves so many jobs, those that run and those that wait.
    fn service(&self, jobs: usize) -> EngineService {
        EngineService::of(&self.profile, self.width, jobs)
    }
}

/// The whole state of the scheduler.
#[derive(Debug)]
pub struct Scheduler {
    backends: Vec<BackendSlot>,
    sides: Sides,
    /// Backends that are up and whose breaker is not open.
    healthy: BackendSet,
    retries: RetryBudget,
    queue: Queue,
    running: RunningJobs,
    predictor: Predictor,
    /// Rates of models that are not in the catalog, or have not been up yet.
    learned: Learned,
    shares: Shares,
    device_pressure: DevicePressure,
    caps: Caps,
    account: SpendingAccount,
    /// What can be paid for has changed, so that waiting jobs are checked again.
    budgets_dirty: bool,
    /// Time of the last event.
    last_event_at: Time,
    /// Next time at which an offload has to be decided again.
    offload_check_at: Option<Time>,
    draining: bool,
    drained: bool,
    effects: Vec<Effect>,
}

impl Scheduler {
    /// A scheduler over these backends, all down at first.
    pub fn new(profiles: Vec<BackendProfile>) -> Scheduler {
        let profiles = profiles.into_iter().take(SLOTS_MAX);
        let backends: Vec<BackendSlot> = profiles.map(BackendSlot::new).collect();
        Scheduler {
            sides: Sides::of(&backends),
            running: RunningJobs::new(backends.len()),
            backends,
            healthy: BackendSet::default(),
            retries: RetryBudget::default(),
            queue: Queue::default(),
            predictor: Predictor::default(),
            learned: Learned::default(),
            shares: Shares::default(),
            device_pressure: DevicePressure::default(),
            caps: Caps::default(),
            account: SpendingAccount::default(),
            budgets_dirty: false,
            last_event_at: Time::default(),
            offload_check_at: None,
            draining: false,
            drained: false,
            effects: Vec::new(),
        }
    }

    /// Handles one event; returns the effects, to be carried out in this order. A time before that
    /// of the last event counts as that.
    pub fn handle_event(&mut self, event: Event, now: Time) -> Vec<Effect> {
        let now = now.max(self.last_event_at);
        self.charge_engines(now);
        self.refresh_health(now);
        match event {
            Event::Arrived(spec) => self.arrived(spec, now),
            Event::Ended { job, outcome } => self.ended(job, outcome, now),
            Event::Gone(job) => self.gone(job, now),
            Event::Up(profile) => self.up(profile, now),
            Event::Down(backend) => self.down(&backend),
            Event::Failed(backend, reason) => self.not_started(&backend, &reason, now),
            Event::Catalog(profiles) => self.replace_catalog(profiles, now),
            Event::Revised { caps, waiting } => self.revise(caps, waiting, now),
            Event::Strained(device_pressure) => self.pressure_changed(device_pressure),
            Event::Corrected(correction) => self.correct(correction),
            Event::Clock(hour) => self.turn(hour),
            Event::Tick => {}
            Event::Drain => self.draining = true,
        }
        self.refresh_health(now);
        self.expire(now);
        self.afford_all(now);
        self.decide(now);
        self.start(now);
        self.free_retired();
        self.watch_drain();
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Event::Tick`] at the latest; none if nothing waits or runs.
    pub fn wake_at(&self, now: Time) -> Option<Time> {
        let rested = if self.queue.len() == 0 {
            None
        } else {
            let listed = self.backends.iter().filter(|b| !b.retired);
            listed.filter_map(|b| b.breaker.open_until(now)).min()
        };
        let dues = [self.queue.next_due(), self.running.next_due()];
        dues.into_iter().chain([rested, self.offload_check_at]).flatten().min()
    }

    /// Jobs that wait and jobs that run.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.running.len())
    }

    /// How full the device is.
    pub fn pressure(&self) -> Pressure {
        let DevicePressure { heat, memory, disk, .. } = self.device_pressure;
        Pressure { heat, memory, disk, queue: self.queue.fullness() }
    }

    /// Whether a slot of this backend is free.
    fn has_free_slot(&self, backend: usize) -> bool {
        self.running.count_at(backend) < self.backends[backend].slots()
    }

    /// The job that an engine computes first: the least in service order.
    fn top_of(&self, engine: usize) -> Option<JobId> {
        let here = self.running.at(engine);
        here.min_by_key(|run| run.order()).map(|run| run.entry.job())
    }

    fn refresh_health(&mut self, now: Time) {
        let well = |b: &BackendSlot| b.up && !b.retired && !b.unloaded && !b.breaker.is_open(now);
        let all = self.backends.iter().enumerate();
        self.healthy = all.filter(|(_, b)| well(b)).map(|(at, _)| at).collect();
    }

    /// Why a backend is not healthy: out of memory, or down or failed.
    fn open_reason(&self, backend: usize) -> Reason {
        match self.device_pressure.cause {
            PressureCause::Memory if self.backends[backend].unloaded => Reason::Memory,
            PressureCause::Load
            | PressureCause::Heat
            | PressureCause::Memory
            | PressureCause::Disk => Reason::Unhealthy,
        }
    }

    fn arrived(&mut self, spec: JobSpec, now: Time) {
        let mut entry = self.entry(spec);
        if self.draining {
            let refusal = Refusal::new(Code::Unavailable, "the service is stopping");
            let refusal = refusal.retry_after(DRAIN_MAX);
            return self.settle(entry, Verdict::Refused(refusal), None, Reason::Draining);
        }
        let hops = entry.spec.hops;
        if hops > HOPS_MAX {
            let message = format!("the request passed {hops} services, at most {HOPS_MAX}");
            let refusal = Refusal::field(Code::Forbidden, "hops", message);
            return self.settle(entry, Verdict::Refused(refusal), None, Reason::Hops);
        }
        if entry.spec.ruled {
            return self.settle(entry, Verdict::Done, None, Reason::Rule);
        }
        match route::able(&entry.spec, &self.backends) {
            Err(why) => return self.refuse(entry, why, now),
            Ok(able) => entry.able = able,
        }
        if entry.due() <= now {
            return self.settle(entry, Verdict::Expired, None, Reason::Deadline);
        }
        if let Err(why) = self.afford(&mut entry) {
            return self.refuse(entry, why, now);
        }
        self.pick_engine(&mut entry);
        entry.predicted = self.predict(&entry);
        self.admit(entry, now);
    }

    fn entry(&mut self, spec: JobSpec) -> QueuedJob {
        QueuedJob {
            app: self.shares.enter(&spec.client),
            order: (spec.priority, spec.due, spec.job),
            spec: Box::new(spec),
            able: BackendSet::default(),
            tried: heapless::Vec::new(),
            closed: BackendSet::default(),
            broke: BackendSet::default(),
            best: None,
            attempts: Vec::new(),
            home: None,
            load: Load::default(),
            predicted: None,
            offload: None,
            figures: None,
            was_recalled: false,
        }
    }

    /// Picks the engine that would answer the job on this device, and estimates its load.
    fn pick_engine(&self, entry: &mut QueuedJob) {
        use crate::request::job::Mode;
        let here = entry.candidates().and(self.sides.device);
        let up = here.and(self.healthy);
        entry.home = None;
        let home = match entry.spec.mode {
            Mode::LocalOnly | Mode::PreferLocal => up.first().or(here.first()),
            Mode::PreferCloud | Mode::CloudOnly => None,
        };
        if let Some(home) = home {
            self.assign_engine(entry, home);
        }
    }

    fn assign_engine(&self, entry: &mut QueuedJob, engine: usize) {
        if entry.home != Some(engine) {
            let backend = &self.backends[engine];
            entry.load = self.predictor.load(&entry.spec, &backend.profile, &backend.rates);
            entry.home = Some(engine);
        }
    }

    /// Queues a job. If the queue is full, the job starts at a remote backend at once if it may, or
    /// evicts a job of the application that has the most.
    fn admit(&mut self, entry: QueuedJob, now: Time) {
        let Err(back) = self.queue.offer(entry) else { return };
        let Some(mut back) = self.start_remote(*back, now) else { return };
        if let Some(other) = self.queue.evict(back.app, back.spec.bytes) {
            match self.queue.offer(back) {
                Ok(()) => {
                    if let Some(other) = self.start_remote(other, now) {
                        self.refuse_busy(other);
                    }
                    return;
                }
                Err(again) => {
                    // it has more bytes than the evicted job had: that one keeps its place
                    back = *again;
                    if let Err(other) = self.queue.offer(other) {
                        self.refuse_busy(*other);
                    }
                }
            }
        }
        self.refuse_busy(back);
    }

    fn refuse_busy(&mut self, entry: QueuedJob) {
        let wait = self.wait_estimate(&entry);
        let message = "the queue is full; retry later";
        let refusal = Refusal::new(Code::Busy, message).retry_after(wait);
        self.settle(entry, Verdict::Refused(refusal), None, Reason::Queue);
    }

    /// Time after which a refused client may try again: until the first breaker of its candidates
    /// stops being open if all are, else the usual time of an answer.
    fn wait_estimate(&self, entry: &QueuedJob) -> Duration {
        let now = self.last_event_at;
        let open_until = |at: usize| self.backends[at].breaker.open_until(now);
        let candidates = entry.candidates();
        // the earliest end of all open breakers, if no candidate is closed
        if let Some(end) = candidates.iter().map(open_until).min().flatten() {
            return now.until(end);
        }
        let first = self.sides.best(entry, self.askable(entry)).first().or(entry.able.first());
        let ms = first.and_then(|at| {
            let backend = &self.backends[at];
            let whole = |write| JobTime { read: 0.0, write };
            let usual = backend.rates.usual_ms();
            usual.map(|ms| backend.service(usize::MAX).delay_ms(&whole(ms)))
        });
        Duration::from_secs_f64(ms.unwrap_or(1000.0) / 1e3).min(RETRY_AFTER_MAX)
    }

    /// Unloads idle engines while memory is short, and loads them again when it is not.
    fn pressure_changed(&mut self, device_pressure: DevicePressure) {
        self.device_pressure = device_pressure;
        for at in self.sides.device.iter() {
            let is_idle = self.running.count_at(at) == 0;
            let backend = &mut self.backends[at];
            let id = || backend.profile.server.clone();
            if backend.retired {
                continue;
            }
            if device_pressure.stage == PressureStage::Unload && is_idle && !backend.unloaded {
                self.effects.push(Effect::Unload(id()));
                backend.unloaded = true;
            } else if device_pressure.stage < PressureStage::Closed && backend.unloaded {
                self.effects.push(Effect::Load(id()));
                backend.unloaded = false;
            }
        }
    }

    fn watch_drain(&mut self) {
        if self.draining && !self.drained && self.load() == (0, 0) {
            self.drained = true;
            self.effects.push(Effect::Drained);
        }
    }

    /// Settles a job. The surest classification below the margin is used as fallback: it takes the
    /// place of a failure, a refusal or an expiry.
    fn settle(
        &mut self,
        entry: QueuedJob,
        verdict: Verdict,
        backend: Option<usize>,
        reason: Reason,
    ) {
        let (verdict, backend, reason) = match (verdict, entry.best) {
            (Verdict::Expired | Verdict::Failed(_) | Verdict::Refused(_), Some(best)) => {
                (Verdict::Done, Some((best.backend, best.locality)), Reason::Confidence)
            }
            (verdict, _) => (verdict, backend.map(|slot| self.named(slot)), reason),
        };
        self.shares.leave(entry.app);
        let route = match &backend {
            None if reason == Reason::Rule => Route::Local,
            None => Route::None,
            Some((_, locality)) => (*locality).into(),
        };
        let decision = Decision {
            route,
            reason,
            attempts: entry.attempts,
            predicted_ms: entry.predicted,
            pressure: self.pressure(),
            strategy: None,
            steps: Vec::new(),
            figures: entry.figures.map(|figures| *figures),
        };
        self.effects.push(Effect::Settle {
            job: entry.spec.job,
            verdict,
            backend: backend.map(|(id, _)| id),
            decision: Box::new(decision),
        });
    }
}
