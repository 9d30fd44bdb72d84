//! The engine of a decoder: its state, prefill in batches, and the measurement of its rates.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::calibration::{Calibration, LearnedLabels};
use super::constraint::Factory;
use super::label_cache::LabelCache;
use super::pacer::Pacer;
use super::preemption::SLOTS;
use super::watchdog::Stopped;
use super::{Decoder, PrefixScope, same_tokens};
use crate::clock::now;
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::model::out::Out;
use crate::request::job::{Job, Message};
use crate::request::refusal::{Code, Refusal};

/// Tokens that the measurement at start evaluates.
struct Probe {
    warm_up: usize,
    prefill: usize,
    decode: usize,
}

const PROBE_TOKENS: Probe = Probe { warm_up: 8, prefill: 64, decode: 8 };
/// Longest warm-up after which more is measured.
const PROBE_SLOW: Duration = Duration::from_secs(1);

/// A decoder with the state that answering needs.
pub(crate) struct Engine<D> {
    pub(super) decoder: D,
    pub(super) context: ModelContext,
    /// Built at the first request with a JSON format.
    pub(super) constraints: Option<Factory>,
    pub(super) calibration: Calibration,
    pub(super) label_cache: LabelCache<LearnedLabels>,
    pub(super) pacer: Pacer,
    /// Where work is reported that was stopped and has not ended.
    pub(super) watchdog: Option<mpsc::Sender<Stopped>>,
}

impl<D: Decoder> Engine<D> {
    pub(crate) fn new(
        decoder: D,
        mut context: ModelContext,
        calibration: Calibration,
    ) -> Engine<D> {
        context.runtime.slots = decoder.slots().clamp(1, SLOTS);
        context.runtime.preemptive = context.runtime.slots > 1;
        let pacer = Pacer::default();
        Engine {
            decoder,
            context,
            constraints: None,
            calibration,
            label_cache: LabelCache::default(),
            pacer,
            watchdog: None,
        }
    }

    /// Measures prefill and decode rates on a few tokens, fewer on a slow machine.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn measure_rates(&mut self) -> Result<(), Fault> {
        let token = self.context.tokenizer.vocab_size / 2;
        // the first batch also allocates working memory
        let warm_up = self.time(&[token; PROBE_TOKENS.warm_up])?;
        let (prefill, prefill_s, decode) = if warm_up > PROBE_SLOW {
            (PROBE_TOKENS.warm_up, warm_up.as_secs_f64(), 1)
        } else {
            let read = PROBE_TOKENS.prefill.min(self.length() / 2);
            (read, self.time(&vec![token; read])?.as_secs_f64(), PROBE_TOKENS.decode)
        };
        let before = now();
        for _ in 0..decode {
            self.decoder.eval(&[token])?;
        }
        let decode_s = before.elapsed().as_secs_f64();
        self.decoder.reuse(&[], &PrefixScope::default())?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rate =
            |tokens: usize, seconds: f64| Some((tokens as f64 / seconds * 10.0).round() / 10.0);
        self.context.runtime.prefill_tokens_per_s = rate(prefill, prefill_s);
        self.context.runtime.decode_tokens_per_s = rate(decode, decode_s);
        Ok(())
    }

    /// Duration of the prefill of these tokens, without cache.
    fn time(&mut self, tokens: &[u32]) -> Result<Duration, Fault> {
        self.decoder.reuse(&[], &PrefixScope::default())?;
        let before = now();
        self.prefill(tokens, None)?;
        Ok(before.elapsed())
    }

    /// Length of the context, tokens.
    pub(super) fn length(&self) -> usize {
        self.context.capabilities.context_tokens as usize
    }

    /// Computing time since then without pauses, milliseconds.
    pub(super) fn computed_ms(&mut self, since: Instant) -> f64 {
        since.elapsed().saturating_sub(self.pacer.take_paused()).as_secs_f64() * 1e3
    }

    /// Checks that a prompt of `n` tokens leaves room for an answer.
    ///
    /// # Errors
    /// [`Fault::Rejected`] that names both lengths.
    pub(super) fn check_length(&self, n: usize) -> Result<(), Fault> {
        let most = self.length();
        if (1..most).contains(&n) {
            return Ok(());
        }
        let message =
            format!("the prompt has {n} tokens; the context length, answer included, is {most}");
        Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)))
    }

    /// Whose cached prompts the job's `prompt` may continue. The tokens that all groups may share are
    /// those that the prompt has in common with one of the operator's text alone.
    ///
    /// # Errors
    /// As [`Decoder::tokens`].
    pub(super) fn scope_of(&mut self, job: &Job, prompt: &[u32]) -> Result<PrefixScope, Refusal> {
        let Some(first) = job.messages.first() else { return Ok(PrefixScope::default()) };
        let open = first.content.floor_char_boundary(job.open_bytes);
        let alone = Message::new(first.role, &first.content[..open]);
        let open = same_tokens(&self.decoder.tokens(&[alone])?, prompt);
        Ok(PrefixScope { group: job.cache_group.as_str().into(), open })
    }

    /// Prefill: evaluates tokens in batches, with pauses of the duty cycle between them.
    ///
    /// # Errors
    /// [`Fault::Cancelled`] when the client's flag is set between two batches.
    pub(super) fn prefill(
        &mut self,
        tokens: &[u32],
        client: Option<(&Out, &AtomicBool)>,
    ) -> Result<(), Fault> {
        for batch in tokens.chunks(self.decoder.batch_tokens()) {
            let began = now();
            self.decoder.eval(batch)?;
            if let Some((out, stop)) = client {
                self.pacer.pause(began.elapsed(), Some(stop));
                if stop.load(Ordering::Relaxed) {
                    return Err(Fault::Cancelled);
                }
                out.alive();
            }
        }
        Ok(())
    }
}
