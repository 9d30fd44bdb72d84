//! From a prompt to its answer: read in steps, then one token after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use toktrie::SimpleVob;

use super::constraint::{Constraint, Factory};
use super::labels::{Calibration, Chosen, LearnedLabels};
use super::pacer::{Duty, Pacer};
use super::turn::{SLOTS, Turn, take_turn};
use super::{Decoder, EngineModel, PromptProgress, Sets, log_probabilities};
use crate::clock::now;
use crate::engines::sampler::Sampler;
use crate::engines::text::TextOut;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context::ModelContext;
use crate::model::generate::{Fault, Finish, Logprob, Out, TokenLogprob, Usage};
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::labels::Labels;
use crate::request::refusal::{Code, Refusal};

/// How many tokens the measurement at start reads and writes.
struct Probe {
    warm_up: usize,
    prefill: usize,
    decode: usize,
}

const PROBE_TOKENS: Probe = Probe { warm_up: 8, prefill: 64, decode: 8 };
/// A warm-up that takes longer than this is all that is measured.
const PROBE_SLOW: Duration = Duration::from_secs(1);

/// A decoder, and what it needs to answer.
pub(crate) struct Engine<D> {
    pub(super) decoder: D,
    facts: ModelContext,
    /// Made when the first request asks for JSON.
    constraints: Option<Factory>,
    pub(super) calibration: Calibration,
    pub(super) sets: Sets<LearnedLabels>,
    pacer: Pacer,
}

impl<D: Decoder> EngineModel for Engine<D> {
    fn obey(&mut self, duty: Duty) {
        self.pacer.duty = duty;
    }

    fn facts(&mut self) -> &mut ModelContext {
        &mut self.facts
    }

    /// Reads and writes a few tokens to learn how fast this model is here; the slower it is, the
    /// fewer.
    fn measure(&mut self) -> Result<(), Fault> {
        let token = self.facts.tokenizer.vocab_size / 2;
        // the first step also makes work space
        let warm_up = self.time(&[token; PROBE_TOKENS.warm_up])?;
        let (prefill, prefill_s, decode) = if warm_up > PROBE_SLOW {
            (PROBE_TOKENS.warm_up, warm_up.as_secs_f64(), 1)
        } else {
            let read = PROBE_TOKENS.prefill.min(self.length() / 2);
            (read, self.time(&vec![token; read])?.as_secs_f64(), PROBE_TOKENS.decode)
        };
        let before = now();
        for _ in 0..decode {
            self.decoder.read(&[token])?;
        }
        let decode_s = before.elapsed().as_secs_f64();
        self.decoder.reuse(&[])?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rate =
            |tokens: usize, seconds: f64| Some((tokens as f64 / seconds * 10.0).round() / 10.0);
        self.facts.runtime.prefill_tokens_per_s = rate(prefill, prefill_s);
        self.facts.runtime.decode_tokens_per_s = rate(decode, decode_s);
        Ok(())
    }

    fn answer(&mut self, job: &Job, out: &mut Out, turn: &mut Turn<'_>) -> Result<Usage, Fault> {
        if job.wants_tools() {
            let message = "this model calls no tools";
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "tools", message)));
        }
        self.decoder.begin(turn.stop);
        let result = match &job.format {
            Format::Label(labels) => self.choose(job, labels, out, turn.stop),
            Format::Text | Format::Json | Format::Schema(_) => {
                self.answer_until_stopped(job, out, turn)
            }
            Format::Embedding => {
                let message = "this model gives no embeddings";
                Err(Fault::Rejected(Refusal::field(Code::Incapable, "format", message)))
            }
        };
        self.decoder.end();
        result
    }

    fn read_text(&mut self, text: &str) -> Result<PromptProgress, Fault> {
        let tokens = self.decoder.encode(text, false).map_err(Fault::Rejected)?;
        if tokens.is_empty() || tokens.len() >= self.length() {
            let message = format!("a text of {} tokens can't be read", tokens.len());
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)));
        }
        self.decoder.reuse(&[])?;
        let mut expected = Vec::with_capacity(tokens.len());
        for token in &tokens {
            self.decoder.read(&[*token])?;
            expected.push(log_probabilities(self.decoder.logits()));
        }
        Ok(PromptProgress { tokens, expected })
    }
}

