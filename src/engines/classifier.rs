//! A linear classifier over vectors of length 1, fitted to a few examples of each label.
//!
//! Multinomial logistic regression with an L2 penalty (Bishop, *Pattern Recognition and Machine
//! Learning*, 4.3.4), each label weighted alike however many examples it has; found by Nesterov's
//! accelerated gradient, whose step may be 2 because the vectors have length 1.

use crate::request::labels::softmax;

/// The penalty on large weights: from 0.0003 to 0.01 the accuracy on our labelled prompts moves by
/// less than its interval, and a smaller one makes the probabilities bolder.
const RIDGE: f32 = 0.001;
const STEP: f32 = 2.0;
/// Most rounds; fewer if there is much to compute in each.
const ROUNDS_MAX: usize = 300;
const ROUNDS_MIN: usize = 20;
/// Multiplications that one fit may take: about a second on a slow board.
const WORK_MAX: usize = 1_000_000_000;

/// A fitted classifier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Classifier {
    /// For each label the weights, and the offset at the end.
    weights: Vec<Vec<f32>>,
}

impl Classifier {
    /// Fits `labels` labels to examples: the place of each one's label, and its vector. All vectors
    /// must be of one width.
    pub(crate) fn fit(examples: &[(usize, Vec<f32>)], labels: usize) -> Classifier {
        let width = examples.first().map_or(0, |(_, vector)| vector.len());
        let work = (2 * examples.len() * labels * width).max(1);
        let rounds = (WORK_MAX / work).clamp(ROUNDS_MIN, ROUNDS_MAX);
        let shares = shares(examples, labels);
        let mut fitted = Classifier { weights: vec![vec![0.0; width + 1]; labels] };
        let mut ahead = fitted.clone();
        for round in 0..rounds {
            let gradient = ahead.gradient(examples, &shares);
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let momentum = round as f32 / (round as f32 + 3.0);
            let rows = fitted.weights.iter_mut().zip(&mut ahead.weights).zip(&gradient);
            for ((fitted, ahead), gradient) in rows {
                for ((weight, ahead), slope) in fitted.iter_mut().zip(ahead).zip(gradient) {
                    let next = *ahead - STEP * slope;
                    *ahead = next + momentum * (next - *weight);
                    *weight = next;
                }
            }
        }
        fitted
    }

    /// The probability of each label.
    pub(crate) fn probabilities(&self, vector: &[f32]) -> Vec<f32> {
        let score = |weights: &Vec<f32>| {
            let (offset, weights) = weights.split_last().unwrap_or((&0.0, &[]));
            offset + weights.iter().zip(vector).map(|(w, x)| w * x).sum::<f32>()
        };
        softmax(&self.weights.iter().map(score).collect::<Vec<_>>())
    }

    fn gradient(&self, examples: &[(usize, Vec<f32>)], shares: &[f32]) -> Vec<Vec<f32>> {
        let penalty = |weights: &Vec<f32>| {
            let mut slopes: Vec<f32> = weights.iter().map(|w| RIDGE * w).collect();
            // the offset is free
            if let Some(offset) = slopes.last_mut() {
                *offset = 0.0;
            }
            slopes
        };
        let mut gradient: Vec<Vec<f32>> = self.weights.iter().map(penalty).collect();
        for (label, vector) in examples {
            let said = self.probabilities(vector);
            for (n, slopes) in gradient.iter_mut().enumerate() {
                let wanted = if n == *label { 1.0 } else { 0.0 };
                let error = shares[*label] * (said[n] - wanted);
                for (slope, x) in slopes.iter_mut().zip(vector.iter().chain(&[1.0])) {
                    *slope += error * x;
                }
            }
        }
        gradient
    }
}

/// The weight of one example of each label: labels count alike, and all examples together 1.
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

    /// Vectors of length 1 around a direction for each label.
    fn around(random: &mut fastrand::Rng, label: usize, spread: f32) -> Vec<f32> {
        let mut vector: Vec<f32> = (0..16).map(|_| spread * (random.f32() - 0.5)).collect();
        vector[label] += 1.0;
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / length).collect()
    }

    #[test]
    fn what_is_apart_is_told_apart_and_what_lies_between_is_doubtful() {
        let mut random = fastrand::Rng::with_seed(7);
        let examples: Vec<_> = (0..24).map(|n| (n % 3, around(&mut random, n % 3, 0.6))).collect();
        let fitted = Classifier::fit(&examples, 3);
        for label in 0..3 {
            for _ in 0..50 {
                let said = fitted.probabilities(&around(&mut random, label, 0.6));
                assert!((said.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                assert!(said[label] > 0.6, "{label}: {said:?}");
            }
        }
        let mut between = vec![0.0; 16];
        (between[0], between[1]) = (0.7, 0.7);
        let said = fitted.probabilities(&between);
        assert!(said[0] < 0.6 && said[1] < 0.6 && said[2] < 0.2, "{said:?}");
    }

    #[test]
    fn the_fit_is_where_the_gradient_ends() {
        let mut random = fastrand::Rng::with_seed(9);
        let examples: Vec<_> = (0..30).map(|n| (n % 2, around(&mut random, n % 2, 2.0))).collect();
        let fitted = Classifier::fit(&examples, 2);
        let slopes = fitted.gradient(&examples, &shares(&examples, 2));
        let steepest = slopes.iter().flatten().fold(0.0_f32, |most, slope| most.max(slope.abs()));
        assert!(steepest < 1e-3, "{steepest}");
    }

    #[test]
    fn labels_count_alike_however_many_examples_they_have() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut examples: Vec<_> = (0..60).map(|_| (0, around(&mut random, 0, 1.5))).collect();
        examples.extend((0..3).map(|_| (1, around(&mut random, 1, 1.5))));
        let fitted = Classifier::fit(&examples, 2);
        let mut between = vec![0.0; 16];
        (between[0], between[1]) = (0.7, 0.7);
        let said = fitted.probabilities(&between);
        assert!((said[0] - said[1]).abs() < 0.4, "{said:?}");
    }
}
