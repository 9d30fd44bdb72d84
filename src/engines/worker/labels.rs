//! Labels scored instead of written: how likely is each label after the text?
//!
//! A tiny model that writes a label is a poor classifier; the same model's probabilities of the
//! labels are a good one, once its bias towards some of them is taken off. Sources: contextual
//! calibration, Zhao et al. 2021, arXiv:2102.09690; a running mean over recent texts instead of
//! content-free ones, "batch calibration", Zhou et al. 2023, arXiv:2309.17249. The running mean
//! takes all labels to be equally frequent; here it is kept for each label apart, so that traffic
//! with mostly one label does not count as bias towards it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Decoder;
use super::answer::Engine;
use crate::model::generate::{Fault, Out};
use crate::request::labels::{Classification, Labels, softmax};
use crate::request::refusal::{Code, Refusal};

/// Texts that say nothing: what is expected after these is the model's bias.
const CONTENT_FREE: [&str; 3] = ["N/A", "", "[MASK]"];
/// Examples of each label that are shown before every text: more make each answer slower and were
/// not better.
const SHOWN: usize = 1;
/// Further examples of each label that are looked at before the first answer.
const LOOKED_AT: usize = 2;
/// How much of a running mean each new text replaces.
const RUNNING_SHARE: f32 = 0.05;

/// How the bias of a model towards some labels is taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Calibration {
    /// Not at all.
    Plain,
    /// By what it expects after texts that say nothing.
    Contextual,
    /// By what it has expected after texts of each label so far, all labels counted alike.
    #[default]
    Running,
}

/// What was learned of one set of labels.
#[derive(Debug)]
pub(super) struct LearnedLabels {
    labels: Arc<Labels>,
    /// What stands before every text: examples with their labels.
    head: String,
    /// The tokens of each label.
    tokens: Vec<Vec<u32>>,
    /// Texts that are still to be looked at before the first answer, with their label; those
    /// without one say nothing.
    ahead: Vec<(Option<usize>, String)>,
    /// Mean scores of the labels after texts that say nothing.
    neutral: Mean,
    /// Mean scores of the labels after texts of each label.
    of_label: Vec<Mean>,
}

