//! Probabilities of tokens and of continuations, from logits.

use super::{Decoder, StepPart};
use crate::model::generate::Fault;

/// Log-softmax, relative to the greatest logit so that nothing overflows.
pub(in crate::engines) fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "of the size of a logit")]
    let norm = sum.ln() as f32;
    logits.iter().map(|logit| logit - most - norm).collect()
}

/// Log-probability of the first token of each continuation.
pub(in crate::engines) fn score_first_tokens(logits: &[f32], all: &[Vec<u32>]) -> Vec<f32> {
    let first = log_probabilities(logits);
    all.iter().map(|tokens| first[tokens[0] as usize]).collect()
}

/// [`Decoder::score_continuations`], token by token.
///
/// # Errors
/// As that.
pub(in crate::engines) fn score_each(
    decoder: &mut (impl Decoder + ?Sized),
    sequence: usize,
    all: &[Vec<u32>],
) -> Result<Vec<f32>, Fault> {
    let mut sums = score_first_tokens(decoder.logits(0), all);
    for (sum, tokens) in sums.iter_mut().zip(all) {
        for pair in tokens.windows(2) {
            decoder.eval(&[StepPart { sequence, tokens: &pair[..1] }])?;
            *sum += log_probabilities(decoder.logits(0))[pair[1] as usize];
        }
        decoder.truncate(sequence, tokens.len() - 1)?;
    }
    Ok(sums)
}
