//! Label scoring: a text is classified by the probability of each label after it, without decoding.
//!
//! A small model that writes a label is a poor classifier; its probabilities of the labels are a good
//! one once its bias is subtracted (see [`super::calibration`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Decoder;
use super::calibration::{LearnedLabels, question};
use super::engine::Engine;
use crate::model::generate::Fault;
use crate::model::out::Out;
use crate::request::labels::{Classification, Labels, softmax};

/// A classification and its cost.
pub(super) struct Chosen {
    pub(super) classification: Classification,
    pub(super) tokens: PromptTokens,
}

/// Tokens of a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptTokens {
    pub(super) total: usize,
    /// Those that were in the prefix cache.
    pub(super) cached: usize,
}

impl<D: Decoder> Engine<D> {
    /// Classifies a text. Scores that were learned before the request was stopped stay in the cache.
    ///
    /// # Errors
    /// [`Fault::Cancelled`] if `client`'s flag is set, [`Fault::Rejected`] if the prompt is too long.
    pub(super) fn classify(
        &mut self,
        text: &str,
        labels: &Arc<Labels>,
        client: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        let mut learned = match self.label_cache.take(labels) {
            Some(learned) => learned,
            None => LearnedLabels::of(&mut self.decoder, labels)?,
        };
        let chosen = self.learn_and_choose(text, &mut learned, client);
        self.label_cache.put(labels, learned);
        chosen
    }

    fn learn_and_choose(
        &mut self,
        text: &str,
        learned: &mut LearnedLabels,
        client: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        while let Some((label, example)) = learned.pending.last().cloned() {
            if client.1.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let (scores, _) = self.score(&example, learned, client)?;
            learned.add(label, &scores);
            learned.pending.pop();
        }
        let (scores, tokens) = self.score(text, learned, client)?;
        let probabilities = softmax(&learned.calibrate(self.calibration, &scores));
        let classification = Classification::of(&learned.labels, &probabilities)
            .ok_or_else(|| Fault::ProtocolError("there are no labels".to_owned()))?;
        let chosen = learned.labels.names().position(|name| name == classification.label);
        learned.add(chosen, &scores);
        Ok(Chosen { classification, tokens })
    }

    /// Scores each label: the natural logarithm of its probability after a text.
    fn score(
        &mut self,
        text: &str,
        learned: &LearnedLabels,
        client: (&Out, &AtomicBool),
    ) -> Result<(Vec<f32>, PromptTokens), Fault> {
        let prompt = format!("{}{}", learned.shots, question(text));
        let prompt = self.decoder.encode(&prompt, true).map_err(Fault::Rejected)?;
        let labels: usize = learned.tokens.iter().map(Vec::len).sum();
        self.check_length(prompt.len() + labels)?;
        let cached = self.decoder.reuse(&prompt)?;
        self.prefill(&prompt[cached..], Some(client))?;
        let scores = self.decoder.score_continuations(&learned.tokens)?;
        Ok((scores, PromptTokens { total: prompt.len(), cached }))
    }
}