/// A mean of all that was added, and once that is much, of what was added last.
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
    fn of<D: Decoder>(decoder: &mut D, labels: &Arc<Labels>) -> Result<LearnedLabels, Fault> {
        let mut head = String::new();
        let mut ahead = Vec::new();
        for (n, (label, examples)) in labels.examples.iter().enumerate() {
            for shown in examples.iter().take(SHOWN) {
                head.push_str(&question(shown));
                head.push_str(&answer(label));
                head.push_str("\n\n");
            }
            let looked_at = examples.iter().skip(SHOWN).take(LOOKED_AT);
            ahead.extend(looked_at.map(|text| (Some(n), text.clone())));
        }
        ahead.extend(CONTENT_FREE.map(|text| (None, text.to_owned())));
        let tokens = labels.names().map(|name| decoder.encode(&answer(name), false));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_, _>>().map_err(Fault::Rejected)?;
        if tokens.iter().any(Vec::is_empty) {
            let message = "a label has no tokens in this model's vocabulary";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "labels", message)));
        }
        let of_label = vec![Mean::default(); tokens.len()];
        let labels = Arc::clone(labels);
        Ok(LearnedLabels { labels, head, tokens, ahead, neutral: Mean::default(), of_label })
    }

    fn add(&mut self, label: Option<usize>, scores: &[f32]) {
        match label {
            Some(label) => self.of_label[label].add(scores),
            None => self.neutral.add(scores),
        }
    }

    /// The scores without the bias.
    fn calibrate(&self, calibration: Calibration, scores: &[f32]) -> Vec<f32> {
        let bias = match calibration {
            Calibration::Plain => vec![0.0; scores.len()],
            Calibration::Contextual => self.neutral.scores.clone(),
            Calibration::Running => {
                // of a label without texts nothing is known but what comes after none
                let known = |mean: &Mean| mean.count > 0.0;
                let means = self.of_label.iter().map(|m| if known(m) { m } else { &self.neutral });
                #[expect(clippy::cast_precision_loss, reason = "a small number")]
                let share = 1.0 / self.of_label.len() as f32;
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

fn question(text: &str) -> String {
    format!("Text: {}\nLabel:", text.trim())
}

/// With the blank that most vocabularies have at the head of a word.
fn answer(label: &str) -> String {
    format!(" {label}")
}

/// What a classification took.
pub(super) struct Chosen {
    pub(super) said: Classification,
    /// Tokens of the prompt, and how many of them were cached.
    pub(super) prompt: (usize, usize),
}

impl<D: Decoder> Engine<D> {
    /// The label of a text. What was learned before the flag was set is kept: the next request goes
    /// on from there.
    pub(super) fn classify(
        &mut self,
        text: &str,
        labels: &Arc<Labels>,
        asker: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        let mut learned = match self.sets.take(labels) {
            Some(learned) => learned,
            None => LearnedLabels::of(&mut self.decoder, labels)?,
        };
        let chosen = self.learn_and_choose(text, &mut learned, asker);
        self.sets.keep(labels, learned);
        chosen
    }

    fn learn_and_choose(
        &mut self,
        text: &str,
        learned: &mut LearnedLabels,
        asker: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        while let Some((label, example)) = learned.ahead.last().cloned() {
            if asker.1.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let (scores, _) = self.score(&example, learned, asker)?;
            learned.add(label, &scores);
            learned.ahead.pop();
        }
        let (scores, prompt) = self.score(text, learned, asker)?;
        let probabilities = softmax(&learned.calibrate(self.calibration, &scores));
        let said = Classification::of(&learned.labels, &probabilities)
            .ok_or_else(|| Fault::ProtocolError("there are no labels".to_owned()))?;
        let chosen = learned.labels.names().position(|name| name == said.label);
        learned.add(chosen, &scores);
        Ok(Chosen { said, prompt })
    }

    /// The logarithm of the probability of each label after a text.
    fn score(
        &mut self,
        text: &str,
        learned: &LearnedLabels,
        asker: (&Out, &AtomicBool),
    ) -> Result<(Vec<f32>, (usize, usize)), Fault> {
        let prompt = format!("{}{}", learned.head, question(text));
        let prompt = self.decoder.encode(&prompt, true).map_err(Fault::Rejected)?;
        let labels: usize = learned.tokens.iter().map(Vec::len).sum();
        self.check_length(prompt.len() + labels)?;
        let cached = self.decoder.reuse(&prompt)?;
        self.read_prompt(&prompt[cached..], Some(asker))?;
        let scores = self.decoder.continuations(&learned.tokens)?;
        Ok((scores, (prompt.len(), cached)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(of_label: &[&[f32]]) -> LearnedLabels {
        let mut learned = LearnedLabels {
            labels: Arc::new(Labels { examples: std::collections::BTreeMap::new(), margin: 0.0 }),
            head: String::new(),
            tokens: Vec::new(),
            ahead: Vec::new(),
            neutral: Mean::default(),
            of_label: vec![Mean::default(); of_label.len()],
        };
        learned.add(None, &[-1.0, -3.0]);
        for (label, scores) in of_label.iter().enumerate() {
            if !scores.is_empty() {
                learned.add(Some(label), scores);
            }
        }
        learned
    }

    fn first_wins(learned: &LearnedLabels, calibration: Calibration, scores: &[f32]) -> bool {
        let scores = learned.calibrate(calibration, scores);
        scores[0] > scores[1]
    }

    #[test]
    fn a_bias_is_taken_off() {
        // the model likes the first label by two, whatever the text
        let learned = learned(&[&[-0.5, -3.5], &[-1.5, -2.5]]);
        let second = [-1.4, -2.6];
        assert!(first_wins(&learned, Calibration::Plain, &second));
        assert!(!first_wins(&learned, Calibration::Contextual, &second));
        assert!(!first_wins(&learned, Calibration::Running, &second));
        assert!(first_wins(&learned, Calibration::Running, &[-0.6, -3.4]));
    }

    #[test]
    fn traffic_of_mostly_one_label_is_no_bias_towards_it() {
        let mut learned = learned(&[&[-0.5, -3.5], &[-1.5, -2.5]]);
        for _ in 0..1000 {
            learned.add(Some(0), &[-0.5, -3.5]);
        }
        assert!(first_wins(&learned, Calibration::Running, &[-0.6, -3.4]));
        assert!(!first_wins(&learned, Calibration::Running, &[-1.4, -2.6]));
    }

    #[test]
    fn of_labels_without_examples_the_text_that_says_nothing_is_known() {
        let learned = learned(&[&[], &[]]);
        let scores = [-1.0, -2.0];
        assert_eq!(
            learned.calibrate(Calibration::Running, &scores),
            learned.calibrate(Calibration::Contextual, &scores)
        );
    }
}
