//! Classification: labels with examples, and a model's probability of each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{EXAMPLE_BYTES_MAX, EXAMPLES_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};

/// Labels of a classification, each with example texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Labels {
    /// Example texts by label; a label without examples is described by its name alone.
    pub examples: BTreeMap<String, Vec<String>>,
    /// Least confidence, 0 ..= 1, with which a label is accepted; below it the next model that can
    /// classify is asked. 0 accepts the first label.
    pub margin: f32,
}

impl Labels {
    /// Checks the bounds.
    ///
    /// # Errors
    /// The path below `labels`, and what is wrong there.
    pub fn check(&self) -> Result<(), (String, String)> {
        let whole = |message: String| Err((String::new(), message));
        if !(2..=LABELS_MAX).contains(&self.examples.len()) {
            return whole(format!("{} labels, must be 2 to {LABELS_MAX}", self.examples.len()));
        }
        for (label, examples) in &self.examples {
            if label.trim().is_empty() || label.trim() != label || label.len() > NAME_BYTES_MAX {
                return whole(format!(
                    "{label:?} is not a valid label: 1 to {NAME_BYTES_MAX} bytes, no surrounding \
                     blanks"
                ));
            }
            for (at, example) in examples.iter().enumerate() {
                if example.trim().is_empty() || example.len() > EXAMPLE_BYTES_MAX {
                    let message =
                        format!("{} bytes, must be 1 to {EXAMPLE_BYTES_MAX}", example.len());
                    return Err((format!(".{label}[{at}]"), message));
                }
            }
        }
        let bytes: usize = self.examples.values().flatten().map(String::len).sum();
        if bytes > EXAMPLES_BYTES_MAX {
            return whole(format!("{bytes} bytes of examples, at most {EXAMPLES_BYTES_MAX}"));
        }
        Ok(())
    }

    /// The labels in alphabetical order, which is the order of all lists of scores.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.examples.keys().map(String::as_str)
    }

    /// Every example with the index of its label.
    pub fn all(&self) -> impl Iterator<Item = (usize, &str)> {
        let labels = self.examples.values().enumerate();
        labels.flat_map(|(n, texts)| texts.iter().map(move |text| (n, text.as_str())))
    }
}

/// Result of a classification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The most probable label.
    pub label: String,
    /// Its probability by the model, 0 ..= 1.
    pub confidence: f32,
    /// Probability of every label, with the sum 1. Empty if a rule decided.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<String, f32>,
}

impl Classification {
    /// The result of these probabilities, in the order of [`Labels::names`]; none without labels.
    pub fn of(labels: &Labels, probabilities: &[f32]) -> Option<Classification> {
        let scores: BTreeMap<String, f32> =
            labels.names().map(str::to_owned).zip(probabilities.iter().copied()).collect();
        let best = scores.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        Some(Classification { label: best.0.clone(), confidence: *best.1, scores })
    }

    /// A label with the confidence 1, as a rule gives it.
    pub fn certain(label: impl Into<String>) -> Classification {
        Classification { label: label.into(), confidence: 1.0, scores: BTreeMap::new() }
    }
}

/// Softmax of logits. The largest is subtracted first, so that no exponential overflows.
pub fn softmax(numbers: &[f32]) -> Vec<f32> {
    let most = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = numbers.iter().map(|n| (n - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(examples: &[(&str, &[&str])]) -> Labels {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let examples = examples.iter().map(|(label, all)| ((*label).to_owned(), texts(all)));
        Labels { examples: examples.collect(), margin: 0.5 }
    }

    #[test]
    fn errors_name_the_path_of_the_label() {
        assert_eq!(labels(&[("hot", &["it burns"]), ("ok", &[])]).check(), Ok(()));
        assert!(labels(&[("hot", &[])]).check().unwrap_err().1.contains("1 labels"));
        assert!(labels(&[("hot", &[]), (" ok", &[])]).check().unwrap_err().1.contains("blanks"));
        let (place, _) = labels(&[("hot", &["x", " "]), ("ok", &[])]).check().unwrap_err();
        assert_eq!(place, ".hot[1]");
        let long = "x".repeat(EXAMPLE_BYTES_MAX + 1);
        assert!(labels(&[("hot", &[&long]), ("ok", &[])]).check().is_err());
    }

    #[test]
    fn the_most_probable_label_is_the_result() {
        let labels = labels(&[("cold", &[]), ("hot", &[]), ("ok", &[])]);
        let result = Classification::of(&labels, &softmax(&[0.0, 2.0, 1.0])).unwrap();
        assert_eq!(result.label, "hot");
        assert!((result.scores.values().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((result.confidence - 0.665).abs() < 0.001);
        assert!(softmax(&[1000.0, 0.0])[0] > 0.999);
    }
}
