//! What the judge is told, and what it says.

use std::time::Duration;

use super::account::LedgerEntry;
use super::decision::Decision;
use super::job::{JobSpec, TokenTimes};
use super::profile::{BackendId, BackendProfile};
use crate::model::generate::Fault;
use crate::money::{Hour, Usd};
use crate::pressure::level::DevicePressure;
use crate::request::job::{JobId, Priority};
use crate::request::refusal::Refusal;

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job came in.
    Arrived(JobSpec),
    /// A backend has ended an attempt; a fault says whether anything had been sent to the asker.
    Ended {
        /// Which job.
        job: JobId,
        /// How.
        outcome: Result<Answered, (Fault, Sent)>,
    },
    /// The asker went away.
    Gone(JobId),
    /// The set of backends is replaced by this one, in order of preference. A backend whose name
    /// and locality stay keeps its state; one that is removed gets no more jobs and ends those
    /// that it has; one that is added is down at first.
    Catalog(Vec<BackendProfile>),
    /// A backend can be asked and has stated its context.
    Up(BackendProfile),
    /// A backend can't be asked.
    Down(BackendId),
    /// How hard pressed the device is.
    Strained(DevicePressure),
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
    /// How sure the backend is, 0 ..= 1, if it says so.
    pub confidence: Option<f32>,
    /// What it says that it has cost.
    pub cost: Usd,
    /// What it took, if it says so.
    pub spent: Option<TokenTimes>,
}

/// Whether a part of the answer has reached the asker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing yet: another backend may still answer.
    Nothing,
    /// Some: nobody else may go on with it.
    Some,
}

/// What shall be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give the job to the backend, with this much time.
    Start {
        /// Which job.
        job: JobId,
        /// To whom.
        backend: BackendId,
        /// Time left.
        time_left: Duration,
        /// How urgent it is there: a batch job whose turn has come is not behind the others.
        priority: Priority,
        /// What has to stand in the books before anything is sent, if it can cost anything.
        hold: Option<LedgerEntry>,
    },
    /// A line for the books.
    Book(LedgerEntry),
    /// Stop the job's attempt; its end is not reported any more.
    Stop {
        /// Which job.
        job: JobId,
    },
    /// Stop the job's attempt; its end is reported, and it goes elsewhere.
    Recall {
        /// Which job.
        job: JobId,
    },
    /// End the backend, to give its memory back.
    Unload(BackendId),
    /// Start a backend again that was ended.
    Load(BackendId),
    /// Tell the asker how it ended. The job is forgotten.
    Settle {
        /// Which job.
        job: JobId,
        /// How it ended.
        verdict: Verdict,
        /// Whose answer it is, or who had it last.
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
    /// The asker went away.
    Cancelled,
    /// It broke in the middle, or every attempt failed.
    Failed(Fault),
}
