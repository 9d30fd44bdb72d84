//! The dispatcher: the loop between client protocols and scheduler. It turns what happens into events,
//! and carries out the scheduler's effects. It reads the clock and starts the attempts; it decides
//! nothing.

mod attempt;
mod backends;
mod corrections;
mod egress;
mod engine_rate;
mod handle;
mod in_flight;
mod policy;
mod profile;
mod settled;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::attempt::{AttemptAnswer, CallBudget, paid};
use self::backends::KnownBackend;
use self::egress::EgressGuard;
use self::handle::{Adoption, BackendView, LoopStatus, PulseRequest, Submission};
pub use self::handle::{Answer, Dispatch, JobEnd};
use self::in_flight::InFlight;
pub use self::settled::{Settled, SettledTiming};
use crate::catalog::catalog::Catalog;
use crate::clock;
use crate::limits::{DRAIN_MAX, INBOX_MAX, LEARNED_EVERY};
use crate::model::context::Locality;
use crate::model::generate::Fault;
use crate::model::link::{BackendHandle, BackendState};
use crate::model::out::Out;
use crate::money::account::{ClockState, Correction, LedgerEntry};
use crate::money::{Hour, Usd};
use crate::pressure::level::DevicePressure;
use crate::redact::Redaction;
use crate::request::job::{Job, JobId, Priority};
use crate::scheduler::decision::Decision;
use crate::scheduler::{Answered, BackendId, Effect, Event, Scheduler, Sent, TokenTimes, Verdict};
pub use crate::status::{BackendStatus, Spending};
pub use crate::store::learned::LearnedStore;
use crate::store::ledger::{self, Ledger, Writer};
use crate::time::Time;

/// Creates the dispatcher over the backends of this catalog, and its handle. What it learns of them is
/// stored in `keep`, and the ledger beside it. The dispatcher must be run.
pub fn new(
    catalog: Arc<Catalog>,
    backends: Vec<BackendHandle>,
    device_pressure: watch::Receiver<DevicePressure>,
    keep: LearnedStore,
) -> (Dispatch, Dispatcher) {
    let caps = catalog.caps.clone();
    let (orders, inbox) = mpsc::channel(INBOX_MAX);
    let (adopt, adoptions) = mpsc::channel(1);
    let (pulse_requests, pulses) = mpsc::channel(1);
    let (catalog_out, present) = watch::channel(catalog);
    let (load_out, load) = watch::channel((0, 0));
    let (rate_out, rate) = watch::channel(None);
    let (spent_out, spent) = watch::channel(Spending::default());
    let (clock_out, clock_state) = watch::channel(ClockState::default());
    let settled = settled::feed();
    let (views_out, views) = watch::channel(handle::views(&backends));
    let status = LoopStatus {
        catalog: present,
        backends: views,
        load,
        rate,
        spent,
        clock: clock_state,
        settled: settled.downgrade(),
    };
    let dispatch = Dispatch::new(orders, adopt, pulse_requests, status);
    let (ledger, writer, account) = ledger::open(keep.folder(), caps.is_bound(), ledger::hour());
    let dispatcher = Dispatcher {
        scheduler: Scheduler::resume(Vec::new(), keep.read()).with_budget(caps, account),
        ledger: Some(ledger),
        writer: Some(writer),
        spent: spent_out,
        clock: clock_out,
        settled,
        keep,
        keep_at: None,
        origin: clock::now(),
        first_backends: backends,
        catalog: catalog_out,
        adoptions,
        pulses,
        backends: BTreeMap::new(),
        views: views_out,
        device_pressure,
        inbox,
        jobs: BTreeMap::new(),
        attempts: JoinSet::new(),
        watches: JoinSet::new(),
        load: load_out,
        rate: rate_out,
        hour: None,
        drained: false,
    };
    (dispatch, dispatcher)
}

