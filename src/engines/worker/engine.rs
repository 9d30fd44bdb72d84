//! The engine of a decoder: its state, prefill in batches, and the measurement of its rates.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::calibration::{Calibration, LearnedLabels};
use super::constraint::{Constraint, Factory};
use super::contention::Contention;
use super::label_cache::LabelCache;
use super::pacer::Duty;
use super::pacer::Pacer;
use super::queue::{PAUSED, SLOTS};
use super::step_times::StepTimes;
use super::threads::{self, Threads};
use super::watchdog::Stopped;
use super::{
    Decoder, EngineModel, PrefixScope, Prompt, PromptProgress, PromptQueue, StepPart,
    log_probabilities, same_tokens,
};
use crate::clock::now;
use crate::model::batch::BatchRates;
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::{Job, Message};
use crate::request::refusal::{Code, Refusal};

/// Tokens that the measurement at start evaluates.
struct Probe {
    warm_up: usize,
    prefill: usize,
    decode: usize,
    /// Of each answer of a batch; the first may also allocate.
    batch: usize,
}

const PROBE_TOKENS: Probe = Probe { warm_up: 8, prefill: 64, decode: 8, batch: 3 };
/// Longest warm-up after which more is measured, for each thread of the engine. The warm-up has one thread.
const PROBE_SLOW: Duration = Duration::from_secs(1);
/// Most threads for which the warm-up may take longer.
const PROBE_THREADS_MAX: u32 = 4;
/// Steps after which a measurement ends that shows no gain.
const PROBE_STEPS_MIN: usize = 2;
/// Shortest duration of a step, ms.
const STEP_MS_MIN: f64 = 1e-3;
/// How many times as long as with one thread a step takes with several where they wait for each other. On an idle
/// machine it takes no longer.
const BUSY: f64 = 1.1;
/// Answers at once that are measured, beside one alone.
const PROBE_WIDTHS: [u32; 3] = [2, 4, 8];
/// Widths in a row without a gain after which no wider one is measured.
const PROBE_WIDTHS_IN_VAIN: u32 = 2;
/// Gain of a wider batch, in tokens a second, below which it is not used: each answer of it is slower.
const GAIN_MIN: f64 = 1.15;

/// A decoder with the state that answering needs.
pub(crate) struct Engine<D> {
    pub(super) decoder: D,
    pub(super) context: ModelContext,
    /// Most answers that run at once.
    pub(super) width: usize,
    pub(super) times: StepTimes,
    /// Threads that are best on an idle machine, and those of the last step.
    pub(super) threads: Threads,
    pub(super) threads_set: Threads,
    pub(super) contention: Contention,
    /// Built at the first request with a JSON format.
    pub(super) constraints: Option<Factory>,
    pub(super) calibration: Calibration,
    pub(super) label_cache: LabelCache<LearnedLabels>,
    pub(super) pacer: Pacer,
    /// Where work is reported that was stopped and has not ended.
    pub(super) watchdog: Option<mpsc::Sender<Stopped>>,
}

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

    fn serve(&mut self, queue: &mut PromptQueue) {
        self.answer_all(queue);
    }
}

impl<D: Decoder> Engine<D> {
    pub(crate) fn new(
        decoder: D,
        mut context: ModelContext,
        calibration: Calibration,
    ) -> Engine<D> {
        let slots = u32::try_from(decoder.sequences()).unwrap_or(SLOTS).clamp(1, SLOTS);
        context.runtime.slots = slots;
        context.runtime.preemptive = slots > 1;
        let pacer = Pacer::default();
        let threads = decoder.threads().unwrap_or(Threads::SINGLE);
        Engine {
            decoder,
            context,
            width: 1,
            times: StepTimes::default(),
            threads,
            threads_set: threads,
            contention: Contention::default(),
            constraints: None,
            calibration,
            label_cache: LabelCache::default(),
            pacer,
            watchdog: None,
        }
    }

