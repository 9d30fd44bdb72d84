//! Calibration of label scores: the bias of a model towards some labels, learned and subtracted.
//!
//! Sources: contextual calibration, Zhao et al. 2021, arXiv:2102.09690; a running mean over recent
//! texts, "batch calibration", Zhou et al. 2023, arXiv:2309.17249. The published running mean assumes
//! equally frequent labels; here each label has its own mean, so that traffic with mostly one label
//! does not count as bias towards it. Each cache group has its own means: the texts of one application
//! do not change the answers to another.

use std::sync::Arc;

use super::Decoder;
use crate::limits::engine::LABEL_GROUPS_MAX;
use crate::model::generate::Fault;
use crate::request::labels::Labels;
use crate::request::refusal::{Code, Refusal};

/// Content-free texts: the scores after them are the model's bias.
const CONTENT_FREE: [&str; 3] = ["N/A", "", "[MASK]"];
/// Examples of each label in the few-shot prompt: more make each answer slower and were not more
/// accurate.
const SHOTS: usize = 1;
/// Further examples of each label that are scored before the first answer.
const SCORED: usize = 2;
/// Least weight of each text in a running mean.
const RUNNING_SHARE: f32 = 0.05;

/// How the bias of a model towards some labels is subtracted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Calibration {
    /// Not subtracted.
    Plain,
    /// By the scores after content-free texts.
    Contextual,
    /// By the mean scores after the cache group's texts of each label so far, all labels with equal
    /// weight.
    #[default]
    Running,
}

/// Few-shot prompt, label tokens and mean scores of one set of labels.
#[derive(Debug)]
pub(super) struct LearnedLabels {
    pub(super) labels: Arc<Labels>,
    /// The few-shot prompt before every text: examples with their labels.
    pub(super) shots: String,
    /// Tokens of each label.
    pub(super) tokens: Vec<Vec<u32>>,
    /// Texts to score before the first answer, with the index of their label; `None` for content-free
    /// ones.
    pub(super) pending: Vec<(Option<usize>, String)>,
    /// Mean scores of the labels after content-free texts.
    neutral: Mean,
    /// Mean scores of the labels after the examples of each label.
    of_label: Vec<Mean>,
    /// The same with the texts of a cache group, the most recently used group at the end.
    of_group: Vec<(Box<str>, Vec<Mean>)>,
}

/// Mean of scores: arithmetic up to 20 of them, exponentially weighted beyond.
#[derive(Debug, Clone, Default)]
struct Mean {
    scores: Vec<f32>,
    count: f32,
}

impl Mean {
    fn add(&mut self, scores: &[f32]) {
        self.count += 1.0;
        let share = (1.0 / self.count).max(RUNNING_SHARE);
        self.scores.resize(scores.len(), 0.0);
        for (mean, score) in self.scores.iter_mut().zip(scores) {
            *mean += share * (score - *mean);
        }
    }
}

impl LearnedLabels {
    /// Tokenizes the labels and builds the few-shot prompt.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if a label has no tokens in the vocabulary.
    pub(super) fn of<D: Decoder>(
        decoder: &mut D,
        labels: &Arc<Labels>,
    ) -> Result<LearnedLabels, Fault> {
        let mut shots = String::new();
        let mut pending = Vec::new();
        for (n, (label, examples)) in labels.examples.iter().enumerate() {
            for shot in examples.iter().take(SHOTS) {
                shots.push_str(&question(shot));
                shots.push_str(&answer(label));
                shots.push_str("\n\n");
            }
            let scored = examples.iter().skip(SHOTS).take(SCORED);
            pending.extend(scored.map(|text| (Some(n), text.clone())));
        }
        pending.extend(CONTENT_FREE.map(|text| (None, text.to_owned())));
        let tokens = labels.names().map(|name| decoder.encode(&answer(name), false));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>().map_err(Fault::Rejected)?;
        if tokens.iter().any(Vec::is_empty) {
            let message = "a label has no tokens in this model's vocabulary";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "labels", message)));
        }
        let of_label = vec![Mean::default(); tokens.len()];
        let labels = Arc::clone(labels);
        let (neutral, of_group) = (Mean::default(), Vec::new());
        Ok(LearnedLabels { labels, shots, tokens, pending, neutral, of_label, of_group })
    }

    /// Adds the scores after an example, or after a content-free text, to the means that all groups
    /// begin with.
    pub(super) fn add_example(&mut self, label: Option<usize>, scores: &[f32]) {
        match label {
            Some(label) => self.of_label[label].add(scores),
            None => self.neutral.add(scores),
        }
    }

    /// Adds the scores after a text of this cache group to the group's mean of its label. The least
    /// recently used group is forgotten beyond [`LABEL_GROUPS_MAX`].
    pub(super) fn add_text(&mut self, group: &str, label: usize, scores: &[f32]) {
        let known = self.of_group.iter().position(|(known, _)| **known == *group);
        let mut entry = match known {
            Some(at) => self.of_group.remove(at),
            None => (group.into(), self.of_label.clone()),
        };
        entry.1[label].add(scores);
        if self.of_group.len() >= LABEL_GROUPS_MAX {
            self.of_group.remove(0);
        }
        self.of_group.push(entry);
    }

    /// The scores with the bias subtracted, for a text of this cache group; without one the means are
    /// those of the examples.
    pub(super) fn calibrate(
        &self,
        calibration: Calibration,
        group: Option<&str>,
        scores: &[f32],
    ) -> Vec<f32> {
        let bias = match calibration {
            Calibration::Plain => vec![0.0; scores.len()],
            Calibration::Contextual => self.neutral.scores.clone(),
            Calibration::Running => {
                // a label without texts uses the content-free mean
                let known = |mean: &Mean| mean.count > 0.0;
                let own = self.of_group.iter().find(|(known, _)| Some(&**known) == group);
                let of_label = own.map_or(&self.of_label, |(_, means)| means);
                let means = of_label.iter().map(|m| if known(m) { m } else { &self.neutral });
                #[expect(clippy::cast_precision_loss, reason = "a small number")]
                let share = 1.0 / of_label.len() as f32;
                let mut bias = vec![0.0; scores.len()];
                for mean in means {
                    for (sum, score) in bias.iter_mut().zip(&mean.scores) {
                        *sum += share * score;
                    }
                }
                bias
            }
        };
        scores.iter().zip(&bias).map(|(score, bias)| score - bias).collect()
    }
}

