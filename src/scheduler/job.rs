//! The job specification: what the scheduler knows of a job, and the measured times of its answer.

use crate::model::generate::Usage;
use crate::request::format::Format;
use crate::request::job::{Job, JobId, Mode, Priority};
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
