//! Linear classifier over embeddings of length 1, fitted to a few examples of each label.
//!
//! Multinomial logistic regression with an L2 penalty (Bishop, *Pattern Recognition and Machine
//! Learning*, 4.3.4), with equal weight for each label however many examples it has. The solver is
//! Nesterov's accelerated gradient, whose step may be 2 because the vectors have length 1.

use crate::request::labels::softmax;

/// L2 penalty: between 0.0003 and 0.01 the accuracy on the labelled prompts changes by less than its
/// interval; a smaller penalty makes the probabilities overconfident.
const RIDGE: f32 = 0.001;
const STEP: f32 = 2.0;
/// Most iterations, fewer for many examples.
const ITERATIONS_MAX: usize = 300;
const ITERATIONS_MIN: usize = 20;
/// Most multiplications of one fit: about a second on a slow board.
const MULTIPLICATIONS_MAX: usize = 1_000_000_000;

/// A fitted classifier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Classifier {
    /// For each label the weights, with the bias at the end.
    weights: Vec<Vec<f32>>,
}

impl Classifier {
    /// Fits a classifier of `labels` labels to examples: index of the label, and embedding. All
    /// embeddings have the same length.
    pub(crate) fn fit(examples: &[(usize, Vec<f32>)], labels: usize) -> Classifier {
        let width = examples.first().map_or(0, |(_, vector)| vector.len());
        let multiplications = (2 * examples.len() * labels * width).max(1);
        let iterations =
            (MULTIPLICATIONS_MAX / multiplications).clamp(ITERATIONS_MIN, ITERATIONS_MAX);
        let shares = shares(examples, labels);
        let mut fitted = Classifier { weights: vec![vec![0.0; width + 1]; labels] };
        let mut lookahead = fitted.clone();
        for iteration in 0..iterations {
            let gradient = lookahead.gradient(examples, &shares);
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let momentum = iteration as f32 / (iteration as f32 + 3.0);
            let rows = fitted.weights.iter_mut().zip(&mut lookahead.weights).zip(&gradient);
            for ((fitted, lookahead), gradient) in rows {
                for ((weight, lookahead), slope) in fitted.iter_mut().zip(lookahead).zip(gradient) {
                    let next = *lookahead - STEP * slope;
                    *lookahead = next + momentum * (next - *weight);
                    *weight = next;
                }
            }
        }
        fitted
    }

    /// The probability of each label.
    pub(crate) fn probabilities(&self, vector: &[f32]) -> Vec<f32> {
        let score = |weights: &Vec<f32>| {
            let (bias, weights) = weights.split_last().unwrap_or((&0.0, &[]));
            bias + weights.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>()
        };
        softmax(&self.weights.iter().map(score).collect::<Vec<_>>())
    }

    fn gradient(&self, examples: &[(usize, Vec<f32>)], shares: &[f32]) -> Vec<Vec<f32>> {
        let penalty = |weights: &Vec<f32>| {
            let mut slopes: Vec<f32> = weights.iter().map(|w| RIDGE * w).collect();
            // the bias has no penalty
            if let Some(bias) = slopes.last_mut() {
                *bias = 0.0;
            }
            slopes
        };
        let mut gradient: Vec<Vec<f32>> = self.weights.iter().map(penalty).collect();
        for (label, vector) in examples {
            let found = self.probabilities(vector);
            for (n, slopes) in gradient.iter_mut().enumerate() {
                let target = if n == *label { 1.0 } else { 0.0 };
                let error = shares[*label] * (found[n] - target);
                for (slope, x) in slopes.iter_mut().zip(vector.iter().chain(&[1.0])) {
                    *slope += error * x;
                }
            }
        }
        gradient
    }
}

/// Weight of one example of each label: labels have equal weight, and all examples together 1.
fn shares(examples: &[(usize, Vec<f32>)], labels: usize) -> Vec<f32> {
    let mut counts = vec![0.0_f32; labels];
    for (label, _) in examples {
        counts[*label] += 1.0;
    }
    let seen: f32 = counts.iter().map(|count| count.min(1.0)).sum();
    counts.iter().map(|count| 1.0 / (count.max(1.0) * seen.max(1.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vector of length 1 near the direction of its label.
    fn around(random: &mut fastrand::Rng, label: usize, spread: f32) -> Vec<f32> {
        let mut vector: Vec<f32> = (0..16).map(|_| spread * (random.f32() - 0.5)).collect();
        vector[label] += 1.0;
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / length).collect()
    }

    #[test]
    fn separate_labels_are_certain_and_texts_between_them_are_not() {
        let mut random = fastrand::Rng::with_seed(7);
        let examples: Vec<_> = (0..24).map(|n| (n % 3, around(&mut random, n % 3, 0.6))).collect();
        let fitted = Classifier::fit(&examples, 3);
        for label in 0..3 {
            for _ in 0..50 {
                let found = fitted.probabilities(&around(&mut random, label, 0.6));
                assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                assert!(found[label] > 0.6, "{label}: {found:?}");
            }
        }
        let mut between = vec![0.0; 16];
        (between[0], between[1]) = (0.7, 0.7);
        let found = fitted.probabilities(&between);
        assert!(found[0] < 0.6 && found[1] < 0.6 && found[2] < 0.2, "{found:?}");
    }

    #[test]
    fn the_gradient_is_zero_at_the_fit() {
        let mut random = fastrand::Rng::with_seed(9);
        let examples: Vec<_> = (0..30).map(|n| (n % 2, around(&mut random, n % 2, 2.0))).collect();
        let fitted = Classifier::fit(&examples, 2);
        let slopes = fitted.gradient(&examples, &shares(&examples, 2));
        let steepest = slopes.iter().flatten().fold(0.0_f32, |most, slope| most.max(slope.abs()));
        assert!(steepest < 1e-3, "{steepest}");
    }

    #[test]
    fn labels_have_equal_weight_however_many_examples_they_have() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut examples: Vec<_> = (0..60).map(|_| (0, around(&mut random, 0, 1.5))).collect();
        examples.extend((0..3).map(|_| (1, around(&mut random, 1, 1.5))));
        let fitted = Classifier::fit(&examples, 2);
        let mut between = vec![0.0; 16];
        (between[0], between[1]) = (0.7, 0.7);
        let found = fitted.probabilities(&between);
        assert!((found[0] - found[1]).abs() < 0.4, "{found:?}");
    }
}
