//! Events that the scheduler handles, and effects that it returns.

use std::time::Duration;

use super::job::{JobSpec, TokenTimes};
use super::profile::{BackendId, BackendProfile};
use crate::decision::Decision;
use crate::model::figures::Credibility;
use crate::model::generate::Fault;
use crate::money::account::{Correction, LedgerEntry};
use crate::money::{Caps, Hour, Usd};
use crate::pressure::level::DevicePressure;
use crate::request::job::{JobId, Priority};
use crate::request::refusal::Refusal;

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job came in.
    Arrived(JobSpec),
    /// A backend has ended an attempt; a fault states whether anything had been sent to the client.
    Ended {
        /// Which job.
        job: JobId,
        /// How.
        outcome: Result<Answered, (Fault, Sent)>,
    },
    /// The client went away.
    Gone(JobId),
    /// The set of backends is replaced by this one, in order of preference. A backend whose name
    /// and locality stay keeps its state; one that is removed gets no more jobs and ends those
    /// that it has; one that is added is down at first.
    Catalog(Vec<BackendProfile>),
    /// The policy has changed: the caps on spending, and how far the jobs that have not started may go
    /// and what of them may leave the device. Their deadlines stay.
    Revised {
        /// The caps from now on.
        caps: Caps,
        /// The jobs, specified anew.
        waiting: Vec<JobSpec>,
    },
    /// A backend can be asked and has stated its context.
    Up(BackendProfile),
    /// A backend can't be asked.
    Down(BackendId),
    /// A backend can't be started, for this reason: jobs that no other one can do are refused with it.
    Failed(BackendId, String),
    /// The device pressure has changed.
    Strained(DevicePressure),
    /// The operator corrects what counts as spent.
    Corrected(Correction),
    /// The hour of the calendar, when it has changed.
    Clock(Hour),
    /// The time of [`Scheduler::wake_at`](super::Scheduler::wake_at) has come.
    Tick,
    /// No more jobs are taken.
    Drain,
}

/// An attempt that worked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Answered {
    /// Confidence of a classification, 0 ..= 1, if the backend states it.
    pub confidence: Option<f32>,
    /// The cost that a backend without a configured price states; it is told and not charged.
    pub cost: Usd,
    /// Its tokens and times, if the backend states them.
    pub spent: Option<TokenTimes>,
    /// Whether its figures could be true.
    pub credibility: Credibility,
}

/// Whether a part of the answer has reached the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing yet: another backend may still answer.
    Nothing,
    /// Some: no other backend may go on with it.
    Some,
}

/// An effect, to be carried out by the dispatcher.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give the job to the backend, with this much time.
    Start {
        /// Which job.
        job: JobId,
        /// Which backend.
        backend: BackendId,
        /// Time left.
        time_left: Duration,
        /// How urgent it is there: a batch job whose turn has come is not behind the others.
        priority: Priority,
        /// The entry that must be in the ledger before anything is sent, if the call can cost money.
        hold: Option<LedgerEntry>,
    },
    /// An entry for the ledger.
    Book(LedgerEntry),
    /// Stop the job's attempt; its end is not reported any more.
    Stop {
        /// Which job.
        job: JobId,
    },
    /// Stop the job's attempt; its end is reported, and a remote backend gets the job.
    Recall {
        /// Which job.
        job: JobId,
    },
    /// End the backend, to give its memory back.
    Unload(BackendId),
    /// Start a backend again that was ended.
    Load(BackendId),
    /// Limit how many jobs the engine computes at once: the most urgent ones.
    Width {
        /// Which engine.
        backend: BackendId,
        /// At least 1.
        width: u32,
    },
    /// Report the result to the client. The job is forgotten.
    Settle {
        /// Which job.
        job: JobId,
        /// How it ended.
        verdict: Verdict,
        /// The backend that answered, or had the job last.
        backend: Option<BackendId>,
        /// Where it went and why.
        decision: Box<Decision>,
    },
    /// Nothing waits and nothing runs after [`Event::Drain`].
    Drained,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Answered.
    Done,
    /// Never started, or no backend could.
    Refused(Refusal),
    /// Its deadline came first.
    Expired,
    /// The client went away.
    Cancelled,
    /// An attempt failed after a part was sent, or every attempt failed.
    Failed(Fault),
}
