//! The answer to one prompt, from its tokens to its end. Between two steps of the engine it can be paused.

use toktrie::SimpleVob;

use super::constraint::Constraint;
use super::engine::{Engine, tools_unsupported};
use super::queue::Urgency;
use super::{Decoder, PrefixScope, Prompt, log_probabilities};
use crate::engines::sampler::Sampler;
use crate::engines::text::TextOut;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::generate::{Fault, Finish, Logprob, TokenLogprob, Usage};
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};

/// Most tokens of an answer that a step evaluates: those without a choice are evaluated together.
const WRITE_TOKENS_MAX: usize = 16;

/// A prompt and its answer so far.
pub(super) struct ActiveAnswer {
    pub(super) prompt: Prompt,
    /// Whose cached prompts it may continue.
    pub(super) scope: PrefixScope,
    /// Tokens of the prompt, then of the answer.
    pub(super) tokens: Vec<u32>,
    /// Of these, tokens that are in the KV cache.
    pub(super) evaluated: usize,
    /// Of the prompt's, tokens that were in the prefix cache when the answer began; none before that.
    cached: Option<usize>,
    /// Why it ended, once it has.
    pub(super) finish: Option<Finish>,
    /// Computing time of reading, forced tokens included, and of decoding, as if no other prompt had been answered, milliseconds.
    pub(super) prefill_ms: f64,
    pub(super) decode_ms: f64,
    prompt_tokens: usize,
    /// Most tokens of the answer.
    most: u32,
    written: u32,
    /// Of these, tokens without a choice.
    forced: u32,
    /// The last token that was sampled, and the forced ones after it: they are evaluated as parts of the answer.
    latest: usize,
    sampler: Sampler,
    constraint: Option<Constraint>,
    text: TextOut,
    /// Text that the client has not had room for.
    unsent: String,
    logprobs: Vec<TokenLogprob>,
}

impl ActiveAnswer {
    pub(super) fn urgency(&self) -> Urgency {
        self.prompt.urgency
    }

    /// Whether it is computed apart from others.
    pub(super) fn is_deterministic(&self) -> bool {
        self.prompt.job.sampling.deterministic
    }

    /// Most tokens of prompt and answer.
    pub(super) fn tokens_max(&self) -> usize {
        self.prompt_tokens + self.most as usize
    }

    /// Continues the answer after `kept` of its tokens, which are in the prefix cache.
    pub(super) fn continue_from(&mut self, kept: usize) {
        self.evaluated = kept;
        // an earlier answer may have left tokens after the prompt too
        self.cached.get_or_insert(kept.min(self.prompt_tokens));
    }

    /// Tokens that are to be evaluated before the next one can be sampled; at least one.
    pub(super) fn pending(&self) -> &[u32] {
        &self.tokens[self.evaluated..]
    }

    /// Whether a part of the prompt is to be evaluated, or evaluated again after a pause.
    pub(super) fn is_reading(&self) -> bool {
        self.pending().len() > self.latest || self.evaluated < self.prompt_tokens
    }

    /// Whether it reads more than one token: a step may have no room for them.
    pub(super) fn is_long(&self) -> bool {
        self.pending().len() > 1 && self.is_reading()
    }

    /// Tokens that each step evaluates: the latest of the answer, up to [`WRITE_TOKENS_MAX`], or one of the prompt.
    pub(super) fn next_tokens(&self) -> usize {
        if self.is_long() { 1 } else { self.pending().len().min(WRITE_TOKENS_MAX) }
    }

    /// Whether the client is behind: nothing is sampled until the client has read.
    pub(super) fn is_held(&self) -> bool {
        !self.unsent.is_empty() && !self.is_unread()
    }

    /// Whether an unfinished answer has a prompt that is not read yet. A beginning without a choice is kept until
    /// then: a client that has received nothing can be answered by another model if this one fails.
    fn is_unread(&self) -> bool {
        self.evaluated < self.prompt_tokens && self.finish.is_none()
    }

    /// Sends the text for which the client has room; never waits.
    ///
    /// # Errors
    /// [`Fault::Cancelled`] if the client has gone.
    pub(super) fn flush(&mut self) -> Result<(), Fault> {
        if self.unsent.is_empty() || self.is_unread() || self.prompt.out.is_full() {
            return Ok(());
        }
        let text = std::mem::take(&mut self.unsent);
        self.prompt.out.write_blocking(text).map_err(|_| Fault::Cancelled)
    }

    /// The text is complete.
    fn end_text(&mut self, finish: Finish) {
        self.finish = Some(finish);
        self.unsent.push_str(&self.text.finish(finish == Finish::Length));
    }

    /// Whether its client has gone, or it is complete and sent.
    pub(super) fn has_ended(&self) -> bool {
        self.prompt.is_gone() || (self.finish.is_some() && self.unsent.is_empty())
    }

    /// Ends the prompt with the answer.
    pub(super) fn end(self, model: &str) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let usage = Usage {
            finish: self.finish.unwrap_or(Finish::Length),
            logprobs: self.logprobs,
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached.unwrap_or(0)),
            completion_tokens: self.written,
            forced_tokens: self.forced,
            chunks: self.prompt.out.written(),
            prefill_ms: self.prefill_ms,
            decode_ms: self.decode_ms,
            ..Usage::one_piece(model)
        };
        self.prompt.end(Ok(usage));
    }
}

