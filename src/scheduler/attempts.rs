//! Attempts: their outcome, retries and fallbacks, and the end of a job.

use super::Scheduler;
use super::event::{Answered, Effect, Sent, Verdict};
use super::queued::{Classified, QueuedJob, RunningJob, Tried};
use crate::decision::{Attempt, Outcome, Reason};
use crate::limits::ATTEMPTS_MAX;
use crate::model::figures::Credibility;
use crate::model::generate::Fault;
use crate::money::Usd;
use crate::request::job::JobId;
use crate::request::refusal::Code;
use crate::time::{Time, millis};

impl Scheduler {
    pub(super) fn ended(
        &mut self,
        job: JobId,
        outcome: Result<Answered, (Fault, Sent)>,
        now: Time,
    ) {
        let Some(mut run) = self.running.remove(job) else { return };
        let cost = self.bill(&run, &outcome);
        match outcome {
            Ok(answered) => {
                let told = self.told(&run, &answered);
                self.answered(run, &answered, told, now);
            }
            Err((fault, sent)) => {
                let is_back = fault == Fault::Cancelled && sent == Sent::Nothing;
                if let Some((reason, figures)) = run.recalled.take_if(|_| is_back) {
                    self.note(&mut run, Outcome::Recalled, (None, cost), now);
                    (run.entry.offload, run.entry.figures) = (Some(reason), Some(figures));
                    return self.requeue_recalled(run.entry, now);
                }
                self.note(&mut run, outcome_of(&fault), (None, cost), now);
                self.failed(run, fault, sent, now);
            }
        }
    }

    fn note(
        &self,
        run: &mut RunningJob,
        outcome: Outcome,
        (confidence, cost): (Option<f32>, Usd),
        now: Time,
    ) {
        run.entry.attempts.push(Attempt {
            server: self.backends[run.backend].profile.server.as_str().to_owned(),
            outcome,
            confidence,
            ms: millis(now.since(run.started)),
            cost_usd: cost.dollars(),
            redacted: 0,
            implausible: false,
        });
    }

    fn answered(&mut self, mut run: RunningJob, answered: &Answered, cost: Usd, now: Time) {
        let spec = &run.entry.spec;
        let backend = &mut self.backends[run.backend];
        backend.breaker.worked();
        backend.breaker.stated(answered.credibility, now);
        backend.flow.worked();
        let ms = now.since(run.started).as_secs_f64() * 1e3;
        backend.rates.learn(spec, answered.spent.as_ref(), ms, &backend.profile);
        if let Some(spent) = &answered.spent {
            self.predictor.learn(spec, spent, self.sides.device.has(run.backend));
        }
        let unsure = answered.confidence.filter(|sure| *sure < spec.margin);
        let outcome = if unsure.is_some() { Outcome::Unsure } else { Outcome::Ok };
        self.note(&mut run, outcome, (answered.confidence, cost), now);
        if let Some(last) = run.entry.attempts.last_mut() {
            last.implausible = answered.credibility == Credibility::Implausible;
        }
        match unsure {
            Some(sure) => self.unsure(run, sure, now),
            None => self.settle(run.entry, Verdict::Done, Some(run.backend), run.reason),
        }
    }

    /// Keeps the surest classification, and asks the next model that has the skill; if there is
    /// none, the surest classification is the answer.
    fn unsure(&mut self, run: RunningJob, confidence: f32, now: Time) {
        let RunningJob { mut entry, backend, .. } = run;
        let (server, locality) = self.named(backend);
        if entry.best.as_ref().is_none_or(|best| best.confidence < confidence) {
            entry.best = Some(Classified { backend: server, locality, confidence });
        }
        self.note_tried(&mut entry, backend, Some(Reason::Confidence));
        let _ = self.afford(&mut entry);
        let may_go_on = entry.attempts.len() < ATTEMPTS_MAX && entry.due() > now;
        let left = if may_go_on && !self.sides.best(&entry, self.askable(&entry)).is_empty() {
            self.pick_engine(&mut entry);
            self.queue.offer(entry).err().map(|back| *back)
        } else {
            Some(entry)
        };
        if let Some(entry) = left {
            // `settle` makes the surest classification the answer of a job that has no other
            self.settle(entry, Verdict::Expired, None, Reason::Confidence);
        }
    }

