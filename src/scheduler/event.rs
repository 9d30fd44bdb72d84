//! What the judge is told, and what it says.

use std::time::Duration;

use super::decision::{Attempt, Decision};
use crate::generate::Fault;
use crate::model::Reach;
use crate::prompt::{Class, Format, Job, JobId, Mode, Refusal};
use crate::time::Time;

/// What the judge knows of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Ticket {
    /// Which job.
    pub job: JobId,
    /// When its answer is owed.
    pub due: Time,
    /// How urgent it is.
    pub class: Class,
    /// Where it may go.
    pub mode: Mode,
    /// The model it asks for.
    pub model: Option<String>,
    /// It asks for JSON or a schema.
    pub wants_json: bool,
    /// Size of its prompt.
    pub bytes: usize,
    /// Services it has passed.
    pub hops: u8,
    /// Tries so far.
    pub attempts: Vec<Attempt>,
}

impl Ticket {
    /// What the judge needs of a job that arrived at `now`.
    pub fn of(job: &Job, now: Time) -> Ticket {
        Ticket {
            job: job.id,
            due: now + job.budget,
            class: job.class,
            mode: job.mode,
            model: job.model.clone(),
            wants_json: job.format != Format::Text,
            bytes: job.prompt_bytes(),
            hops: job.hops,
            attempts: Vec::new(),
        }
    }
}

/// What the judge knows of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name in `mcp.json`.
    pub server: String,
    /// The model's own name, once it has stated it.
    pub model: Option<String>,
    /// How far away it is.
    pub reach: Reach,
    /// Jobs at once.
    pub slots: u32,
    /// Context length.
    pub context_tokens: u32,
    /// It can be held to JSON.
    pub json_schema: bool,
}

impl Card {
    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.server == name || self.model.as_deref() == Some(name)
    }
}

/// Names a backend: its place in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendId(pub usize);

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A job came in.
    Arrived(Ticket),
    /// A backend has ended an attempt; a fault says whether anything had been sent to the asker.
    Ended {
        /// Which job.
        job: JobId,
        /// How.
        outcome: Result<(), (Fault, Sent)>,
    },
    /// The asker went away.
    Gone(JobId),
    /// A backend can be asked and has stated its context.
    Up(BackendId, Card),
    /// A backend can't be asked.
    Down(BackendId),
    /// The time of [`Scheduler::wake_at`] has come.
    Tick,
    /// No more jobs are taken.
    Drain,
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
        budget: Duration,
    },
    /// Stop the job's attempt; its end is not reported any more.
    Stop {
        /// Which job.
        job: JobId,
    },
    /// Tell the asker how it ended. The job is forgotten.
    Settle {
        /// Which job.
        job: JobId,
        /// How it ended.
        verdict: Verdict,
        /// Where it went and why.
        decision: Decision,
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
