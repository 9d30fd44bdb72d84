//! The engine worker thread: one thread owns a model, a bounded channel leads to it.
//!
//! A library that computes for seconds must not block a thread of the async runtime, and most libraries
//! must be called from one thread only.

#[cfg(test)]
mod alone_tests;
mod answer;
mod batch;
#[cfg(test)]
mod batch_tests;
mod calibration;
pub mod constraint;
mod contention;
mod engine;
#[cfg(test)]
mod forced_tests;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grammar_vocabulary;
mod label_cache;
mod labels;
mod measurement;
pub(super) mod memory;
mod pacer;
mod queue;
mod scores;
mod step_times;
mod threads;
mod watchdog;

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use toktrie::TokTrie;

pub use self::calibration::Calibration;
pub(super) use self::engine::Engine;
pub(super) use self::grammar_vocabulary::Tokenize;
pub(super) use self::label_cache::LabelCache;
pub(super) use self::measurement::Measurement;
use self::pacer::Duty;
use self::queue::Urgency;
pub(super) use self::queue::{PromptQueue, SLOTS};
pub(super) use self::scores::{log_probabilities, score_each, score_first_tokens};
pub(super) use self::threads::Threads;
use self::watchdog::{GrammarStop, PendingPrompt, Stopped};
use super::template::ChatTemplate;
use crate::clock::now;
use crate::limits::DEADLINE_GRACE;
use crate::limits::engine::{ENGINE_CANCEL_MAX, ENGINE_CANCELS_MAX};
use crate::model::context::ModelContext;
use crate::model::generate::{BoxFuture, Fault, Generate, Pace, Usage};
use crate::model::out::Out;
use crate::request::job::{Job, Message};
use crate::request::refusal::{Code, Refusal};

/// Interval of the signs of life to the client of a preempted prompt.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A model as the engine worker thread runs it.
pub(crate) trait EngineModel {
    /// Sets the duty cycle; the default ignores it.
    fn set_duty(&mut self, _duty: Duty) {}

    /// Sets where work is reported that was stopped and has not ended; the default has none.
    fn set_watchdog(&mut self, _stopped: mpsc::Sender<Stopped>) {}

    /// What the model states about itself.
    fn context(&mut self) -> &mut ModelContext;

    /// Measures prefill and decode rates on this machine.
    ///
    /// # Errors
    /// If the library fails.
    fn measure(&mut self) -> Result<(), Fault>;

    /// Answers the prompts of a queue until it is closed. A prompt ends soon after its flag is set.
    fn serve(&mut self, queue: &mut PromptQueue);
}

/// Serves the prompts of a queue one after the other.
pub(super) fn serve_each(
    queue: &mut PromptQueue,
    mut answer: impl FnMut(&Job, &mut Out, &AtomicBool) -> Result<Usage, Fault>,
) {
    // ends with the queue
    while let Some(task) = queue.next() {
        match task {
            EngineTask::Answer(mut prompt) => {
                let result = answer(&prompt.job, &mut prompt.out, &prompt.stop);
                prompt.end(result);
            }
            EngineTask::Read { done, .. } => {
                let message = "an encoder has no next-token probabilities";
                let refusal = Refusal::field(Code::Incapable, "prompt", message);
                let _ = done.send(Err(Fault::Rejected(refusal)));
            }
        }
    }
}

/// Tokens that one step evaluates for a sequence of the KV cache, after those that it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepPart<'t> {
    pub(crate) sequence: usize,
    /// At least one.
    pub(crate) tokens: &'t [u32],
}

/// An autoregressive model, as a library offers it: tokens in, logits out, with a KV cache for several
/// sequences. A sequence is in use from [`Decoder::reuse`] until [`Decoder::release`]; after that it is
/// the prefix cache, which may be evicted.
pub(crate) trait Decoder {
    /// Renders a conversation with the chat template, as tokens.
    ///
    /// # Errors
    /// The chat template's own error.
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal>;

