//! What the judge is told, and what it says.

use std::time::Duration;

use super::decision::{Attempt, Decision};
use crate::generate::Fault;
use crate::model::{LOGPROBS, Reach};
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
    /// The talents that it needs.
    pub talents: Vec<String>,
    /// The confidence from which on a model's word is taken; 0 takes any.
    pub margin: f32,
    /// The surest word so far, if none was sure enough.
    pub best: Option<Word>,
    /// A rule has answered it.
    pub ruled: bool,
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
            wants_json: matches!(job.format, Format::Json | Format::Schema(_)),
            talents: std::iter::once(job.format.talent().to_owned())
                .chain(job.sampling.logprobs.map(|_| LOGPROBS.to_owned()))
                .chain(job.talent.clone())
                .collect(),
            margin: match &job.format {
                Format::Label(labels) => labels.margin,
                Format::Text | Format::Json | Format::Schema(_) | Format::Embedding => 0.0,
            },
            best: None,
            ruled: job.ruled.is_some(),
            bytes: job.prompt_bytes(),
            hops: job.hops,
            attempts: Vec::new(),
        }
    }
}

/// A backend's word that was not sure enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Word {
    /// Whose.
    pub backend: BackendId,
    /// How sure it is, 0 ..= 1.
    pub confidence: f32,
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
    /// What it is good at; none before it has stated it.
    pub talents: Option<Vec<String>>,
}

impl Card {
    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.server == name || self.model.as_deref() == Some(name)
    }

    pub(super) fn has(&self, talents: &[String]) -> bool {
        let stated = self.talents.as_ref();
        stated.is_none_or(|stated| talents.iter().all(|needed| stated.contains(needed)))
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
        outcome: Result<Answered, (Fault, Sent)>,
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

/// An attempt that worked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Answered {
    /// How sure the backend is, 0 ..= 1, if it says so.
    pub confidence: Option<f32>,
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
        /// Whose answer it is, or who had it last.
        backend: Option<BackendId>,
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