impl<D: Decoder> Engine<D> {
    pub(crate) fn new(decoder: D, mut facts: ModelContext, calibration: Calibration) -> Engine<D> {
        facts.runtime.slots = decoder.kept().clamp(1, SLOTS);
        facts.runtime.preemptive = facts.runtime.slots > 1;
        let pacer = Pacer::default();
        Engine { decoder, facts, constraints: None, calibration, sets: Sets::default(), pacer }
    }

    /// How long it takes to read these tokens with nothing before them.
    fn time(&mut self, tokens: &[u32]) -> Result<Duration, Fault> {
        self.decoder.reuse(&[])?;
        let before = now();
        self.read_prompt(tokens, None)?;
        Ok(before.elapsed())
    }

    fn length(&self) -> usize {
        self.facts.capabilities.context_tokens as usize
    }

    fn answer_until_stopped(
        &mut self,
        job: &Job,
        out: &mut Out,
        turn: &mut Turn<'_>,
    ) -> Result<Usage, Fault> {
        let constraint = self.constrain(&job.format)?;
        let prompt = self.decoder.tokens(&job.messages).map_err(Fault::Rejected)?;
        self.check_length(prompt.len())?;
        let started = now();
        let cached = self.decoder.reuse(&prompt)?;
        let mut read = cached;
        while read < prompt.len() {
            if read > cached {
                self.yield_to_urgent(&prompt[..read], out, turn)?;
            }
            let end = prompt.len().min(read + self.decoder.step());
            self.read_prompt(&prompt[read..end], Some((out, turn.stop)))?;
            read = end;
        }
        let prefill_ms = self.computed_ms(started);
        let room = u32::try_from(self.length() - prompt.len()).unwrap_or(OUTPUT_TOKENS_MAX);
        let asked = job.sampling.max_tokens.unwrap_or(self.facts.inference_settings.max_tokens);
        let started = now();
        let bound = (constraint, asked.min(room));
        let written = self.write(job, prompt.clone(), bound, out, turn)?;
        Ok(Usage {
            finish: written.finish,
            logprobs: written.logprobs,
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(cached).unwrap_or(u32::MAX),
            completion_tokens: written.tokens,
            chunks: out.written(),
            prefill_ms,
            decode_ms: self.computed_ms(started),
            ..Usage::one_piece(&self.facts.identification.name)
        })
    }

    /// Milliseconds since then, without the pauses.
    fn computed_ms(&mut self, since: Instant) -> f64 {
        since.elapsed().saturating_sub(self.pacer.taken()).as_secs_f64() * 1e3
    }

