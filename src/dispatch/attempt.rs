//! One job at one backend.

use std::time::Instant;

use super::clock;
use super::ledger::Pending;
use crate::generate::{Fault, Generate, Out, Usage, channel};
use crate::limits::ANSWER_BYTES_MAX;
use crate::prompt::Job;

/// An attempt that worked.
pub(super) struct Said {
    pub(super) usage: Usage,
    /// The answer, if the asker gets it only when it is clear that it counts.
    pub(super) kept: Option<String>,
    /// When its first piece was there, if so.
    pub(super) first: Option<Instant>,
}

/// One attempt, once what it may cost stands in the books.
pub(super) async fn paid(
    held: Option<Pending>,
    generate: &dyn Generate,
    job: &Job,
    out: &mut Out,
) -> Result<Said, Fault> {
    if let Some(held) = held {
        held.done().await?;
    }
    attempt(generate, job, out).await
}

/// One attempt. An answer that nobody reads piece by piece is kept back: another may still be
/// wanted instead.
async fn attempt(generate: &dyn Generate, job: &Job, out: &mut Out) -> Result<Said, Fault> {
    if !job.is_whole() {
        let usage = generate.generate(job, out).await?;
        return Ok(Said { usage, kept: None, first: None });
    }
    let (mut inner, mut chunks) = channel();
    let read = async {
        let mut text = String::new();
        let mut first = None;
        while let Some(chunk) = chunks.recv().await {
            if chunk.text.is_empty() {
                out.alive();
                continue;
            }
            first.get_or_insert_with(clock);
            if text.len() + chunk.text.len() > ANSWER_BYTES_MAX {
                return Err(Fault::Broken("the answer is longer than it may be".to_owned()));
            }
            text.push_str(&chunk.text);
        }
        Ok((text, first))
    };
    let work = async {
        let result = generate.generate(job, &mut inner).await;
        drop(inner);
        result
    };
    let (usage, (text, first)) = futures::try_join!(work, read)?;
    Ok(Said { usage, kept: Some(text), first })
}