    /// Tokenizes a plain text; with `begins`, after the model's beginning-of-text token if it has one.
    ///
    /// # Errors
    /// If it can't be tokenized.
    fn encode(&mut self, text: &str, begins: bool) -> Result<Vec<u32>, Refusal>;

    /// Sequences that can be in use at once.
    fn sequences(&self) -> usize;

    /// The threads that it was given; none, by default, if their number cannot be changed.
    fn threads(&self) -> Option<Threads> {
        None
    }

    /// Sets the threads of the next steps; the default ignores it.
    fn set_threads(&mut self, _threads: Threads) {}

    /// What an earlier start with the same weights, program, options and processors has measured; none by default.
    fn measured(&self) -> Option<Measurement> {
        None
    }

    /// Keeps what was measured for the next start; the default does not.
    fn keep_measured(&mut self, _measurement: &Measurement) {}

    /// Tokens for which the KV cache has room, beside the sequences in use.
    fn free_tokens(&self) -> usize;

    /// Takes a sequence that is not in use, with the longest prefix of `prompt` in its KV cache that the
    /// scope may share ([`PrefixScope::common`]), and nothing else. Returns the sequence and the length of
    /// the prefix in tokens, which is less than that of the prompt.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if all sequences are in use, or the KV cache can't be truncated.
    fn reuse(&mut self, prompt: &[u32], scope: &PrefixScope) -> Result<(usize, usize), Fault>;

    /// Takes a sequence in a KV cache of its own, which is empty and has room for so many tokens. The same steps have
    /// then the same logits, whatever the other sequences have. There is one at a time, and it is evaluated in steps
    /// of its own.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if there is no memory for it; [`Fault::Rejected`], by default, if the library can't.
    fn open_alone(&mut self, _tokens: usize) -> Result<usize, Fault> {
        let message = "this model has no deterministic answers";
        Err(Fault::Rejected(Refusal::field(Code::Incapable, "deterministic", message)))
    }

    /// Ends the use of a sequence. Its tokens stay in the prefix cache, unless it was alone.
    fn release(&mut self, sequence: usize);

    /// Empties the prefix cache; no sequence is in use.
    fn clear(&mut self);

    /// Evaluates up to [`Decoder::batch_tokens`] tokens of different sequences in use.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library fails; the KV cache is then unchanged.
    fn eval(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault>;

    /// Removes the last tokens of a sequence from the KV cache; the logits are then undefined.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the KV cache can't be truncated.
    fn truncate(&mut self, sequence: usize, last: usize) -> Result<(), Fault>;

    /// Natural logarithm of the probability of each continuation of a sequence, given as at least one token
    /// each. The KV cache is unchanged afterwards. The last step must have been of this sequence alone.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library fails.
    fn score_continuations(
        &mut self,
        sequence: usize,
        all: &[Vec<u32>],
    ) -> Result<Vec<f32>, Fault> {
        score_each(self, sequence, all)
    }

    /// Most tokens of one batch; a request can be stopped between two batches.
    fn batch_tokens(&self) -> usize;

    /// One logit for each token of the vocabulary, after the last token of a part of the last step; the
    /// sampler may change them.
    fn logits(&mut self, part: usize) -> &mut [f32];

    /// Whether this is an end-of-generation token.
    fn is_end(&self, token: u32) -> bool;

    /// The bytes that a token adds to an answer; none for a control token.
    fn token_bytes(&self, token: u32) -> Vec<u8>;

    /// The vocabulary as a trie of bytes; control tokens are marked, so that no text matches them.
    fn trie(&self) -> TokTrie;

    /// The tokenizer of the same vocabulary; none by default. Without it, each token of a JSON answer is decoded.
    fn tokenizer(&self) -> Option<Tokenize> {
        None
    }

    /// Starts a request: evaluation is aborted when the flag is set, if the library supports that.
    fn begin_request(&mut self, _stop: &Arc<AtomicBool>) {}

    /// Ends the request: its flag is not used any more.
    fn end_request(&mut self) {}
}

/// A task for the engine worker thread.
enum EngineTask {
    Answer(Box<Prompt>),
    Read { text: String, done: oneshot::Sender<Result<PromptProgress, Fault>> },
}

/// A prompt with the channels to its client.
struct Prompt {
    job: Job,
    out: Out,
    /// Set when no client waits for the answer.
    stop: Arc<AtomicBool>,
    /// The same for the grammar of the answer, if it has one.
    grammar: Arc<GrammarStop>,
    done: oneshot::Sender<Result<Usage, Fault>>,
    urgency: Urgency,
}

/// A text's tokens with the model's prediction at each position.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptProgress {
    /// The text's tokens.
    pub tokens: Vec<u32>,
    /// For each token of the text, the log-probabilities of the next token over the vocabulary.
    pub expected: Vec<Vec<f32>>,
}

