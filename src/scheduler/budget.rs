//! Budget checks: the most that a call can cost is held before it, and its cost replaces the hold.

use std::time::Duration;

use super::Scheduler;
use super::event::{Answered, Effect, Sent};
use super::job::JobSpec;
use super::queued::{BackendSet, QueuedJob, RunningJob};
use crate::decision::Reason;
use crate::model::generate::Fault;
use crate::money::account::{ClockState, Correction, Fits, LedgerEntry, SpendingAccount};
use crate::money::{Caps, Hour, Span, Usd};
use crate::request::refusal::{Code, Refusal};
use crate::time::Time;

impl Scheduler {
    /// The same with caps on spending, and what was spent before.
    #[must_use]
    pub fn with_budget(mut self, caps: Caps, mut account: SpendingAccount) -> Scheduler {
        account.close();
        (self.caps, self.account) = (caps, account);
        self
    }

    /// What was spent, and what running calls may cost.
    pub fn account(&self) -> &SpendingAccount {
        &self.account
    }

    pub(super) fn turn(&mut self, hour: Hour) {
        self.account.turn(hour);
        self.budgets_dirty = true;
    }

    /// The most that an answer of this backend can cost.
    fn most(&self, spec: &JobSpec, backend: usize) -> Usd {
        let profile = &self.backends[backend].profile;
        let output = spec.max_tokens.unwrap_or(profile.max_tokens).min(profile.output_tokens_max);
        profile.price.of(spec.input_max, output)
    }

    /// Finds the backends that are over budget for the job.
    ///
    /// # Errors
    /// A refusal if that is why no backend is left, for as long as the span lasts.
    pub(super) fn afford(&self, entry: &mut QueuedJob) -> Result<(), (Refusal, Reason)> {
        entry.broke = BackendSet::default();
        if !self.caps.is_bound() || entry.candidates().is_empty() {
            return Ok(());
        }
        let (mut over, mut cheapest, mut may_come) = (None, Usd::MOST, false);
        for backend in entry.able.iter() {
            let most = self.most(&entry.spec, backend);
            if most.is_none() {
                continue;
            }
            match self.account.fits(&self.caps, &entry.spec.client.principal, most) {
                Fits::Yes => continue,
                Fits::Later => may_come = true,
                Fits::No(span) => {
                    over = over.max(Some(span));
                    cheapest = cheapest.min(most);
                }
            }
            entry.broke.add(backend);
        }
        if entry.candidates().and(self.sides.remote()).is_empty() {
            entry.offload = None;
        }
        match over {
            Some(span) if entry.candidates().is_empty() && !may_come => {
                Err((self.over(span, &entry.spec.client.principal, cheapest), Reason::Budget))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The refusal of an answer that may cost `most`, which the span's cap does not allow. Without a
    /// time to retry if the answer alone may cost more than the cap.
    fn over(&self, span: Span, app: &str, most: Usd) -> Refusal {
        let name = span.name();
        let message = match self.account.left(&self.caps, app, span) {
            Some((_, cap)) if most > cap => {
                let message = format!(
                    "this answer may cost up to {most}, more than the budget of {cap} for each \
                     {name}; lower max_tokens or raise pilotlight.policy.budget"
                );
                return Refusal::new(Code::Unavailable, message);
            }
            Some((left, cap)) => format!(
                "this answer may cost up to {most}; {left} of the budget of {cap} are left for this \
                 {name}; see pilotlight.policy.budget"
            ),
            None => format!("the budget of this {name} is used up; see pilotlight.policy.budget"),
        };
        let account = &self.account;
        let hours = u64::from(account.now().left_of(span)) + u64::from(account.hours_behind());
        let message = match account.clock_state() {
            ClockState::Agrees => message,
            state @ (ClockState::Behind(_) | ClockState::SetBack(_)) => {
                format!("{message}; {state}")
            }
        };
        Refusal::new(Code::Unavailable, message).retry_after(Duration::from_secs(hours * 3600))
    }

    /// [`Scheduler::afford`] for all waiting jobs, if the budgets have changed.
    pub(super) fn afford_all(&mut self, now: Time) {
        if !std::mem::take(&mut self.budgets_dirty) || !self.caps.is_bound() {
            return;
        }
        self.review(now, Scheduler::afford);
    }

    /// Holds the most that the call can cost; also the entry for the ledger.
    pub(super) fn hold(&mut self, entry: &QueuedJob, backend: usize) -> (Usd, Option<LedgerEntry>) {
        let most = self.most(&entry.spec, backend);
        if most.is_none() {
            return (most, None);
        }
        let line = self.account.hold(entry.job().0, &entry.spec.client.principal, most);
        self.account.write(&line);
        self.budgets_dirty = true;
        (most, Some(line))
    }

    /// The cost of an attempt: that of its tokens at the configured price, at most its hold, whatever
    /// the backend states. Without a configured price it is zero. A backend that was not reached or
    /// rejected the prompt has not charged for it; the progress of any other failed attempt is not
    /// known, so it costs its hold.
    pub(super) fn bill(
        &mut self,
        run: &RunningJob,
        outcome: &Result<Answered, (Fault, Sent)>,
    ) -> Usd {
        if run.hold.is_none() {
            return Usd::NONE;
        }
        let price = self.backends[run.backend].profile.price;
        let cost = match outcome {
            Ok(answered) => answered.spent.map_or(run.hold, |spent| {
                price.of(spent.prompt_tokens, spent.completion_tokens).min(run.hold)
            }),
            Err((Fault::Unavailable { .. }, Sent::Nothing)) => Usd::NONE,
            // it has read the prompt, and its rules forbid the answer
            Err((Fault::Rejected(refusal), _)) if refusal.code != Code::Forbidden => Usd::NONE,
            Err(_) => run.hold,
        };
        self.book(LedgerEntry::Bill { call: run.entry.job().0, usd: cost });
        cost
    }

    /// The cost of an answer as it is told to the client: that of the stated tokens at the configured
    /// price, which may be more than the bill, else what the backend states of its own costs.
    pub(super) fn told(&self, run: &RunningJob, answered: &Answered) -> Usd {
        let price = self.backends[run.backend].profile.price;
        let tokens = answered.spent.filter(|_| !price.is_free());
        tokens.map_or(answered.cost, |spent| price.of(spent.prompt_tokens, spent.completion_tokens))
    }

    /// Corrects what counts as spent, once.
    pub(super) fn correct(&mut self, correction: Correction) {
        if !self.account.has(&correction) {
            self.book(LedgerEntry::Correction(correction));
        }
    }

    fn book(&mut self, entry: LedgerEntry) {
        self.account.write(&entry);
        self.budgets_dirty = true;
        self.effects.push(Effect::Book(entry));
    }
}
