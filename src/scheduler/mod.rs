//! The one judge: takes an event and the time, returns what shall be done. It does nothing itself.
//!
//! Words used here: a *ticket* is what the judge needs to know of a job; a *backend* is a model
//! with free or taken slots; *up* means that it can be asked; an *attempt* is one job at one
//! backend; *settled* means that the job has had its one answer and is forgotten.
//!
//! After every event the same invariants hold: each accepted job is either waiting or running, no
//! backend runs more than its slots, the queue is within its bounds, and a job that could start
//! has started.

mod breaker;
pub mod decision;
mod event;
mod queue;
mod route;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::breaker::Breaker;
use self::decision::{Attempt, Decision, Pressure, Reason};
pub use self::event::{Answered, BackendId, Card, Effect, Event, Sent, Ticket, Verdict, Word};
use self::queue::Queue;
use self::route::Route;
pub use self::route::may_reach;
use crate::generate::Fault;
use crate::limits::{ATTEMPTS_MAX, HOPS_MAX, RUNNING_JOBS_MAX};
use crate::model::Reach;
use crate::prompt::{Code, JobId, Refusal};
use crate::time::Time;

/// The outcome of an attempt whose confidence is below the margin.
const UNSURE: &str = "unsure";

#[derive(Debug)]
struct Backend {
    card: Card,
    up: bool,
    breaker: Breaker,
    running: u32,
    /// Running mean of the time an answer takes; none before the first.
    mean: Option<Duration>,
    /// Jobs that failed here and may be tried elsewhere.
    failed: BTreeSet<JobId>,
    /// Jobs that this backend can't do, or not well enough, and what it lacks.
    unfit: BTreeMap<JobId, Reason>,
}

impl Backend {
    fn may_be_asked(&self, now: Time) -> bool {
        self.up && !self.breaker.is_resting(now)
    }

    fn has_room(&self) -> bool {
        self.running < self.card.slots.max(1)
    }

    fn forget(&mut self, job: JobId) {
        self.failed.remove(&job);
        self.unfit.remove(&job);
    }
}

#[derive(Debug)]
struct Running {
    ticket: Ticket,
    backend: usize,
    started: Time,
    reason: Reason,
}

/// All state that decides.
#[derive(Debug)]
pub struct Scheduler {
    backends: Vec<Backend>,
    queue: Queue,
    running: BTreeMap<JobId, Running>,
    draining: bool,
    drained: bool,
    effects: Vec<Effect>,
}

impl Scheduler {
    /// A scheduler over these backends, all down at first.
    pub fn new(cards: Vec<Card>) -> Scheduler {
        let backend = |card| Backend {
            card,
            up: false,
            breaker: Breaker::default(),
            running: 0,
            mean: None,
            failed: BTreeSet::new(),
            unfit: BTreeMap::new(),
        };
        Scheduler {
            backends: cards.into_iter().map(backend).collect(),
            queue: Queue::default(),
            running: BTreeMap::new(),
            draining: false,
            drained: false,
            effects: Vec::new(),
        }
    }

    /// Takes one event and says what shall be done, in this order.
    pub fn on(&mut self, event: Event, now: Time) -> Vec<Effect> {
        match event {
            Event::Arrived(ticket) => self.arrived(ticket, now),
            Event::Ended { job, outcome } => self.ended(job, outcome, now),
            Event::Gone(job) => self.gone(job, now),
            Event::Up(backend, card) => self.up(backend, card),
            Event::Down(backend) => self.down(backend),
            Event::Tick => {}
            Event::Drain => self.draining = true,
        }
        self.expire(now);
        self.start(now);
        self.watch_drain();
        std::mem::take(&mut self.effects)
    }

    /// When to send [`Event::Tick`] at the latest; none if nothing waits or runs.
    pub fn wake_at(&self, now: Time) -> Option<Time> {
        let running = self.running.values().map(|r| r.ticket.due).min();
        let rested = if self.queue.len() == 0 {
            None
        } else {
            self.backends.iter().filter_map(|b| b.breaker.wakes_at(now)).min()
        };
        [self.queue.next_due(), running, rested].into_iter().flatten().min()
    }

    /// Jobs that wait and jobs that run.
    pub fn load(&self) -> (usize, usize) {
        (self.queue.len(), self.running.len())
    }