/// A model on its engine worker thread, which is joined on drop.
pub struct OnThread {
    context: ModelContext,
    duty: Duty,
    tasks: mpsc::Sender<EngineTask>,
    /// Work that was stopped and has not ended.
    stopped: mpsc::Sender<Stopped>,
    /// The other end of `stopped`, until [`OnThread::stuck`] takes it.
    stopped_work: Mutex<Option<mpsc::Receiver<Stopped>>>,
    thread: Option<JoinHandle<()>>,
}

/// The worker thread's side of the channel.
pub(crate) struct EngineWorker {
    ready: oneshot::Sender<Result<ModelContext, Fault>>,
    duty: Duty,
    stopped: mpsc::Sender<Stopped>,
    inbox: mpsc::Receiver<EngineTask>,
}

impl EngineWorker {
    /// Reports that the model can't be loaded.
    pub(super) fn fail(self, fault: Fault) {
        let _ = self.ready.send(Err(fault));
    }

    /// Measures the model, reports it as ready, and answers prompts until the channel is closed.
    pub(super) fn serve(self, mut model: impl EngineModel, started: Instant) {
        model.context().runtime.load_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(0);
        if let Err(fault) = model.measure() {
            return self.fail(fault);
        }
        model.set_duty(self.duty.clone());
        model.set_watchdog(self.stopped.clone());
        if self.ready.send(Ok(model.context().clone())).is_err() {
            return;
        }
        model.serve(&mut PromptQueue::new(self.inbox));
    }
}

