//! One attempt: one job at one backend.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::egress::EgressGuard;
use crate::clock;
use crate::limits::{ANSWER_BYTES_MAX, IMPLAUSIBLE_MAX, IMPLAUSIBLE_REST};
use crate::model::figures::{Credibility, FigureBounds, FigureCheck};
use crate::model::generate::{Fault, Generate, Usage};
use crate::model::out::{Filter, Gone, Out, SharedFilter};
use crate::money::Price;
use crate::redact::Restorer;
use crate::scheduler::BackendId;
use crate::store::ledger::Pending;

/// A successful attempt.
pub(super) struct AttemptAnswer {
    pub(super) usage: Usage,
    /// The text of a buffered answer, which the client gets once it is clear that it counts.
    pub(super) buffered: Option<String>,
    /// When the first piece of a buffered answer came.
    pub(super) first: Option<Instant>,
    /// Its figures that were replaced.
    pub(super) check: FigureCheck,
}

/// What one attempt may cost.
pub(super) struct CallBudget {
    /// Its reservation, while that is being written to the ledger.
    pub(super) on_hold: Option<Pending>,
    /// The configured price of the server.
    pub(super) price: Price,
    /// Most tokens that the prompt has with any tokenizer.
    pub(super) prompt_tokens: u32,
}

impl AttemptAnswer {
    /// Warns of figures that cannot be true. A server that repeats them is rested, so that the log stays
    /// short.
    pub(super) fn log_implausible(&self, server: &BackendId) {
        if self.check.credibility() == Credibility::Plausible {
            return;
        }
        tracing::warn!(
            server = server.as_str(),
            figures = self.check.replaced.join(", "),
            "impossible figures of an answer were replaced; after {IMPLAUSIBLE_MAX} such answers the \
             server is not asked for {IMPLAUSIBLE_REST:?}"
        );
    }
}

/// Runs an attempt once the ledger has its reservation on disk.
pub(super) async fn paid(
    budget: CallBudget,
    generate: &dyn Generate,
    guard: EgressGuard<'_>,
    out: &mut Out,
) -> Result<AttemptAnswer, Fault> {
    let CallBudget { on_hold, price, prompt_tokens } = budget;
    if let Some(on_hold) = on_hold {
        on_hold.done().await?;
    }
    let started = clock::now();
    let completion_tokens = generate.context().output_tokens_max(guard.job().sampling.max_tokens);
    let mut answer = attempt(generate, guard, out).await.map_err(Fault::bounded)?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let bounds = FigureBounds { prompt_tokens, completion_tokens, ms, price };
    answer.check = FigureCheck::of(&mut answer.usage, &bounds);
    Ok(answer)
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
        return Ok(AttemptAnswer {
            usage,
            buffered: None,
            first: None,
            check: FigureCheck::default(),
        });
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
    let AnswerFilter { mut buffered, first, .. } = filter;
    if let (Some(chosen), Some(text)) = (&usage.classification, &mut buffered) {
        // the label was checked, the text beside it was not
        text.clone_from(&chosen.label);
    }
    let chunks = match &buffered {
        Some(text) => u32::from(!text.is_empty()),
        None => out.written(),
    };
    let usage = Usage { chunks, ..usage };
    Ok(AttemptAnswer { usage, buffered, first, check: FigureCheck::default() })
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