    /// Retries at another backend where that can help, else settles the job.
    fn failed(&mut self, mut run: RunningJob, fault: Fault, sent: Sent, now: Time) {
        let retry_after = match &fault {
            Fault::Unavailable { retry_after, .. } => Some(*retry_after),
            Fault::Crashed(_) | Fault::TimedOut(_) | Fault::ProtocolError(_) => Some(None),
            Fault::Rejected(_) | Fault::Cancelled => None,
        };
        if let Some(retry_after) = retry_after {
            let backend = &mut self.backends[run.backend];
            backend.breaker.failed(now, retry_after);
            backend.flow.failed(run.started, now, backend.profile.slots);
            self.refresh_health(now);
        }
        let may_retry = sent == Sent::Nothing
            && run.entry.attempts.len() < ATTEMPTS_MAX
            && run.entry.due() > now
            && match &fault {
                // what one provider's rules forbid goes only to the fallbacks that it names
                Fault::Rejected(_) if is_forbidden(&fault) => {
                    !self.backends[run.backend].profile.fallbacks.is_empty()
                }
                Fault::Rejected(refusal) => refusal.code == Code::Incapable,
                Fault::Unavailable { .. }
                | Fault::Crashed(_)
                | Fault::TimedOut(_)
                | Fault::ProtocolError(_) => true,
                Fault::Cancelled => false,
            };
        if !may_retry {
            return self.settle(run.entry, verdict_of(fault), Some(run.backend), run.reason);
        }
        let lack = match &fault {
            Fault::Rejected(_) if is_forbidden(&fault) => Some(Reason::Policy),
            Fault::Rejected(_) => Some(Reason::Context),
            Fault::Unavailable { .. }
            | Fault::Crashed(_)
            | Fault::TimedOut(_)
            | Fault::ProtocolError(_)
            | Fault::Cancelled => None,
        };
        self.note_tried(&mut run.entry, run.backend, lack);
        if lack.is_some() {
            self.close(&mut run.entry);
        }
        self.again(run, fault, now);
    }

    /// Notes an attempt that failed, and what the backend lacks if it must not be tried again.
    fn note_tried(&self, entry: &mut QueuedJob, backend: usize, lacks: Option<Reason>) {
        let (server, locality) = self.named(backend);
        let is_rejected = matches!(lacks, Some(Reason::Policy | Reason::Context));
        let fallbacks = &self.backends[backend].profile.fallbacks;
        let fallbacks = if is_rejected { fallbacks.clone() } else { Vec::new() };
        let slot = Some(backend);
        // there is room: a job has at most as many attempts
        let _ = entry.tried.push(Tried { server, locality, slot, lacks, fallbacks });
    }

    /// Bars the backends that may not answer what others have rejected; the record states it.
    fn close(&self, entry: &mut QueuedJob) {
        for (at, slot) in self.backends.iter().enumerate() {
            let server = &slot.profile.server;
            if !entry.tried.iter().any(|tried| tried.bars(server)) {
                continue;
            }
            entry.closed.add(at);
            let states = entry.figures.iter_mut().flat_map(|figures| &mut figures.servers);
            for state in states.filter(|state| state.server == server.as_str()) {
                // what it can't do at all was so before
                if matches!(state.lacks, None | Some(Reason::Unhealthy | Reason::Memory)) {
                    state.lacks = Some(Reason::Policy);
                }
            }
        }
    }

    /// A recalled job waits for another backend.
    fn requeue_recalled(&mut self, mut entry: QueuedJob, now: Time) {
        if entry.due() <= now {
            return self.settle(entry, Verdict::Expired, None, Reason::Deadline);
        }
        self.budgets_dirty = true;
        // its backends may have been removed
        if entry.capable().is_empty()
            && let Some(why) = self.impossible(&mut entry)
        {
            return self.refuse(entry, why, now);
        }
        self.pick_engine(&mut entry);
        if let Err(back) = self.queue.offer(entry) {
            self.refuse_busy(*back);
        }
    }