impl<D: Decoder> Engine<D> {
    /// Prepares the answer to a prompt; a prompt that can't be answered is ended.
    pub(super) fn begin(&mut self, prompt: Prompt) -> Option<ActiveAnswer> {
        let prepared = self.prepare(&prompt);
        let (constraint, tokens, scope) = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => {
                prompt.end(Err(fault));
                return None;
            }
        };
        let left = u32::try_from(self.length() - tokens.len()).unwrap_or(OUTPUT_TOKENS_MAX);
        let sampling = &prompt.job.sampling;
        let asked = sampling.max_tokens.unwrap_or(self.context.inference_settings.max_tokens);
        let most = asked.min(left);
        let mut answer = ActiveAnswer {
            scope,
            prompt_tokens: tokens.len(),
            tokens,
            evaluated: 0,
            cached: None,
            finish: (most == 0).then_some(Finish::Length),
            prefill_ms: 0.0,
            decode_ms: 0.0,
            most,
            written: 0,
            forced: 0,
            latest: 1,
            sampler: Sampler::new(sampling, &self.context.inference_settings),
            constraint,
            text: TextOut::new(sampling.stop.clone()),
            unsent: String::new(),
            logprobs: Vec::new(),
            prompt,
        };
        if let Err(fault) = self.append_forced(&mut answer) {
            answer.prompt.end(Err(fault));
            return None;
        }
        Some(answer)
    }

    fn prepare(
        &mut self,
        prompt: &Prompt,
    ) -> Result<(Option<Constraint>, Vec<u32>, PrefixScope), Fault> {
        if prompt.job.wants_tools() {
            return Err(tools_unsupported());
        }
        if matches!(prompt.job.format, Format::Embedding) {
            let message = "this model does not support embeddings";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "format", message)));
        }
        let constraint = self.constrain(prompt)?;
        let tokens = self.decoder.tokens(&prompt.job.messages).map_err(Fault::Rejected)?;
        self.check_length(tokens.len())?;
        let scope = self.scope_of(&prompt.job, &tokens);
        Ok((constraint, tokens, scope))
    }

    /// Samples the next token of an answer from the logits of a part of the last step.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if its constraint costs too much, [`Fault::ProtocolError`] if it allows no token.
    pub(super) fn sample(&mut self, answer: &mut ActiveAnswer, part: usize) -> Result<(), Fault> {
        let allowed = answer.constraint.as_mut().map(Constraint::allowed).transpose()?;
        let logits = self.decoder.logits(part);
        // the sampler changes the logits
        let top = answer.prompt.job.sampling.logprobs;
        let expected = top.map(|top| (top, log_probabilities(logits)));
        let token = match &allowed {
            None => answer.sampler.sample(logits, |_| true),
            Some(allowed) => answer.sampler.sample(logits, |token| allowed.is_allowed(token)),
        };
        let none = || Fault::ProtocolError("the constraint allows no token".to_owned());
        let token = token.ok_or_else(none)?;
        if self.decoder.is_end(token) {
            answer.end_text(Finish::Stop);
            return Ok(());
        }
        answer.logprobs.extend(expected.map(|(top, all)| TokenLogprob {
            allowed_logprob: allowed.as_ref().map(|allowed| among(token, allowed, &all)),
            ..self.logprob(token, top, &all)
        }));
        if let Some(constraint) = &mut answer.constraint {
            constraint.accept(token)?;
        }
        answer.latest = 0;
        let is_done = answer.constraint.as_ref().is_some_and(Constraint::is_done);
        self.append(answer, token, is_done);
        self.append_forced(answer)
    }

    /// Appends the tokens for which the constraint leaves no choice. None if the client asked for the probabilities
    /// of the tokens, which these do not have.
    fn append_forced(&self, answer: &mut ActiveAnswer) -> Result<(), Fault> {
        if answer.finish.is_some() || answer.prompt.job.sampling.logprobs.is_some() {
            return Ok(());
        }
        let Some(constraint) = &mut answer.constraint else { return Ok(()) };
        let forced = constraint.take_forced()?;
        let is_done = constraint.is_done();
        for (at, token) in forced.iter().enumerate() {
            if answer.finish.is_some() {
                break;
            }
            answer.forced += 1;
            answer.sampler.note(*token);
            self.append(answer, *token, is_done && at + 1 == forced.len());
        }
        Ok(())
    }

    /// Appends a token to the answer, which ends with it if no other is allowed.
    fn append(&self, answer: &mut ActiveAnswer, token: u32, is_last: bool) {
        answer.written += 1;
        answer.latest += 1;
        answer.tokens.push(token);
        let text = answer.text.push(&self.decoder.token_bytes(token));
        answer.unsent.push_str(&text);
        if answer.text.is_stopped() || is_last {
            answer.end_text(Finish::Stop);
        } else if answer.written >= answer.most {
            answer.end_text(Finish::Length);
        }
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
}

/// Natural logarithm of a token's probability among the allowed tokens.
fn among(token: u32, allowed: &SimpleVob, all: &[f32]) -> f32 {
    let of = |token: u32| all.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let own = of(token);
    // relative to its own, so that no other underflows it
    let sum: f32 = allowed.iter().map(|other| (of(other) - own).exp()).sum();
    if sum.is_finite() { -sum.max(1.0).ln() } else { f32::MIN }
}