    /// Bytes of prompts that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.queue.bytes()
    }

    fn arrived(&mut self, ticket: Ticket, now: Time) {
        if self.draining {
            let refusal = Refusal::new(Code::Unavailable, "the service is stopping");
            return self.settle(&ticket, Verdict::Refused(refusal), None, Reason::Draining);
        }
        if ticket.hops > HOPS_MAX {
            let message = format!("passed {} services, at most {HOPS_MAX}", ticket.hops);
            let refusal = Refusal::field(Code::Forbidden, "hops", message);
            return self.settle(&ticket, Verdict::Refused(refusal), None, Reason::Hops);
        }
        if ticket.ruled {
            return self.settle(&ticket, Verdict::Done, None, Reason::Rule);
        }
        match route::route(&ticket, &self.backends, now) {
            Err((refusal, Reason::Resting)) => self.wait_for_rest(ticket, refusal, now),
            Err((refusal, reason)) => {
                self.settle(&ticket, Verdict::Refused(refusal), None, reason);
            }
            Ok(route) => self.admit(ticket, &route),
        }
    }

    fn admit(&mut self, ticket: Ticket, route: &Route) {
        let Err(back) = self.queue.offer(ticket) else {
            return;
        };
        let wait = self.wait_estimate(route);
        let message = "too many prompts wait already; come back later";
        let refusal = Refusal::new(Code::Busy, message).retry_after(wait);
        self.settle(&back, Verdict::Refused(refusal), None, Reason::Queue);
    }

    /// A job whose only models rest waits for them as long as its deadline allows.
    fn wait_for_rest(&mut self, ticket: Ticket, refusal: Refusal, now: Time) {
        if ticket.due <= now {
            return self.settle(&ticket, Verdict::Expired, None, Reason::Deadline);
        }
        if let Err(back) = self.queue.offer(ticket) {
            self.settle(&back, Verdict::Refused(refusal), None, Reason::Resting);
        }
    }

    fn ended(&mut self, job: JobId, outcome: Result<Answered, (Fault, Sent)>, now: Time) {
        let Some(mut run) = self.running.remove(&job) else {
            return;
        };
        let took = now.since(run.started);
        let backend = &mut self.backends[run.backend];
        backend.running -= 1;
        let (outcome_name, confidence) = match &outcome {
            Ok(Answered { confidence: Some(sure) }) if *sure < run.ticket.margin => {
                (UNSURE, Some(*sure))
            }
            Ok(Answered { confidence }) => ("ok", *confidence),
            Err((fault, _)) => (fault.name(), None),
        };
        run.ticket.attempts.push(Attempt {
            server: backend.card.server.clone(),
            outcome: outcome_name.to_owned(),
            confidence,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        });
        match outcome {
            Ok(_) => {
                backend.breaker.worked();
                backend.mean = Some(backend.mean.map_or(took, |mean| (mean * 7 + took) / 8));
                match confidence {
                    Some(sure) if outcome_name == UNSURE => self.unsure(run, sure, now),
                    Some(_) | None => {
                        self.settle(&run.ticket, Verdict::Done, Some(run.backend), run.reason);
                    }
                }
            }
            Err((fault, sent)) => self.failed(run, fault, sent, now),
        }
    }

    /// Keeps the surest word, and asks the next model that has the talent; if there is none, the
    /// surest word is the answer.
    fn unsure(&mut self, run: Running, confidence: f32, now: Time) {
        let Running { mut ticket, backend, .. } = run;
        if ticket.best.is_none_or(|best| best.confidence < confidence) {
            ticket.best = Some(Word { backend: BackendId(backend), confidence });
        }
        self.backends[backend].unfit.insert(ticket.job, Reason::Confidence);
        let may_go_on = ticket.attempts.len() < ATTEMPTS_MAX && ticket.due > now;
        let next = may_go_on.then(|| route::route(&ticket, &self.backends, now));
        let left = match next {
            Some(Ok(_)) => self.queue.offer(ticket).err().map(|back| *back),
            Some(Err(_)) | None => Some(ticket),
        };
        if let Some(ticket) = left {
            let best = ticket.best.map(|best| best.backend.0);
            self.settle(&ticket, Verdict::Done, best, Reason::Confidence);
        }
    }

    /// Another attempt where that can help, else the end of the job.
    fn failed(&mut self, run: Running, fault: Fault, sent: Sent, now: Time) {
        let Running { ticket, backend, reason, .. } = run;
        match &fault {
            Fault::Unfit(_) | Fault::Cancelled => {}
            Fault::Away(_) | Fault::Crashed(_) | Fault::Hung(_) | Fault::Broken(_) => {
                self.backends[backend].breaker.failed(now);
            }
        }
        let may_retry = sent == Sent::Nothing
            && ticket.attempts.len() < ATTEMPTS_MAX
            && ticket.due > now
            && match &fault {
                Fault::Unfit(refusal) => refusal.code == Code::Incapable,
                Fault::Away(_) | Fault::Crashed(_) | Fault::Hung(_) | Fault::Broken(_) => true,
                Fault::Cancelled => false,
            };
        if !may_retry {
            return self.settle(&ticket, verdict_of(fault), Some(backend), reason);
        }
        match &fault {
            Fault::Unfit(_) => {
                self.backends[backend].unfit.insert(ticket.job, Reason::Context);
            }
            Fault::Away(_)
            | Fault::Crashed(_)
            | Fault::Hung(_)
            | Fault::Broken(_)
            | Fault::Cancelled => {
                self.backends[backend].failed.insert(ticket.job);
            }
        }
        match route::route(&ticket, &self.backends, now) {
            Ok(_) | Err((_, Reason::Resting)) => {
                if let Err(back) = self.queue.offer(ticket) {
                    self.settle(&back, verdict_of(fault), Some(backend), reason);
                }
            }
            Err((_, lack)) => self.settle(&ticket, verdict_of(fault), Some(backend), lack),
        }
    }

    fn gone(&mut self, job: JobId, now: Time) {
        if let Some(ticket) = self.queue.remove(job) {
            return self.settle(&ticket, Verdict::Cancelled, None, Reason::Cancelled);
        }
        if let Some(run) = self.running.remove(&job) {
            self.stop(run, Verdict::Cancelled, Reason::Cancelled, now);
        }
    }

    fn up(&mut self, backend: BackendId, card: Card) {
        if let Some(known) = self.backends.get_mut(backend.0) {
            known.card = card;
            known.up = true;
            known.breaker.worked();
        }
    }

    fn down(&mut self, backend: BackendId) {
        if let Some(known) = self.backends.get_mut(backend.0) {
            known.up = false;
        }
    }

    fn expire(&mut self, now: Time) {
        while let Some(ticket) = self.queue.expired(now) {
            self.settle(&ticket, Verdict::Expired, None, Reason::Deadline);
        }
        let late: Vec<JobId> =
            self.running.iter().filter(|(_, run)| run.ticket.due <= now).map(|(j, _)| *j).collect();
        for job in late {
            if let Some(run) = self.running.remove(&job) {
                self.stop(run, Verdict::Expired, Reason::Deadline, now);
            }
        }
    }

    fn stop(&mut self, mut run: Running, verdict: Verdict, reason: Reason, now: Time) {
        let backend = &mut self.backends[run.backend];
        backend.running -= 1;
        run.ticket.attempts.push(Attempt {
            server: backend.card.server.clone(),
            outcome: Fault::Cancelled.name().to_owned(),
            confidence: None,
            ms: u64::try_from(now.since(run.started).as_millis()).unwrap_or(u64::MAX),
        });
        self.effects.push(Effect::Stop { job: run.ticket.job });
        self.settle(&run.ticket, verdict, Some(run.backend), reason);
    }

    /// Starts whatever can start, in the order of the queue.
    fn start(&mut self, now: Time) {
        // bounded: each turn takes one job out of a bounded queue
        while self.running.len() < RUNNING_JOBS_MAX {
            let backends = &self.backends;
            let mut chosen = None;
            let ticket = self.queue.take(|ticket| {
                let Ok(route) = route::route(ticket, backends, now) else {
                    return false;
                };
                let free = route.best().iter().find(|&&b| backends[b].has_room());
                chosen = free.map(|&b| (b, route.reason));
                chosen.is_some()
            });
            let (Some(ticket), Some((backend, reason))) = (ticket, chosen) else {
                return;
            };
            self.backends[backend].running += 1;
            self.effects.push(Effect::Start {
                job: ticket.job,
                backend: BackendId(backend),
                budget: now.until(ticket.due),
            });
            let run = Running { backend, started: now, reason, ticket };
            self.running.insert(run.ticket.job, run);
        }
    }

    fn watch_drain(&mut self) {
        if self.draining && !self.drained && self.load() == (0, 0) {
            self.drained = true;
            self.effects.push(Effect::Drained);
        }
    }

    /// Says how a job ended. A word that was not sure enough is better than none.
    fn settle(
        &mut self,
        ticket: &Ticket,
        verdict: Verdict,
        backend: Option<usize>,
        reason: Reason,
    ) {
        let (verdict, backend, reason) = match (verdict, ticket.best) {
            (Verdict::Expired | Verdict::Failed(_) | Verdict::Refused(_), Some(best)) => {
                (Verdict::Done, Some(best.backend.0), Reason::Confidence)
            }
            (verdict, _) => (verdict, backend, reason),
        };
        for known in &mut self.backends {
            known.forget(ticket.job);
        }
        let route = match backend.map(|b| self.backends[b].card.reach) {
            None if reason == Reason::Rule => "local",
            None => "none",
            Some(Reach::Device) => "local",
            Some(Reach::Peer) => "peer",
            Some(Reach::Cloud) => "cloud",
        };
        let decision = Decision {
            route: route.to_owned(),
            reason,
            attempts: ticket.attempts.clone(),
            pressure: Pressure { queue: self.queue.fullness() },
        };
        self.effects.push(Effect::Settle {
            job: ticket.job,
            verdict,
            backend: backend.map(BackendId),
            decision,
        });
    }

    /// How long until there may be room again, from the measured time of an answer.
    fn wait_estimate(&self, route: &Route) -> Duration {
        let unknown = Duration::from_secs(1);
        let first = route.order.first().map(|&b| &self.backends[b]);
        let Some(backend) = first else { return unknown };
        backend.mean.unwrap_or(unknown) / backend.card.slots.max(1)
    }
}

fn verdict_of(fault: Fault) -> Verdict {
    match fault {
        Fault::Unfit(refusal) => Verdict::Refused(refusal),
        Fault::Cancelled => Verdict::Cancelled,
        Fault::Away(_) | Fault::Crashed(_) | Fault::Hung(_) | Fault::Broken(_) => {
            Verdict::Failed(fault)
        }
    }
}