    /// Whether a prompt of `n` tokens has room.
    pub(super) fn check_length(&self, n: usize) -> Result<(), Fault> {
        let most = self.length();
        if (1..most).contains(&n) {
            return Ok(());
        }
        let message = format!(
            "the prompt has {n} tokens and this model reads at most {most}, the answer included"
        );
        Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)))
    }

    fn choose(
        &mut self,
        job: &Job,
        labels: &Arc<Labels>,
        out: &mut Out,
        stop: &AtomicBool,
    ) -> Result<Usage, Fault> {
        let started = now();
        let Chosen { said, prompt } = self.classify(&job.text(), labels, (out, stop))?;
        send(out, said.label.clone())?;
        Ok(Usage {
            prompt_tokens: u32::try_from(prompt.0).unwrap_or(u32::MAX),
            cached_tokens: u32::try_from(prompt.1).unwrap_or(u32::MAX),
            prefill_ms: self.computed_ms(started),
            classification: Some(said),
            ..Usage::one_piece(&self.facts.identification.name)
        })
    }

    fn constrain(&mut self, format: &Format) -> Result<Option<Constraint>, Fault> {
        if !matches!(format, Format::Json | Format::Schema(_)) {
            return Ok(None);
        }
        let factory = match &mut self.constraints {
            Some(factory) => factory,
            none => none.insert(Factory::new(self.decoder.trie())?),
        };
        factory.constrain(format)
    }

    pub(super) fn read_prompt(
        &mut self,
        tokens: &[u32],
        asker: Option<(&Out, &AtomicBool)>,
    ) -> Result<(), Fault> {
        for step in tokens.chunks(self.decoder.step()) {
            let began = now();
            self.decoder.read(step)?;
            if let Some((out, stop)) = asker {
                self.pacer.rest(began.elapsed(), Some(stop));
                if stop.load(Ordering::Relaxed) {
                    return Err(Fault::Cancelled);
                }
                out.alive();
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        job: &Job,
        mut conversation: Vec<u32>,
        (mut constraint, most): (Option<Constraint>, u32),
        out: &mut Out,
        turn: &mut Turn<'_>,
    ) -> Result<Written, Fault> {
        let mut sampler = Sampler::new(&job.sampling, &self.facts.inference_settings);
        let mut text = TextOut::new(job.sampling.stop.clone());
        let mut written = Written { finish: Finish::Length, tokens: 0, logprobs: Vec::new() };
        while written.tokens < most {
            self.yield_to_urgent(&conversation, out, turn)?;
            if turn.stop.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let began = now();
            // the sampler changes the logits
            let expected =
                job.sampling.logprobs.map(|top| (top, log_probabilities(self.decoder.logits())));
            let allowed = constraint.as_mut().map(Constraint::allowed).transpose()?;
            let token = self.next(&mut sampler, allowed.as_ref())?;
            if self.decoder.is_end(token) {
                written.finish = Finish::Stop;
                break;
            }
            written.tokens += 1;
            written.logprobs.extend(expected.map(|(top, all)| TokenLogprob {
                allowed_logprob: allowed.as_ref().map(|allowed| among(token, allowed, &all)),
                ..self.logprob(token, top, &all)
            }));
            send(out, text.push(&self.decoder.piece(token)))?;
            if let Some(constraint) = &mut constraint {
                constraint.accept(token)?;
            }
            if text.is_stopped() || constraint.as_ref().is_some_and(Constraint::is_done) {
                written.finish = Finish::Stop;
                break;
            }
            if written.tokens < most {
                self.decoder.read(&[token])?;
                conversation.push(token);
                self.pacer.rest(began.elapsed(), Some(turn.stop));
            }
        }
        send(out, text.finish())?;
        Ok(written)
    }

    /// Answers what is more urgent, then reads this conversation again as far as it was thrown out.
    /// What that takes counts as a pause.
    fn yield_to_urgent(
        &mut self,
        conversation: &[u32],
        out: &Out,
        turn: &mut Turn<'_>,
    ) -> Result<(), Fault> {
        let Some(mut urgent) = turn.others.more_urgent(turn.urgency) else { return Ok(()) };
        let (paused, began) = (self.pacer.taken(), now());
        // bounded: each turn answers a prompt that has come
        loop {
            take_turn(self, *urgent, turn.others);
            match turn.others.more_urgent(turn.urgency) {
                Some(another) => urgent = another,
                None => break,
            }
        }
        self.decoder.begin(turn.stop);
        let kept = self.decoder.reuse(conversation)?;
        self.read_prompt(&conversation[kept..], Some((out, turn.stop)))?;
        self.pacer.taken();
        self.pacer.add(paused + began.elapsed());
        Ok(())
    }

    /// How likely a token was, and the likeliest ones at its place.
    fn logprob(&self, token: u32, top: u8, all: &[f32]) -> TokenLogprob {
        let of = |token: u32| {
            let bytes = self.decoder.piece(token);
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
            None => sampler.choose(logits, |_| true),
            Some(allowed) => sampler.choose(logits, |token| allowed.is_allowed(token)),
        };
        token.ok_or_else(|| Fault::ProtocolError("no token can come next".to_owned()))
    }
}

/// The logarithm of a token's probability among those that are allowed.
fn among(token: u32, allowed: &SimpleVob, all: &[f32]) -> f32 {
    let of = |token: u32| all.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let own = of(token);
    // against its own, so that no other makes it nothing
    let sum: f32 = allowed.iter().map(|other| (of(other) - own).exp()).sum();
    if sum.is_finite() { -sum.max(1.0).ln() } else { f32::MIN }
}

/// What was written.
struct Written {
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