    /// Queues a job for its next attempt, unless no backend is left that could do it.
    fn again(&mut self, run: RunningJob, fault: Fault, now: Time) {
        let RunningJob { mut entry, backend, reason, recalled, .. } = run;
        // the budget may be used up
        let _ = self.afford(&mut entry);
        let is_last = !entry.candidates().is_empty()
            && entry.candidates().without(self.barred(&entry)).is_empty();
        let is_over = entry.attempts.len() >= ATTEMPTS_MAX || entry.due() <= now || is_last;
        if is_over || entry.candidates().is_empty() {
            let lack = match &fault {
                _ if is_over => None,
                _ if !entry.broke.is_empty() => Some(Reason::Budget),
                Fault::Rejected(_) => entry.first_lack(),
                // the backend was removed while the job ran
                Fault::Unavailable { .. }
                | Fault::Crashed(_)
                | Fault::TimedOut(_)
                | Fault::ProtocolError(_)
                | Fault::Cancelled => None,
            };
            if let (Some(_), Some(figures)) = (lack, &mut entry.figures) {
                self.mark_removed(figures, &self.backends[backend].profile.server);
            }
            let reason = lack.unwrap_or(reason);
            return self.settle(entry, verdict_of(fault), Some(backend), reason);
        }
        if let Some((reason, figures)) = recalled {
            (entry.offload, entry.figures) = (Some(reason), Some(figures));
        }
        self.pick_engine(&mut entry);
        if let Err(back) = self.queue.offer(entry) {
            self.settle(*back, verdict_of(fault), Some(backend), reason);
        }
    }

    pub(super) fn gone(&mut self, job: JobId, now: Time) {
        if let Some(entry) = self.queue.remove(job) {
            return self.settle(entry, Verdict::Cancelled, None, Reason::Cancelled);
        }
        if let Some(run) = self.running.remove(job) {
            self.stop(run, Verdict::Cancelled, Reason::Cancelled, now);
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        // bounded: each turn takes one job out of those that wait or run
        while let Some(entry) = self.queue.expired(now) {
            let is_broke = entry.candidates().is_empty() && !entry.broke.is_empty();
            let reason = if is_broke { Reason::Budget } else { Reason::Deadline };
            self.settle(entry, Verdict::Expired, None, reason);
        }
        while let Some(run) = self.running.expired(now) {
            self.stop(run, Verdict::Expired, Reason::Deadline, now);
        }
    }

    pub(super) fn stop(
        &mut self,
        mut run: RunningJob,
        verdict: Verdict,
        reason: Reason,
        now: Time,
    ) {
        // its progress is not reported
        let cost = self.bill(&run, &Err((Fault::Cancelled, Sent::Nothing)));
        self.note(&mut run, Outcome::Cancelled, (None, cost), now);
        let RunningJob { entry, backend, .. } = run;
        self.effects.push(Effect::Stop { job: entry.job() });
        self.settle(entry, verdict, Some(backend), reason);
    }
}

fn outcome_of(fault: &Fault) -> Outcome {
    match fault {
        Fault::Rejected(_) if is_forbidden(fault) => Outcome::Forbidden,
        Fault::Rejected(_) => Outcome::Rejected,
        Fault::Cancelled => Outcome::Cancelled,
        Fault::Unavailable { .. } => Outcome::Unavailable,
        Fault::Crashed(_) => Outcome::Crashed,
        Fault::TimedOut(_) => Outcome::TimedOut,
        Fault::ProtocolError(_) => Outcome::ProtocolError,
    }
}

fn is_forbidden(fault: &Fault) -> bool {
    matches!(fault, Fault::Rejected(refusal) if refusal.code == Code::Forbidden)
}

fn verdict_of(fault: Fault) -> Verdict {
    match fault {
        Fault::Rejected(refusal) => Verdict::Refused(refusal),
        Fault::Cancelled => Verdict::Cancelled,
        Fault::Unavailable { .. }
        | Fault::Crashed(_)
        | Fault::TimedOut(_)
        | Fault::ProtocolError(_) => Verdict::Failed(fault),
    }
}

impl RunningJob {
    /// Whether the job may still be offloaded to another backend.
    pub(super) fn may_offload(&self) -> bool {
        self.entry.spec.is_buffered
            && self.recalled.is_none()
            && self.entry.offload.is_none()
            && !self.entry.was_recalled
            && self.entry.attempts.len() + 1 < ATTEMPTS_MAX
    }
}
