//! Answers a prompt: prefill, then decoding one token at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use toktrie::SimpleVob;

use super::constraint::{Constraint, Factory};
use super::engine::Engine;
use super::labels::Chosen;
use super::pacer::Duty;
use super::preemption::{ActivePrompt, run_prompt};
use super::watchdog::Stopped;
use super::{Decoder, EngineModel, PrefixScope, PromptProgress, log_probabilities};
use crate::clock::now;
use crate::engines::sampler::Sampler;
use crate::engines::text::TextOut;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context::ModelContext;
use crate::model::generate::{Fault, Finish, Logprob, TokenLogprob, Usage};
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::labels::Labels;
use crate::request::refusal::{Code, Refusal};

impl<D: Decoder> EngineModel for Engine<D> {
    fn set_duty(&mut self, duty: Duty) {
        self.pacer.duty = duty;
    }

    fn set_watchdog(&mut self, stopped: mpsc::Sender<Stopped>) {
        self.watchdog = Some(stopped);
    }

    fn context(&mut self) -> &mut ModelContext {
        &mut self.context
    }

    fn measure(&mut self) -> Result<(), Fault> {
        self.measure_rates()
    }

    fn answer(
        &mut self,
        job: &Job,
        out: &mut Out,
        active: &mut ActivePrompt<'_>,
    ) -> Result<Usage, Fault> {
        if job.wants_tools() {
            let message = "this model does not support tool calls";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "tools", message)));
        }
        self.decoder.begin_request(active.stop);
        let result = match &job.format {
            Format::Label(labels) => self.choose(job, labels, out, active.stop),
            Format::Text | Format::Json | Format::Schema(_) => {
                self.answer_until_stopped(job, out, active)
            }
            Format::Embedding => {
                let message = "this model does not support embeddings";
                Err(Fault::Rejected(Refusal::field(Code::Incapable, "format", message)))
            }
        };
        self.decoder.end_request();
        result
    }

    fn read_text(&mut self, text: &str) -> Result<PromptProgress, Fault> {
        let tokens = self.decoder.encode(text, false).map_err(Fault::Rejected)?;
        if tokens.is_empty() || tokens.len() >= self.length() {
            let message = format!("a text of {} tokens cannot be read", tokens.len());
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)));
        }
        self.decoder.reuse(&[], &PrefixScope::default())?;
        let mut expected = Vec::with_capacity(tokens.len());
        for token in &tokens {
            self.decoder.eval(&[*token])?;
            expected.push(log_probabilities(self.decoder.logits()));
        }
        Ok(PromptProgress { tokens, expected })
    }
}

impl<D: Decoder> Engine<D> {
    fn answer_until_stopped(
        &mut self,
        job: &Job,
        out: &mut Out,
        active: &mut ActivePrompt<'_>,
    ) -> Result<Usage, Fault> {
        let constraint = self.constrain(&job.format, active)?;
        let prompt = self.decoder.tokens(&job.messages).map_err(Fault::Rejected)?;
        self.check_length(prompt.len())?;
        let started = now();
        active.scope = self.scope_of(job, &prompt).map_err(Fault::Rejected)?;
        let cached = self.decoder.reuse(&prompt, &active.scope)?;
        let mut read = cached;
        while read < prompt.len() {
            if read > cached {
                self.yield_to_urgent(&prompt[..read], out, active)?;
            }
            let end = prompt.len().min(read + self.decoder.batch_tokens());
            self.prefill(&prompt[read..end], Some((out, active.stop)))?;
            read = end;
        }
        let prefill_ms = self.computed_ms(started);
        let left = u32::try_from(self.length() - prompt.len()).unwrap_or(OUTPUT_TOKENS_MAX);
        let asked = job.sampling.max_tokens.unwrap_or(self.context.inference_settings.max_tokens);
        let started = now();
        let bound = (constraint, asked.min(left));
        let decoded = self.decode(job, prompt.clone(), bound, out, active)?;
        Ok(Usage {
            finish: decoded.finish,
            logprobs: decoded.logprobs,
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(cached).unwrap_or(u32::MAX),
            completion_tokens: decoded.tokens,
            chunks: out.written(),
            prefill_ms,
            decode_ms: self.computed_ms(started),
            ..Usage::one_piece(&self.context.identification.name)
        })
    }

    fn choose(
        &mut self,
        job: &Job,
        labels: &Arc<Labels>,
        out: &mut Out,
        stop: &AtomicBool,
    ) -> Result<Usage, Fault> {
        let started = now();
        let Chosen { classification, tokens } = self.classify(job, labels, (out, stop))?;
        send(out, classification.label.clone())?;
        Ok(Usage {
            prompt_tokens: u32::try_from(tokens.total).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(tokens.cached).unwrap_or(u32::MAX),
            prefill_ms: self.computed_ms(started),
            classification: Some(classification),
            ..Usage::one_piece(&self.context.identification.name)
        })
    }

