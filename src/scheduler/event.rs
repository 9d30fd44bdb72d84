//! What the judge is told, and what it says.

use std::time::Duration;

use super::books::LedgerEntry;
use super::decision::Decision;
use crate::model::context::{InferenceSettings, Locality};
use crate::model::generate::{Fault, Usage};
use crate::money::{Hour, Price, Usd};
use crate::pressure::level::DevicePressure;
use crate::request::format::Format;
use crate::request::job::{Job, JobId, Mode, Priority};
use crate::request::refusal::Refusal;
use crate::request::skill::LOGPROBS;
use crate::time::Time;

/// What the judge knows of a job.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Which job.
    pub job: JobId,
    /// Who asks.
    pub app: String,
    /// What its answer is likely to resemble: its task, or its application's other prompts.
    pub template: String,
    /// When its answer is owed.
    pub due: Time,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it may go.
    pub mode: Mode,
    /// The model it asks for.
    pub model: Option<String>,
    /// It asks for JSON or a schema.
    pub wants_json: bool,
    /// It offers tools, or speaks of calls.
    pub wants_tools: bool,
    /// It asks for a label or a vector, not for text.
    pub is_word: bool,
    /// The asker wants it whole: until its end nothing of it is handed out, so that it can still
    /// be moved.
    pub is_buffered: bool,
    /// Most tokens of its answer.
    pub max_tokens: Option<u32>,
    /// The talents that it needs.
    pub skills: Vec<String>,
    /// The confidence from which on a model's word is taken; 0 takes any.
    pub margin: f32,
    /// A rule has answered it.
    pub ruled: bool,
    /// Size of its prompt.
    pub bytes: usize,
    /// The most tokens that its prompt can have, whoever reads it.
    pub input_max: u32,
    /// Services it has passed.
    pub hops: u8,
}

impl JobSpec {
    /// What the judge needs of a job that arrived at `now`.
    pub fn of(job: &Job, now: Time) -> JobSpec {
        let skill = job.format.skill();
        let from = match &job.task {
            Some(task) => format!("task {task}"),
            None => format!("app {}", job.app),
        };
        JobSpec {
            job: job.id,
            app: job.app.clone(),
            template: format!("{skill} for {from}"),
            due: now + job.time_left,
            priority: job.priority,
            mode: job.mode,
            model: job.model.clone(),
            wants_json: matches!(job.format, Format::Json | Format::Schema(_)),
            wants_tools: job.wants_tools(),
            is_word: matches!(job.format, Format::Label(_) | Format::Embedding),
            is_buffered: job.is_buffered(),
            max_tokens: job.sampling.max_tokens,
            skills: std::iter::once(skill.to_owned())
                .chain(job.sampling.logprobs.map(|_| LOGPROBS.to_owned()))
                .chain(job.skill.clone())
                .collect(),
            margin: match &job.format {
                Format::Label(labels) => labels.margin,
                Format::Text | Format::Json | Format::Schema(_) | Format::Embedding => 0.0,
            },
            ruled: job.ruled.is_some(),
            bytes: job.prompt_bytes(),
            input_max: job.input_tokens_max(),
            hops: job.hops,
        }
    }
}

/// A backend's word that was not sure enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Classified {
    /// Whose.
    pub backend: BackendId,
    /// How sure it is, 0 ..= 1.
    pub confidence: f32,
}

/// What the judge knows of a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendProfile {
    /// Its name in `mcp.json`.
    pub server: String,
    /// The model's own name, once it has stated it.
    pub model: Option<String>,
    /// What its rates are measured of: its weights, threads and the like. Another model, or the
    /// same at another clock, has another; none has rates that are not worth keeping.
    pub measured: Option<String>,
    /// How far away it is.
    pub locality: Locality,
    /// Jobs at once.
    pub slots: u32,
    /// Of the jobs that it has, it works on the most urgent only, and goes back to the others when
    /// that is done.
    pub preemptive: bool,
    /// Milliseconds a token of a prompt, as it measured itself at its start.
    pub read_ms: Option<f64>,
    /// Milliseconds a token of an answer, as it measured itself at its start.
    pub write_ms: Option<f64>,
    /// Most tokens of an answer if a job does not say.
    pub max_tokens: u32,
    /// Context length.
    pub context_tokens: u32,
    /// It can be held to JSON.
    pub json_schema: bool,
    /// It calls tools.
    pub tools: bool,
    /// What it is good at; none before it has stated it.
    pub skills: Option<Vec<String>>,
    /// Backends that may answer what this one refuses for its rules or its length.
    pub fallbacks: Vec<String>,
    /// What its tokens cost.
    pub price: Price,
}

impl BackendProfile {
    /// A backend that has not stated anything yet.
    pub fn unknown(server: &str, locality: Locality) -> BackendProfile {
        BackendProfile {
            server: server.to_owned(),
            model: None,
            measured: None,
            locality,
            slots: 1,
            preemptive: false,
            read_ms: None,
            write_ms: None,
            max_tokens: InferenceSettings::default().max_tokens,
            context_tokens: u32::MAX,
            json_schema: true,
            tools: true,
            skills: None,
            fallbacks: Vec::new(),
            price: Price::default(),
        }
    }

    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.server == name || self.model.as_deref() == Some(name)
    }

    pub(super) fn has(&self, skills: &[String]) -> bool {
        let stated = self.skills.as_ref();
        stated.is_none_or(|stated| skills.iter().all(|needed| stated.contains(needed)))
    }
}

/// Names a backend: its place in the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendId(pub usize);

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
    /// A backend can be asked and has stated its context.
    Up(BackendId, BackendProfile),
    /// A backend can't be asked.
    Down(BackendId),
    /// How hard pressed the device is.
    Strained(DevicePressure),
    /// The hour of the calendar, when it has changed.
    Clock(Hour),
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
    /// What it says that it has cost.
    pub cost: Usd,
    /// What it took, if it says so.
    pub spent: Option<TokenTimes>,
}

/// What an answer took where it was made. Times are of computing only: pauses are not in them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenTimes {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, those that were still in memory.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Milliseconds of reading.
    pub prefill_ms: f64,
    /// Milliseconds of writing.
    pub decode_ms: f64,
}

impl From<&Usage> for TokenTimes {
    fn from(usage: &Usage) -> TokenTimes {
        TokenTimes {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            prefill_ms: usage.prefill_ms,
            decode_ms: usage.decode_ms,
        }
    }
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
