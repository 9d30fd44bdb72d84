//! What other weights of the same model lose: the difference of their predictions for a text.

use serde::Serialize;

use crate::engines::worker::PromptProgress;
use crate::limits::benchmark::{LOSS_BYTES_MAX, LOSS_TOKENS_MAX};

/// How far the predictions of a model are from those of the original.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WeightsLoss {
    /// Share of the tokens after which both have the same most likely token, 0 to 1.
    pub same_first: f64,
    /// Mean Kullback-Leibler divergence from the original, in nats, 0 or more.
    pub divergence: f64,
    /// Perplexity of the text, over that with the original.
    pub perplexity: f64,
}

impl WeightsLoss {
    /// The loss of the original itself.
    pub const NONE: WeightsLoss = WeightsLoss { same_first: 1.0, divergence: 0.0, perplexity: 1.0 };

    /// The loss of `other` against `original`, which have read the same text of two tokens or more. None if
    /// their tokens differ.
    pub fn of(original: &PromptProgress, other: &PromptProgress) -> Option<WeightsLoss> {
        if original.tokens != other.tokens || original.tokens.len() < 2 {
            return None;
        }
        let rows = || original.expected.iter().zip(&other.expected);
        #[expect(clippy::cast_precision_loss, reason = "tokens of a text")]
        let (count, same) = (
            original.expected.len() as f64,
            rows().filter(|(a, b)| likeliest(a) == likeliest(b)).count() as f64,
        );
        Some(WeightsLoss {
            same_first: same / count,
            divergence: rows().map(|(a, b)| divergence(a, b)).sum::<f64>() / count,
            perplexity: (surprise(other) - surprise(original)).exp(),
        })
    }
}

fn likeliest(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

fn divergence(original: &[f32], other: &[f32]) -> f64 {
    // an impossible token adds nothing
    let pairs = original.iter().zip(other).filter(|(a, _)| a.is_finite());
    pairs.map(|(a, b)| f64::from(*a).exp() * f64::from(a - b)).sum()
}

/// The mean negative log-probability of each next token.
fn surprise(reading: &PromptProgress) -> f64 {
    let next = reading.tokens[1..].iter().zip(&reading.expected);
    let of_token = |(token, row): (&u32, &Vec<f32>)| f64::from(row[*token as usize]);
    #[expect(clippy::cast_precision_loss, reason = "tokens of a text")]
    let count = (reading.tokens.len() - 1) as f64;
    -next.map(of_token).sum::<f64>() / count
}

/// Most tokens of a text for which two models of this vocabulary are compared, within a context of so many tokens.
pub fn tokens_max(vocabulary: u32, context: u32) -> u32 {
    let by_memory = LOSS_BYTES_MAX / 4 / u64::from(vocabulary.max(1));
    let most = by_memory.min(LOSS_TOKENS_MAX).min(u64::from(context / 2));
    u32::try_from(most).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(tokens: &[u32], rows: &[[f32; 2]]) -> PromptProgress {
        let expected = rows.iter().map(|row| row.iter().map(|p| p.ln()).collect()).collect();
        PromptProgress { tokens: tokens.to_vec(), expected }
    }

    #[test]
    fn a_model_loses_nothing_against_itself() {
        let one = reading(&[0, 1, 0], &[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]);
        let loss = WeightsLoss::of(&one, &one).unwrap();
        assert_eq!(loss, WeightsLoss::NONE);
    }

    #[test]
    fn divergence_and_perplexity_are_those_of_their_definitions() {
        let one = reading(&[0, 1], &[[0.5, 0.5], [0.9, 0.1]]);
        let other = reading(&[0, 1], &[[0.75, 0.25], [0.1, 0.9]]);
        let loss = WeightsLoss::of(&one, &other).unwrap();
        let first = 0.5 * (0.5_f64 / 0.75).ln() + 0.5 * (0.5_f64 / 0.25).ln();
        let second = 0.9 * 9.0_f64.ln() - 0.1 * 9.0_f64.ln();
        assert!((loss.divergence - f64::midpoint(first, second)).abs() < 1e-6, "{loss:?}");
        // of two equal probabilities the later counts as the likeliest
        assert!((loss.same_first - 0.0).abs() < 1e-9, "{loss:?}");
        // the token 1 after the first: 0.25 instead of 0.5
        assert!((loss.perplexity - 2.0).abs() < 1e-6, "{loss:?}");
    }

    #[test]
    fn other_tokens_are_not_compared() {
        let one = reading(&[0, 1], &[[0.5, 0.5], [0.9, 0.1]]);
        let other = reading(&[1, 1], &[[0.5, 0.5], [0.9, 0.1]]);
        assert_eq!(WeightsLoss::of(&one, &other), None);
    }

    #[test]
    fn the_predictions_fit_the_memory() {
        assert_eq!(tokens_max(49_152, 4096), 1024);
        assert_eq!(tokens_max(151_936, 4096), 331);
        assert_eq!(tokens_max(49_152, 256), 128);
    }
}