    fn constrain(
        &mut self,
        format: &Format,
        active: &ActivePrompt<'_>,
    ) -> Result<Option<Constraint>, Fault> {
        if !matches!(format, Format::Json | Format::Schema(_)) {
            return Ok(None);
        }
        let factory = match &mut self.constraints {
            Some(factory) => factory,
            none => none.insert(Factory::new(self.decoder.trie())?),
        };
        let constraint = factory.constrain(format, active.grammar, self.watchdog.as_ref())?;
        // the client may have gone before the grammar could be cancelled
        if active.stop.load(Ordering::Acquire) {
            return Err(Fault::Cancelled);
        }
        Ok(constraint)
    }

    fn decode(
        &mut self,
        job: &Job,
        mut conversation: Vec<u32>,
        (mut constraint, most): (Option<Constraint>, u32),
        out: &mut Out,
        active: &mut ActivePrompt<'_>,
    ) -> Result<Decoded, Fault> {
        let mut sampler = Sampler::new(&job.sampling, &self.context.inference_settings);
        let mut text = TextOut::new(job.sampling.stop.clone());
        let mut decoded = Decoded { finish: Finish::Length, tokens: 0, logprobs: Vec::new() };
        while decoded.tokens < most {
            self.yield_to_urgent(&conversation, out, active)?;
            if active.stop.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let began = now();
            // the sampler changes the logits
            let expected =
                job.sampling.logprobs.map(|top| (top, log_probabilities(self.decoder.logits())));
            let allowed = constraint.as_mut().map(Constraint::allowed).transpose()?;
            let token = self.next(&mut sampler, allowed.as_ref())?;
            if self.decoder.is_end(token) {
                decoded.finish = Finish::Stop;
                break;
            }
            decoded.tokens += 1;
            decoded.logprobs.extend(expected.map(|(top, all)| TokenLogprob {
                allowed_logprob: allowed.as_ref().map(|allowed| among(token, allowed, &all)),
                ..self.logprob(token, top, &all)
            }));
            send(out, text.push(&self.decoder.token_bytes(token)))?;
            if let Some(constraint) = &mut constraint {
                constraint.accept(token)?;
            }
            if text.is_stopped() || constraint.as_ref().is_some_and(Constraint::is_done) {
                decoded.finish = Finish::Stop;
                break;
            }
            if decoded.tokens < most {
                self.decoder.eval(&[token])?;
                conversation.push(token);
                self.pacer.pause(began.elapsed(), Some(active.stop));
            }
        }
        send(out, text.finish())?;
        Ok(decoded)
    }

    /// Preemption: answers more urgent prompts, then restores the part of this conversation that was
    /// evicted from the KV cache. The time that this takes counts as a pause.
    fn yield_to_urgent(
        &mut self,
        conversation: &[u32],
        out: &Out,
        active: &mut ActivePrompt<'_>,
    ) -> Result<(), Fault> {
        let Some(mut urgent) = active.queue.more_urgent(active.urgency) else { return Ok(()) };
        let (paused, began) = (self.pacer.take_paused(), now());
        // bounded: each round answers a prompt that waits
        loop {
            run_prompt(self, *urgent, active.queue);
            match active.queue.more_urgent(active.urgency) {
                Some(another) => urgent = another,
                None => break,
            }
        }
        self.decoder.begin_request(active.stop);
        let kept = self.decoder.reuse(conversation, &active.scope)?;
        self.prefill(&conversation[kept..], Some((out, active.stop)))?;
        self.pacer.take_paused();
        self.pacer.add(paused + began.elapsed());
        Ok(())
    }

    /// Log-probability of a token, and the `top` likeliest tokens at its position.
    fn logprob(&self, token: u32, top: u8, all: &[f32]) -> TokenLogprob {
        let of = |token: u32| {
            let bytes = self.decoder.token_bytes(token);
            let logprob = all.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            Logprob { token: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob }
        };
        let mut best: Vec<u32> = Vec::new();
        for (n, logprob) in (0_u32..).zip(all) {
            let behind = |other: &u32| all[*other as usize] >= *logprob;
            let place = best.iter().take_while(|other| behind(other)).count();
            if place < usize::from(top) {
                best.insert(place, n);
                best.truncate(usize::from(top));
            }
        }
        let top_logprobs = best.into_iter().map(of).collect();
        TokenLogprob { token: of(token), allowed_logprob: None, top_logprobs }
    }

    fn next(&mut self, sampler: &mut Sampler, allowed: Option<&SimpleVob>) -> Result<u32, Fault> {
        let logits = self.decoder.logits();
        let token = match allowed {
            None => sampler.sample(logits, |_| true),
            Some(allowed) => sampler.sample(logits, |token| allowed.is_allowed(token)),
        };
        token.ok_or_else(|| Fault::ProtocolError("the constraint allows no token".to_owned()))
    }
}

/// Natural logarithm of a token's probability among the allowed tokens.
fn among(token: u32, allowed: &SimpleVob, all: &[f32]) -> f32 {
    let of = |token: u32| all.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let own = of(token);
    // relative to its own, so that no other underflows it
    let sum: f32 = allowed.iter().map(|other| (of(other) - own).exp()).sum();
    if sum.is_finite() { -sum.max(1.0).ln() } else { f32::MIN }
}

/// The result of decoding.
struct Decoded {
    finish: Finish,
    tokens: u32,
    logprobs: Vec<TokenLogprob>,
}

fn send(out: &mut Out, text: String) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    out.write_blocking(text).map_err(|_| Fault::Cancelled)
}
