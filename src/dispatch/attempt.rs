//! One attempt: one job at one backend.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::egress::EgressGuard;
use crate::clock;
use crate::limits::ANSWER_BYTES_MAX;
use crate::model::generate::{Fault, Generate, Usage};
use crate::model::out::{Filter, Gone, Out, SharedFilter};
use crate::redact::Restorer;
use crate::store::ledger::Pending;

/// A successful attempt.
pub(super) struct AttemptAnswer {
    pub(super) usage: Usage,
    /// The text of a buffered answer, which the client gets once it is clear that it counts.
    pub(super) buffered: Option<String>,
    /// When the first piece of a buffered answer came.
    pub(super) first: Option<Instant>,
}

/// Runs an attempt once the ledger has its reservation on disk.
pub(super) async fn paid(
    on_hold: Option<Pending>,
    generate: &dyn Generate,
    guard: EgressGuard<'_>,
    out: &mut Out,
) -> Result<AttemptAnswer, Fault> {
    if let Some(on_hold) = on_hold {
        on_hold.done().await?;
    }
    attempt(generate, guard, out).await
}

/// Runs an attempt. The backend writes into the client's channel itself; a filter buffers the answer if
/// the client does not stream it, because another answer may still replace it, and puts back what was
/// redacted. The lease ends with the attempt, however that ends.
async fn attempt(
    generate: &dyn Generate,
    guard: EgressGuard<'_>,
    out: &mut Out,
) -> Result<AttemptAnswer, Fault> {
    let (is_buffered, restorer) = (guard.job().is_buffered(), guard.restorer());
    if !is_buffered && restorer.is_none() {
        let (lent, _lease) = out.lend(None);
        let usage = generate.generate(guard.job(), lent).await?;
        return Ok(AttemptAnswer { usage, buffered: None, first: None });
    }
    let buffered = is_buffered.then(String::new);
    let filter =
        Arc::new(Mutex::new(AnswerFilter { restorer, buffered, ..AnswerFilter::default() }));
    let (lent, lease) = out.lend(Some(Arc::clone(&filter) as SharedFilter));
    let result = generate.generate(guard.job(), lent).await;
    drop(lease);
    let mut filter = std::mem::take(&mut *filter.lock().unwrap_or_else(PoisonError::into_inner));
    let rest = match &result {
        Ok(_) => filter.finish(),
        Err(_) => Ok(None),
    };
    if filter.is_too_long {
        return Err(Fault::ProtocolError("the answer exceeds the size limit".to_owned()));
    }
    let mut usage = result?;
    if let Ok(Some(rest)) = rest {
        out.write(rest).await.map_err(|_| Fault::Cancelled)?;
    }
    guard.restore(&mut usage);
    let AnswerFilter { buffered, first, .. } = filter;
    let chunks = match &buffered {
        Some(text) => u32::from(!text.is_empty()),
        None => out.written(),
    };
    Ok(AttemptAnswer { usage: Usage { chunks, ..usage }, buffered, first })
}

/// Restores what was redacted, and buffers the answer up to [`ANSWER_BYTES_MAX`].
#[derive(Default)]
struct AnswerFilter {
    restorer: Option<Restorer>,
    /// The buffer; none if the answer is streamed.
    buffered: Option<String>,
    /// When the first piece was buffered.
    first: Option<Instant>,
    bytes: usize,
    is_too_long: bool,
}

impl AnswerFilter {
    /// What is left in the restorer at the end of the answer, unless it is buffered.
    fn finish(&mut self) -> Result<Option<String>, Gone> {
        let left = self.restorer.take().map(Restorer::finish).unwrap_or_default();
        if left.is_empty() { Ok(None) } else { self.take(left) }
    }

    fn take(&mut self, text: String) -> Result<Option<String>, Gone> {
        self.bytes += text.len();
        if self.bytes > ANSWER_BYTES_MAX {
            self.is_too_long = true;
            return Err(Gone);
        }
        match &mut self.buffered {
            Some(buffered) => {
                self.first.get_or_insert_with(clock::now);
                buffered.push_str(&text);
                Ok(None)
            }
            None => Ok(Some(text)),
        }
    }
}

impl Filter for AnswerFilter {
    fn piece(&mut self, text: String) -> Result<Option<String>, Gone> {
        let text = match &mut self.restorer {
            Some(restorer) => restorer.push(&text),
            None => text,
        };
        if text.is_empty() { Ok(Some(text)) } else { self.take(text) }
    }
}
