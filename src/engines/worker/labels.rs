//! Label scoring: a text is classified by the probability of each label after it, without decoding.
//!
//! A small model that writes a label is a poor classifier; its probabilities of the labels are a good
//! one once its bias is subtracted (see [`super::calibration`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::calibration::{LearnedLabels, question};
use super::engine::{Engine, tools_unsupported};
use super::{Decoder, LabelCache, PrefixScope, Prompt};
use crate::clock::now;
use crate::model::generate::{Fault, Usage};
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::labels::{Classification, Labels, softmax};
use crate::request::refusal::Refusal;

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
    /// Answers a prompt with one of its labels.
    pub(super) fn choose(&mut self, mut prompt: Prompt) {
        self.decoder.begin_request(&prompt.stop);
        let result = self.choose_label(&mut prompt);
        self.decoder.end_request();
        prompt.end(result);
    }

    fn choose_label(&mut self, prompt: &mut Prompt) -> Result<Usage, Fault> {
        let Format::Label(labels) = &prompt.job.format else {
            return Err(Fault::ProtocolError("there are no labels".to_owned()));
        };
        if prompt.job.wants_tools() {
            return Err(tools_unsupported());
        }
        self.pacer.take_paused();
        let started = now();
        let client = (&prompt.out, &*prompt.stop);
        let Chosen { classification, tokens } = self.classify(&prompt.job, labels, client)?;
        let text = classification.label.clone();
        prompt.out.write_blocking(text).map_err(|_| Fault::Cancelled)?;
        let computed = started.elapsed().saturating_sub(self.pacer.take_paused());
        Ok(Usage {
            prompt_tokens: u32::try_from(tokens.total).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(tokens.cached).unwrap_or(u32::MAX),
            prefill_ms: computed.as_secs_f64() * 1e3,
            classification: Some(classification),
            ..Usage::one_piece(&self.context.identification.name)
        })
    }

    /// Classifies a text. Scores that were learned before the request was stopped stay in the cache.
    ///
    /// # Errors
    /// [`Fault::Cancelled`] if `client`'s flag is set, [`Fault::Rejected`] if the prompt is too long.
    fn classify(
        &mut self,
        job: &Job,
        labels: &Arc<Labels>,
        client: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        let mut learned = match self.learned_for(job).take(labels, job.label_owner()) {
            Some(learned) => learned,
            None => LearnedLabels::of(&mut self.decoder, labels)?,
        };
        let scope = self.scope_of_labels(job, &learned);
        let scope = scope.map_err(Fault::Rejected);
        let chosen =
            scope.and_then(|scope| self.learn_and_choose(job, &scope, &mut learned, client));
        self.learned_for(job).put(labels, job.label_owner(), learned);
        chosen
    }

    /// The cache of learned labels for this job: deterministic answers use scores that were computed alone.
    fn learned_for(&mut self, job: &Job) -> &mut LabelCache<LearnedLabels> {
        if job.sampling.deterministic { &mut self.exact_labels } else { &mut self.label_cache }
    }

    /// The scope of the prompts of a classification, which begin with the examples.
    fn scope_of_labels(
        &mut self,
        job: &Job,
        learned: &LearnedLabels,
    ) -> Result<PrefixScope, Refusal> {
        let is_own = job.open_bytes > 0;
        let open = if is_own { self.decoder.encode(&learned.shots, true)?.len() } else { 0 };
        // the last token may continue in the text
        let open = open.saturating_sub(1);
        Ok(PrefixScope { group: job.cache_group.as_str().into(), open })
    }

    /// A job with a seed, or a deterministic one, is answered from the examples alone and changes no mean: its answer
    /// is the same whatever the cache group has asked before.
    fn learn_and_choose(
        &mut self,
        job: &Job,
        scope: &PrefixScope,
        learned: &mut LearnedLabels,
        client: (&Out, &AtomicBool),
    ) -> Result<Chosen, Fault> {
        while let Some((label, example)) = learned.pending.last().cloned() {
            if client.1.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let (scores, _) = self.score(job, &example, scope, learned, client)?;
            learned.add_example(label, &scores);
            learned.pending.pop();
        }
        let (scores, tokens) = self.score(job, &job.text(), scope, learned, client)?;
        let repeats = job.sampling.seed.is_some() || job.sampling.deterministic;
        let group = (!repeats).then_some(&*scope.group);
        let probabilities = softmax(&learned.calibrate(self.calibration, group, &scores));
        let classification = Classification::of(&learned.labels, &probabilities)
            .ok_or_else(|| Fault::ProtocolError("there are no labels".to_owned()))?;
        let chosen = learned.labels.names().position(|name| name == classification.label);
        if let (Some(group), Some(chosen)) = (group, chosen) {
            learned.add_text(group, chosen, &scores);
        }
        Ok(Chosen { classification, tokens })
    }

    /// Scores each label: the natural logarithm of its probability after a text.
    fn score(
        &mut self,
        job: &Job,
        text: &str,
        scope: &PrefixScope,
        learned: &LearnedLabels,
        client: (&Out, &AtomicBool),
    ) -> Result<(Vec<f32>, PromptTokens), Fault> {
        let prompt = format!("{}{}", learned.shots, question(text));
        let prompt = self.decoder.encode(&prompt, true).map_err(Fault::Rejected)?;
        let labels: usize = learned.tokens.iter().map(Vec::len).sum();
        self.check_length(prompt.len() + labels)?;
        let (sequence, cached) = if job.sampling.deterministic {
            (self.decoder.open_alone(prompt.len() + labels)?, 0)
        } else {
            self.decoder.reuse(&prompt, scope)?
        };
        let scores = self
            .prefill(sequence, &prompt[cached..], Some(client))
            .and_then(|()| self.decoder.score_continuations(sequence, &learned.tokens));
        self.decoder.release(sequence);
        Ok((scores?, PromptTokens { total: prompt.len(), cached }))
    }
}