/// The dispatcher's state.
pub struct Dispatcher {
    scheduler: Scheduler,
    keep: LearnedStore,
    /// When what was learned is written to disk; none if nothing was learned since the last time.
    keep_at: Option<Instant>,
    origin: Instant,
    /// The set to begin with, until the dispatcher runs.
    first_backends: Vec<BackendHandle>,
    backends: BTreeMap<BackendId, KnownBackend>,
    /// The catalog that is in force.
    catalog: watch::Sender<Arc<Catalog>>,
    adoptions: mpsc::Receiver<Adoption>,
    pulses: mpsc::Receiver<PulseRequest>,
    views: watch::Sender<Arc<Vec<BackendView>>>,
    device_pressure: watch::Receiver<DevicePressure>,
    inbox: mpsc::Receiver<Submission>,
    jobs: BTreeMap<JobId, InFlight>,
    attempts: JoinSet<EndedAttempt>,
    watches: JoinSet<WatchEvent>,
    load: watch::Sender<(usize, usize)>,
    /// See [`Dispatch::rate`].
    rate: watch::Sender<Option<f64>>,
    /// The last hour of which the scheduler was told.
    hour: Option<Hour>,
    /// None once the ledger is closed.
    ledger: Option<Ledger>,
    /// None once it runs on its thread.
    writer: Option<Writer>,
    spent: watch::Sender<Spending>,
    clock: watch::Sender<ClockState>,
    settled: broadcast::Sender<Arc<Settled>>,
    drained: bool,
}

struct EndedAttempt {
    job: Job,
    out: Out,
    backend: BackendId,
    result: Result<AttemptAnswer, Fault>,
}

/// The report of a watching task.
enum WatchEvent {
    Gone(JobId),
    Turned(BackendId),
    Settled,
    /// What was learned is on disk, or a correction.
    Kept,
    /// It is time to look for corrections.
    Look,
    /// Those that wait.
    Corrected(Vec<Correction>),
}

