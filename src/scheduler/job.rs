//! The job specification: what the scheduler knows of a job, and the measured times of its answer.

use crate::model::context::Locality;
use crate::model::generate::Usage;
use crate::request::client::{Client, UNLISTED};
use crate::request::format::Format;
use crate::request::job::{Job, JobId, Mode, Priority};
use crate::request::refusal::Refusal;
use crate::request::skill::{DETERMINISTIC, LOGPROBS};
use crate::time::Time;

/// What stands before the name of an application in a template, if the application is not listed.
pub(super) const UNLISTED_APP: &str = "app +/";

/// What the scheduler knows of a job.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec {
    /// Which job.
    pub job: JobId,
    /// Who asks.
    pub client: Client,
    /// What its answer is likely to resemble: its task, or its application's other prompts.
    pub template: String,
    /// Its deadline.
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
    /// The client reads the answer as a whole: nothing is handed out before its end, so that the
    /// job can still be offloaded.
    pub is_buffered: bool,
    /// Most tokens of its answer.
    pub max_tokens: Option<u32>,
    /// The skills that it needs.
    pub skills: Vec<String>,
    /// Least confidence of a classification that is taken, 0 ..= 1; 0 takes any.
    pub margin: f32,
    /// A rule has answered it.
    pub ruled: bool,
    /// Size of its prompt.
    pub bytes: usize,
    /// Most tokens that its prompt can have with any tokenizer.
    pub input_max: u32,
    /// Services it has passed.
    pub hops: u8,
    /// The furthest locality to which it may go, whatever its mode.
    pub furthest: Locality,
    /// Why nothing of it may leave this device, if redaction forbids that.
    pub unfit: Option<Refusal>,
}

impl JobSpec {
    /// The specification of a job that arrived at `now`.
    pub fn of(job: &Job, now: Time) -> JobSpec {
        let skill = job.format.skill();
        let Client { app, principal } = &job.client;
        let from = match &job.task {
            Some(task) => format!("task {task}"),
            None if principal == UNLISTED => format!("{UNLISTED_APP}{app}"),
            None => format!("app {app}"),
        };
        JobSpec {
            job: job.id,
            client: job.client.clone(),
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
                .chain(job.sampling.deterministic.then(|| DETERMINISTIC.to_owned()))
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
            furthest: job.furthest,
            unfit: None,
        }
    }
}

/// Tokens and times of an answer at its backend. Times are of computing only, without pauses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenTimes {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Of these, tokens that took the time of reading.
    pub forced_tokens: u32,
    /// Milliseconds of prefill, and of the forced tokens.
    pub prefill_ms: f64,
    /// Milliseconds of decoding.
    pub decode_ms: f64,
}

impl From<&Usage> for TokenTimes {
    fn from(usage: &Usage) -> TokenTimes {
        TokenTimes {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            forced_tokens: usage.forced_tokens,
            prefill_ms: usage.prefill_ms,
            decode_ms: usage.decode_ms,
        }
    }
}
