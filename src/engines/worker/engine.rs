//! The engine of a decoder: its state, and prefill in batches.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::calibration::{Calibration, LearnedLabels};
use super::constraint::{Constraint, Factory};
use super::contention::Contention;
use super::label_cache::LabelCache;
use super::pacer::Duty;
use super::pacer::Pacer;
use super::queue::SLOTS;
use super::step_times::StepTimes;
use super::threads::Threads;
use super::watchdog::Stopped;
use super::{
    Decoder, EngineModel, PrefixScope, Prompt, PromptProgress, PromptQueue, StepPart,
    log_probabilities, same_tokens,
};
use crate::clock::now;
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::{Job, Message};
use crate::request::refusal::{Code, Refusal};

/// A decoder with the state that answering needs.
pub(crate) struct Engine<D> {
    pub(super) decoder: D,
    pub(super) context: ModelContext,
    /// Most answers that run at once.
    pub(super) width: usize,
    pub(super) times: StepTimes,
    /// The part of the share of a step that prompts have beside answers, 0 to 1: less where they take longer than measured.
    pub(super) beside: f64,
    /// Threads that are best on an idle machine, and those of the last step.
    pub(super) threads: Threads,
    pub(super) threads_set: Threads,
    pub(super) contention: Contention,
    /// Built at the first request with a JSON format.
    pub(super) constraints: Option<Factory>,
    pub(super) calibration: Calibration,
    pub(super) label_cache: LabelCache<LearnedLabels>,
    /// Learned labels of deterministic answers, whose scores were computed alone.
    pub(super) exact_labels: LabelCache<LearnedLabels>,
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
            beside: 1.0,
            threads,
            threads_set: threads,
            contention: Contention::default(),
            constraints: None,
            calibration,
            label_cache: LabelCache::default(),
            exact_labels: LabelCache::default(),
            pacer,
            watchdog: None,
        }
    }

    /// Sets the threads of the next steps.
    pub(super) fn set_threads(&mut self, threads: Threads) {
        if threads != self.threads_set {
            self.threads_set = threads;
            self.decoder.set_threads(threads);
        }
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
            none => none.insert(Factory::new(self.decoder.trie(), self.decoder.tokenizer())?),
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
    pub(super) fn scope_of(&mut self, job: &Job, prompt: &[u32]) -> PrefixScope {
        let Some(first) = job.messages.first() else { return PrefixScope::default() };
        let open = first.content.floor_char_boundary(job.open_bytes);
        let alone = Message::new(first.role, &first.content[..open]);
        // a chat template may refuse instructions without a question
        let alone = self.decoder.tokens(&[alone]).unwrap_or_default();
        PrefixScope { group: job.cache_group.as_str().into(), open: same_tokens(&alone, prompt) }
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