impl OnThread {
    /// Starts the thread, which loads the model and serves it.
    ///
    /// # Errors
    /// The loader's fault.
    pub(super) async fn open(
        run: impl FnOnce(EngineWorker) + Send + 'static,
    ) -> Result<OnThread, Fault> {
        let (ready, is_ready) = oneshot::channel();
        let (tasks, inbox) = mpsc::channel(SLOTS as usize);
        let (stopped, stopped_work) = mpsc::channel(ENGINE_CANCELS_MAX);
        let duty = Duty::default();
        let worker = EngineWorker { ready, duty: duty.clone(), stopped: stopped.clone(), inbox };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(worker))
            .map_err(|e| Fault::unavailable(format!("cannot start the engine thread: {e}")))?;
        let context = is_ready
            .await
            .map_err(|_| Fault::unavailable("the engine ended while it loaded".to_owned()))??;
        let stopped_work = Mutex::new(Some(stopped_work));
        Ok(OnThread { context, duty, tasks, stopped, stopped_work, thread: Some(thread) })
    }

    /// Waits until work that was stopped has not ended for [`ENGINE_CANCEL_MAX`]: the
    /// process must end then, because a thread can't be ended from outside. The second call waits for
    /// ever.
    pub async fn stuck(&self) {
        let work = self.stopped_work.lock().unwrap_or_else(PoisonError::into_inner).take();
        match work {
            Some(work) => watchdog::stuck(work, &self.duty, ENGINE_CANCEL_MAX).await,
            None => std::future::pending().await,
        }
    }

    /// Evaluates a text and returns the model's prediction at each position, to compare two engines
    /// with the same weights.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if the text is empty or longer than the context.
    pub async fn read(&self, text: &str) -> Result<PromptProgress, Fault> {
        let (done, ended) = oneshot::channel();
        let task = EngineTask::Read { text: text.to_owned(), done };
        self.tasks.send(task).await.map_err(|_| ended_early())?;
        ended.await.map_err(|_| ended_early())?
    }

    async fn ask(&self, job: &Job, out: Out) -> Result<Usage, Fault> {
        let reader = out.watch();
        let (done, ended) = oneshot::channel();
        let mut pending = PendingPrompt::new(&self.stopped);
        let prompt = Prompt {
            job: job.clone(),
            out,
            stop: Arc::clone(&pending.stop),
            grammar: Arc::clone(&pending.grammar),
            done,
            urgency: (job.priority, now() + job.time_left),
        };
        // a client that keeps its deadline cancels before
        let late = tokio::time::sleep(job.time_left + DEADLINE_GRACE);
        let mut late = std::pin::pin!(late);
        let task = EngineTask::Answer(Box::new(prompt));
        tokio::select! {
            sent = self.tasks.send(task) => sent.map_err(|_| ended_early())?,
            () = reader.gone() => return Err(Fault::Cancelled),
            () = &mut late => return Err(Fault::Cancelled),
        }
        let ended = pending.ended.insert(ended);
        let mut steps = self.duty.steps();
        loop {
            tokio::select! {
                result = &mut *ended => {
                    pending.ended = None;
                    return result.map_err(|_| ended_early())?;
                }
                () = reader.gone() => return Err(Fault::Cancelled),
                () = &mut late => return Err(Fault::Cancelled),
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    // the thread may be working on a more urgent prompt
                    let before = std::mem::replace(&mut steps, self.duty.steps());
                    if steps != before {
                        reader.alive();
                    }
                }
            }
        }
    }
}

fn ended_early() -> Fault {
    Fault::Crashed("the engine's thread has ended".to_owned())
}

impl Generate for OnThread {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(self.ask(job, out))
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }

    fn pace(&self, pace: Pace) {
        self.duty.set(pace);
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        // the thread ends when its channel is closed
        let (closed, _) = mpsc::channel(1);
        self.tasks = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whose cached prompts a prompt may continue. How fast an answer begins tells its client which prefix
/// was cached, so prompts of other groups are continued only as far as everybody knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PrefixScope {
    /// Callers that may share all tokens; see [`Job::cache_group`].
    pub(crate) group: Arc<str>,
    /// Leading tokens that all groups may share.
    pub(crate) open: usize,
}

impl PrefixScope {
    /// Length of the prefix of `prompt` that it may share with a cached prompt of `group`, in tokens; at
    /// most all but one: the last token is always evaluated, because its logits are needed.
    pub(super) fn common(&self, cached: &[u32], group: &str, prompt: &[u32]) -> usize {
        let same = same_tokens(cached, prompt).min(prompt.len().saturating_sub(1));
        if group == &*self.group { same } else { same.min(self.open) }
    }
}

/// Length of the common prefix, in tokens.
pub(super) fn same_tokens(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// SHA-256 of a file, hexadecimal.
///
/// # Errors
/// If the file can't be read.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    sha256_of(File::open(path)?)
}

/// SHA-256 of what is left to read, hexadecimal.
///
/// # Errors
/// If it can't be read.
pub(crate) fn sha256_of(mut from: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut from, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Number of threads, with all processors for 0.
pub(super) fn threads_or_all(threads: u32) -> u32 {
    if threads > 0 {
        return threads;
    }
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(all).unwrap_or(1)
}

/// SHA-256 of a chat template, hexadecimal.
pub(super) fn template_digest(template: &ChatTemplate) -> String {
    format!("{:x}", Sha256::digest(template.source().as_bytes()))
}
