//! The probe: a model answers a short prompt.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::golden::{PROBE_ANSWER_MAX, PROBE_TOKENS};
use crate::model::context::ModelContext;
use crate::model::generate::{Fault, Generate};
use crate::model::link::{BackendHandle, BackendState};
use crate::model::out::channel;
use crate::request::format::Format;
use crate::request::job::{Job, Mode};
use crate::request::labels::Labels;
use crate::request::skill::{CLASSIFY, EMBED, GENERATE};

/// Lets the model of this backend answer a short prompt by what it can do: text, a vector or a label.
///
/// # Errors
/// Why there is no answer, or no good one.
pub async fn probe(backend: &BackendHandle) -> Result<(), String> {
    let model = match &*backend.link.borrow() {
        BackendState::Up(model) => model.clone(),
        BackendState::Down(health) => return Err(format!("is not up: {health:?}")),
    };
    let Some(job) = job_for(model.context(), PROBE_TOKENS, PROBE_ANSWER_MAX) else {
        return Ok(());
    };
    let answered = tokio::time::timeout(PROBE_ANSWER_MAX, answer(model.as_ref(), &job)).await;
    let waited = PROBE_ANSWER_MAX.as_secs();
    answered.unwrap_or_else(|_| Err(format!("has not answered a prompt within {waited} s")))
}

/// A short request that a model with this context can answer, with so many tokens at most and within this
/// time; none if it can do nothing that is known.
pub fn job_for(context: &ModelContext, tokens: u32, deadline: Duration) -> Option<Job> {
    let can = &context.capabilities;
    let mut job = Job { mode: Mode::LocalOnly, ..Job::plain("Name a river.", deadline) };
    job.sampling.max_tokens = Some(tokens);
    if can.has(GENERATE) {
    } else if can.has(EMBED) {
        job.format = Format::Embedding;
    } else if can.has(CLASSIFY) {
        let examples = ["river", "city"].map(|label| (label.to_owned(), Vec::new())).into();
        job.format = Format::Label(Arc::new(Labels { examples, margin: 0.0 }));
        // nothing is learned from it
        job.sampling.seed = Some(0);
    } else {
        return None;
    }
    Some(job)
}

/// Lets a model answer a request of [`job_for`].
///
/// # Errors
/// Why there is no answer, or no good one.
async fn answer(model: &dyn Generate, job: &Job) -> Result<(), String> {
    let (out, mut chunks) = channel();
    let read = async {
        let mut bytes = 0;
        while let Some(chunk) = chunks.recv().await {
            bytes += chunk.text.len();
        }
        bytes
    };
    let (ended, bytes) = tokio::join!(model.generate(job, out), read);
    match ended {
        Ok(usage) if job.format == Format::Text && bytes == 0 => {
            Err(format!("has answered a prompt with nothing ({:?})", usage.finish))
        }
        Ok(_) => Ok(()),
        Err(Fault::Rejected(refusal)) => Err(format!("refuses a prompt: {}", refusal.message)),
        Err(fault) => Err(format!("has not answered a prompt: {fault}")),
    }
}