pub(super) fn question(text: &str) -> String {
    format!("Text: {}\nLabel:", text.trim())
}

/// With the leading blank that most vocabularies have in their tokens.
fn answer(label: &str) -> String {
    format!(" {label}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(of_label: &[&[f32]]) -> LearnedLabels {
        let mut learned = LearnedLabels {
            labels: Arc::new(Labels { examples: std::collections::BTreeMap::new(), margin: 0.0 }),
            shots: String::new(),
            tokens: Vec::new(),
            pending: Vec::new(),
            neutral: Mean::default(),
            of_label: vec![Mean::default(); of_label.len()],
            of_group: Vec::new(),
        };
        learned.add_example(None, &[-1.0, -3.0]);
        for (label, scores) in of_label.iter().enumerate() {
            if !scores.is_empty() {
                learned.add_example(Some(label), scores);
            }
        }
        learned
    }

    fn is_first_best(learned: &LearnedLabels, calibration: Calibration, scores: &[f32]) -> bool {
        let scores = learned.calibrate(calibration, Some("app"), scores);
        scores[0] > scores[1]
    }

    #[test]
    fn a_bias_is_subtracted() {
        // the model prefers the first label by two after any text
        let learned = learned(&[&[-0.5, -3.5], &[-1.5, -2.5]]);
        let second = [-1.4, -2.6];
        assert!(is_first_best(&learned, Calibration::Plain, &second));
        assert!(!is_first_best(&learned, Calibration::Contextual, &second));
        assert!(!is_first_best(&learned, Calibration::Running, &second));
        assert!(is_first_best(&learned, Calibration::Running, &[-0.6, -3.4]));
    }

    #[test]
    fn traffic_of_mostly_one_label_is_no_bias_towards_it() {
        let mut learned = learned(&[&[-0.5, -3.5], &[-1.5, -2.5]]);
        for _ in 0..1000 {
            learned.add_text("app", 0, &[-0.5, -3.5]);
        }
        assert!(is_first_best(&learned, Calibration::Running, &[-0.6, -3.4]));
        assert!(!is_first_best(&learned, Calibration::Running, &[-1.4, -2.6]));
    }

    #[test]
    fn labels_without_examples_use_the_content_free_mean() {
        let learned = learned(&[&[], &[]]);
        let scores = [-1.0, -2.0];
        assert_eq!(
            learned.calibrate(Calibration::Running, Some("app"), &scores),
            learned.calibrate(Calibration::Contextual, Some("app"), &scores)
        );
    }

    #[test]
    fn texts_of_one_group_do_not_change_the_scores_of_another() {
        let mut learned = learned(&[&[-0.5, -3.5], &[-1.5, -2.5]]);
        let second = |group: &str, learned: &LearnedLabels| {
            learned.calibrate(Calibration::Running, Some(group), &[-1.4, -2.6])
        };
        let before = second("victim", &learned);
        for _ in 0..100 {
            learned.add_text("attacker", 0, &[-9.0, -0.1]);
            learned.add_text("attacker", 1, &[-9.0, -0.1]);
        }
        assert_eq!(second("victim", &learned), before);
        assert_ne!(second("attacker", &learned), before);
        let of_examples = learned.calibrate(Calibration::Running, None, &[-1.4, -2.6]);
        assert_eq!(of_examples, before);
        // a group that was forgotten begins again
        for n in 0..LABEL_GROUPS_MAX {
            learned.add_text(&n.to_string(), 0, &[-0.5, -3.5]);
        }
        assert_eq!(learned.of_group.len(), LABEL_GROUPS_MAX);
        assert_eq!(second("attacker", &learned), before);
    }
}