impl Dispatcher {
    /// Runs until `stop`, then until all work has ended or [`DRAIN_MAX`] has passed.
    pub async fn run(mut self, stop: CancellationToken) {
        let writer = self.writer.take().map(|w| tokio::task::spawn_blocking(|| w.run()));
        let first_backends = std::mem::take(&mut self.first_backends);
        self.replace_backends(first_backends);
        self.await_corrections();
        let mut drain_until: Option<Instant> = None;
        while !self.drained {
            // no task watches the device's pressure
            let blind = self.device_pressure.has_changed().is_err();
            let wake = self.scheduler.wake_at(self.now()).map(|at| self.instant(at));
            let wake = [wake, drain_until, self.keep_at].into_iter().flatten().min();
            let woken = OptionFuture::from(wake.map(|at| tokio::time::sleep_until(at.into())));
            let event = tokio::select! {
                Some(order) = self.inbox.recv() => Some(self.arrived(order)),
                Some(adoption) = self.adoptions.recv() => {
                    self.adopt(adoption);
                    None
                }
                Some(pulse) = self.pulses.recv() => {
                    // it may not wait any longer
                    let _ = pulse.send(self.overdue());
                    None
                }
                Some(done) = self.attempts.join_next(), if !self.attempts.is_empty() => self.ended(done),
                Some(event) = self.watches.join_next(), if !self.watches.is_empty() => self.watched(event),
                Ok(()) = self.device_pressure.changed(), if !blind => Some(self.pressure_changed()),
                Some(()) = woken => Some(Event::Tick),
                () = stop.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(clock::now() + DRAIN_MAX);
                    Some(Event::Drain)
                }
            };
            if let Some(event) = event {
                self.handle_event(event);
            }
            self.keep_learned();
            if drain_until.is_some_and(|until| clock::now() >= until) {
                tracing::warn!(left = self.jobs.len(), "stopped before all work had ended");
                break;
            }
        }
        self.watches.shutdown().await;
        self.attempts.shutdown().await;
        if self.keep_at.is_some() {
            self.keep.write(&self.scheduler.learned());
        }
        // the writer ends when all lines are on disk
        self.ledger = None;
        if let Some(Err(error)) = OptionFuture::from(writer).await {
            tracing::error!(%error, "the ledger was not closed");
        }
    }

    /// Writes what was learned to disk, once it is time.
    fn keep_learned(&mut self) {
        if self.keep_at.is_some_and(|at| at <= clock::now()) {
            self.keep_at = None;
            let (keep, learned) = (self.keep.clone(), self.scheduler.learned());
            self.watches.spawn_blocking(move || {
                keep.write(&learned);
                WatchEvent::Kept
            });
        }
    }

    fn handle_event(&mut self, event: Event) {
        let hour = ledger::hour();
        if self.hour.replace(hour) != Some(hour) {
            self.carry_out_event(Event::Clock(hour));
            self.clock_turned();
        }
        self.carry_out_event(event);
        self.load.send_replace(self.scheduler.load());
        let spent = handle::spending(self.scheduler.account());
        self.spent.send_if_modified(|known| std::mem::replace(known, spent) != spent);
    }

    /// Tells if the clock does not agree with the ledger, once for each change of that.
    fn clock_turned(&mut self) {
        let state = self.scheduler.account().clock_state();
        let before = self.clock.send_replace(state);
        let is_told = std::mem::discriminant(&before) == std::mem::discriminant(&state);
        match state {
            ClockState::Agrees => {}
            ClockState::Behind(_) | ClockState::SetBack(_) if is_told => {}
            ClockState::Behind(hours) | ClockState::SetBack(hours) => {
                tracing::warn!(hours, "{state}");
            }
        }
    }

    fn carry_out_event(&mut self, event: Event) {
        let effects = self.scheduler.handle_event(event, self.now());
        for effect in effects {
            self.carry_out(effect);
        }
    }

    /// How long the most overdue request is past its deadline.
    fn overdue(&self) -> Duration {
        let now = self.now();
        self.jobs.values().map(|held| now.since(held.due)).max().unwrap_or_default()
    }

    fn now(&self) -> Time {
        Time::default() + self.origin.elapsed()
    }

    fn time(&self, at: Instant) -> Time {
        Time::default() + at.saturating_duration_since(self.origin)
    }

    fn instant(&self, at: Time) -> Instant {
        self.origin + Duration::from_micros(at.0)
    }

    fn arrived(&mut self, order: Submission) -> Event {
        let now = self.now();
        let Submission { mut job, out, end, gone, mut redaction, catalog } = order;
        let present = self.catalog.borrow().clone();
        if !Arc::ptr_eq(&catalog, &present) {
            redaction = policy::apply(&present, &mut job);
        }
        let spec = policy::spec_of(&job, &redaction, now);
        let id = job.id;
        let origin = (job.client.app.clone(), job.task.clone());
        let stop = CancellationToken::new();
        let held = InFlight {
            waiting: Some((job, out)),
            end,
            redaction,
            origin,
            arrived: now,
            due: spec.due,
            input_max: spec.input_max,
            started: None,
            stop: stop.clone(),
            recall: stop.child_token(),
            answers: Vec::new(),
            hidden_from: Vec::new(),
        };
        self.jobs.insert(id, held);
        self.watches.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => WatchEvent::Gone(id),
                () = stop.cancelled() => WatchEvent::Settled,
            }
        });
        Event::Arrived(spec)
    }

    fn ended(&mut self, done: Result<EndedAttempt, tokio::task::JoinError>) -> Option<Event> {
        let EndedAttempt { job, out, backend, result } = done
            .inspect_err(|error| tracing::error!(%error, "an attempt panicked or was aborted"))
            .ok()?;
        let id = job.id;
        let sent = if out.written() == 0 { Sent::Nothing } else { Sent::Some };
        let held = self.jobs.get_mut(&id)?;
        held.waiting = Some((job, out));
        let outcome = match result {
            Ok(answer) => {
                let confidence = answer.usage.classification.as_ref().map(|label| label.confidence);
                let took = Some(TokenTimes::from(&answer.usage));
                let (cost_usd, credibility) = (answer.usage.cost_usd, answer.check.credibility());
                answer.log_implausible(&backend);
                if let Some(known) = self.backends.get_mut(&backend)
                    && known.handle.locality == Locality::Device
                    && let Some(rate) =
                        known.rate.beat(&answer.usage, self.device_pressure.borrow().processor)
                {
                    self.rate.send_replace(Some(rate));
                }
                held.answers.push((backend, answer));
                if self.keep.is_wanted() {
                    self.keep_at.get_or_insert_with(|| clock::now() + LEARNED_EVERY);
                }
                let cost = Usd::at_least(cost_usd);
                Ok(Answered { confidence, cost, spent: took, credibility })
            }
            Err(fault) => {
                tracing::debug!(job = id.0, %fault, "an attempt failed");
                Err((fault, sent))
            }
        };
        Some(Event::Ended { job: id, outcome })
    }

    fn watched(&mut self, event: Result<WatchEvent, tokio::task::JoinError>) -> Option<Event> {
        match event.ok()? {
            WatchEvent::Settled | WatchEvent::Kept => None,
            WatchEvent::Look => {
                self.look_for_corrections();
                None
            }
            WatchEvent::Corrected(found) => {
                self.correct(found);
                None
            }
            WatchEvent::Gone(job) => self.jobs.contains_key(&job).then_some(Event::Gone(job)),
            WatchEvent::Turned(backend) => {
                let event = self.state_of(&backend);
                self.watch_backend(backend);
                event
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start { job, backend, time_left, priority, hold } => {
                self.start(job, backend, (time_left, priority), hold);
            }
            Effect::Book(entry) => self.book(entry),
            Effect::Stop { job } => {
                if let Some(held) = self.jobs.get(&job) {
                    held.stop.cancel();
                }
            }
            Effect::Recall { job } => {
                if let Some(held) = self.jobs.get(&job) {
                    held.recall.cancel();
                }
            }
            Effect::Unload(backend) => self.want(&backend, false),
            Effect::Load(backend) => self.want(&backend, true),
            Effect::Width { backend, width } => self.set_width(&backend, width),
            Effect::Settle { job, verdict, backend, decision } => {
                self.settle(job, verdict, backend, *decision);
            }
            Effect::Drained => self.drained = true,
        }
    }

    fn start(
        &mut self,
        job: JobId,
        backend: BackendId,
        (time_left, priority): (Duration, Priority),
        entry: Option<LedgerEntry>,
    ) {
        let now = self.now();
        let on_hold = entry.and_then(|entry| self.ledger.as_ref().map(|to| to.hold(entry)));
        let Some(held) = self.jobs.get_mut(&job) else {
            return;
        };
        let Some((mut job, mut out)) = held.waiting.take() else {
            return;
        };
        held.started.get_or_insert(now);
        (job.time_left, job.priority) = (time_left, priority);
        let Some(KnownBackend { handle: to, .. }) = self.backends.get(&backend) else {
            return;
        };
        let link = to.link.borrow().clone();
        let (locality, redaction) = (to.locality, held.redaction.clone());
        // the old backend of a reloaded entry ends with its last attempt
        let lease = to.wanted.clone();
        let budget = CallBudget { on_hold, price: to.price, prompt_tokens: held.input_max };
        if matches!(redaction, Redaction::Done(_)) && locality != Locality::Device {
            held.hidden_from.push(to.server.clone());
        }
        held.recall = held.stop.child_token();
        let stop = held.recall.clone();
        self.attempts.spawn(async move {
            let result = match link {
                BackendState::Up(generate) => match EgressGuard::new(&job, locality, &redaction) {
                    Ok(guard) => tokio::select! {
                        answer = paid(budget, generate.as_ref(), guard, &mut out) => answer,
                        () = stop.cancelled() => Err(Fault::Cancelled),
                    },
                    Err(fault) => Err(fault),
                },
                BackendState::Down(_) => Err(Fault::unavailable("the backend became unavailable")),
            };
            drop(lease);
            EndedAttempt { job, out, backend, result }
        });
    }

    fn settle(
        &mut self,
        job: JobId,
        verdict: Verdict,
        backend: Option<BackendId>,
        mut decision: Decision,
    ) {
        let now = self.now();
        let Some(mut held) = self.jobs.remove(&job) else {
            return;
        };
        held.stop.cancel();
        let (usage, buffered, first) = match verdict {
            Verdict::Done => held.answer_of(backend.as_ref()),
            Verdict::Refused(_) | Verdict::Expired | Verdict::Cancelled | Verdict::Failed(_) => {
                (None, None, None)
            }
        };
        held.note_redacted(&mut decision);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let record = serde_json::to_string(&decision).unwrap_or_default();
            tracing::debug!(job = job.0, record, "settled");
        }
        let end = JobEnd {
            verdict,
            usage,
            buffered,
            locality: backend.as_ref().and_then(|_| decision.route.locality()),
            server: backend.map(|backend| backend.as_str().to_owned()),
            decision,
            queued: held.started.unwrap_or(now).since(held.arrived),
            first: first.map(|first| self.time(first).since(held.arrived)),
            total: now.since(held.arrived),
        };
        if self.settled.receiver_count() > 0 {
            // the last subscriber may go at the same time
            let _ = self.settled.send(Arc::new(end.settled(job, held.origin)));
        }
        // the client may have gone
        let _ = held.end.send(end);
    }
}