    /// Measures prefill and decode rates on a few tokens, fewer on a slow machine, and how many answers are
    /// decoded best at once.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn measure_rates(&mut self) -> Result<(), Fault> {
        let token = self.context.tokenizer.vocab_size / 2;
        // the first batch also allocates working memory
        self.set_threads(Threads::SINGLE);
        let warm_up = self.time(&[token; PROBE_TOKENS.warm_up])?;
        let is_slow = warm_up > PROBE_SLOW * self.threads.many.clamp(1, PROBE_THREADS_MAX);
        let one_ms = self.measure_threads(token, is_slow)?;
        let read = if is_slow { PROBE_TOKENS.warm_up } else { PROBE_TOKENS.prefill };
        let read = read.min(self.length() / 2);
        let is_measured = is_slow && self.threads_set == Threads::SINGLE;
        let prefill_time = if is_measured { warm_up } else { self.time(&vec![token; read])? };
        let mut steps_ms = vec![(1, one_ms)];
        let slots = self.context.runtime.slots;
        let mut in_vain = 0;
        for width in PROBE_WIDTHS.into_iter().filter(|n| *n <= slots) {
            let steps = if is_slow { 1 } else { PROBE_TOKENS.batch };
            steps_ms
                .push((width, self.time_batch(token, width, steps, f64::from(width) * one_ms)?));
            let gains = BatchRates::of_steps(&steps_ms).best_width(GAIN_MIN) == width;
            in_vain = if gains { 0 } else { in_vain + 1 };
            if is_slow || in_vain == PROBE_WIDTHS_IN_VAIN {
                break;
            }
        }
        self.decoder.clear();
        let rates = BatchRates::of_steps(&steps_ms);
        let width = rates.best_width(GAIN_MIN);
        self.width = width as usize;
        let read_ms = prefill_time.as_secs_f64() * 1e3 / to_f64(read);
        let write_ms = steps_ms.first().map_or(1.0, |(_, ms)| *ms);
        self.times = StepTimes { read_ms: read_ms.max(1e-3), write_ms, batch: rates.clone() };
        let rate = |ms: f64| Some((1e4 / ms).round() / 10.0);
        let runtime = &mut self.context.runtime;
        runtime.prefill_tokens_per_s = rate(self.times.read_ms);
        runtime.decode_tokens_per_s = rate(write_ms);
        runtime.batch = if width > 1 { rates.up_to(width) } else { BatchRates::default() };
        runtime.slots = slots.min(width + PAUSED);
        Ok(())
    }

    /// Chooses the threads of a step for one answer; the duration of such a step, in milliseconds. Where several
    /// threads wait for each other beside other programs, all that follows is measured with one.
    fn measure_threads(&mut self, token: u32, is_slow: bool) -> Result<f64, Fault> {
        let steps = if is_slow { 1 } else { PROBE_TOKENS.decode };
        let alone_ms = self.time_batch(token, 1, steps, f64::INFINITY)?;
        let Some(given) = self.decoder.threads() else { return Ok(alone_ms) };
        let mut measured = vec![(1, alone_ms)];
        let more: Vec<u32> = match given.one {
            0 if is_slow => Vec::new(),
            0 => given.candidates().filter(|threads| *threads > 1).collect(),
            1 => Vec::new(),
            fixed => vec![fixed],
        };
        let mut is_busy = false;
        for one in more {
            self.set_threads(Threads { one, ..given });
            let ms = self.time_batch(token, 1, steps, alone_ms)?;
            is_busy = measured.len() == 1 && ms > BUSY * alone_ms;
            if is_busy {
                self.contention.begin(now());
                break;
            }
            measured.push((one, ms));
            if !threads::best(&measured).1 {
                break;
            }
        }
        let one = match given.one {
            // how many are of use is not known; one is used for now
            0 if is_busy => given.many,
            0 => threads::best(&measured).0,
            fixed => fixed,
        };
        self.threads = Threads { one, ..given };
        self.context.runtime.decode_threads = (one != given.many).then_some(one);
        self.use_threads(self.contention.is_high());
        Ok(measured.iter().find(|(threads, _)| *threads == one).map_or(alone_ms, |(_, ms)| *ms))
    }

    /// Sets the threads of the next steps.
    pub(super) fn set_threads(&mut self, threads: Threads) {
        if threads != self.threads_set {
            self.threads_set = threads;
            self.decoder.set_threads(threads);
        }
    }

    /// Duration of the prefill of these tokens, without cache.
    fn time(&mut self, tokens: &[u32]) -> Result<Duration, Fault> {
        self.decoder.clear();
        let (sequence, _) = self.decoder.reuse(tokens, &PrefixScope::default())?;
        let before = now();
        self.prefill(sequence, tokens, None)?;
        let time = before.elapsed();
        self.decoder.release(sequence);
        Ok(time)
    }

    /// Shortest duration of some steps with so many answers at once, in milliseconds: others were interrupted
    /// by other programs. Ends early if it stays above a limit.
    fn time_batch(
        &mut self,
        token: u32,
        width: u32,
        steps: usize,
        most_ms: f64,
    ) -> Result<f64, Fault> {
        let one = [token];
        let begun = (0..width).map(|_| self.decoder.reuse(&one, &PrefixScope::default()));
        let sequences = begun.collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<StepPart<'_>> =
            sequences.iter().map(|&(sequence, _)| StepPart { sequence, tokens: &one }).collect();
        let mut shortest = f64::INFINITY;
        for done in 0..steps {
            if done >= PROBE_STEPS_MIN && shortest > most_ms {
                break;
            }
            let before = now();
            self.decoder.eval(&parts)?;
            shortest = shortest.min(before.elapsed().as_secs_f64() * 1e3);
        }
        for (sequence, _) in sequences {
            self.decoder.release(sequence);
        }
        Ok(shortest.max(STEP_MS_MIN))
    }

    /// Length of the context, tokens.
    pub(super) fn length(&self) -> usize {
        self.context.capabilities.context_tokens as usize
    }

    /// Compiles the constraint of a prompt's format, if it has one.
    ///
    /// # Errors
    /// As [`Factory::constrain`]; [`Fault::Cancelled`] if the client has gone.
    pub(super) fn constrain(&mut self, prompt: &Prompt) -> Result<Option<Constraint>, Fault> {
        if !matches!(prompt.job.format, Format::Json | Format::Schema(_)) {
            return Ok(None);
        }
        let factory = match &mut self.constraints {
            Some(factory) => factory,
            none => none.insert(Factory::new(self.decoder.trie())?),
        };
        let watchdog = self.watchdog.as_ref();
        let constraint = factory.constrain(&prompt.job.format, &prompt.grammar, watchdog)?;
        // the client may have gone before the grammar could be cancelled
        if prompt.stop.load(Ordering::Acquire) {
            return Err(Fault::Cancelled);
        }
        Ok(constraint)
    }

    /// Evaluates a text token by token; see [`OnThread::read`](super::OnThread::read).
    ///
    /// # Errors
    /// As that.
    pub(super) fn read(&mut self, text: &str) -> Result<PromptProgress, Fault> {
        let tokens = self.decoder.encode(text, false).map_err(Fault::Rejected)?;
        if tokens.is_empty() || tokens.len() >= self.length() {
            let message = format!("a text of {} tokens cannot be read", tokens.len());
            return Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)));
        }
        self.decoder.clear();
        let (sequence, _) = self.decoder.reuse(&tokens, &PrefixScope::default())?;
        let mut expected = Vec::with_capacity(tokens.len());
        for token in &tokens {
            self.decoder.eval(&[StepPart { sequence, tokens: &[*token] }])?;
            expected.push(log_probabilities(self.decoder.logits(0)));
        }
        self.decoder.release(sequence);
        Ok(PromptProgress { tokens, expected })
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
        sequence: usize,
        tokens: &[u32],
        client: Option<(&Out, &AtomicBool)>,
    ) -> Result<(), Fault> {
        for batch in tokens.chunks(self.decoder.batch_tokens()) {
            let began = now();
            self.decoder.eval(&[StepPart { sequence, tokens: batch }])?;
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

/// The error for a prompt that offers tools.
pub(super) fn tools_unsupported() -> Fault {
    let message = "this model does not support tool calls";
    Fault::Rejected(Refusal::field(Code::Incapable, "tools", message))
}

#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn to_f64(n: usize) -> f64 {
    n as f64
}
