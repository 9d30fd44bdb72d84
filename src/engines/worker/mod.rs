//! What the engines in this program share: one thread that owns a model, one bounded line to it,
//! and the way from a prompt to its answer.
//!
//! A library that computes for seconds must not hold a runtime's thread, and most of them want to
//! be called from one thread only.

mod answer;
pub mod constraint;
mod labels;
mod pacer;
pub(super) mod room;
mod sets;
mod turn;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use toktrie::TokTrie;

pub(super) use self::answer::Engine;
pub use self::labels::Calibration;
use self::pacer::Duty;
pub(super) use self::sets::Sets;
use self::turn::{Others, Urgency, take_turn};
pub(super) use self::turn::{SLOTS, Turn};
use super::template::ChatTemplate;
use crate::clock::now;
use crate::model::context::ModelContext;
use crate::model::generate::{BoxFuture, Fault, Generate, Out, Usage};
use crate::request::job::{Job, Message};
use crate::request::refusal::Refusal;

/// How often somebody whose prompt was put aside is told that the engine is alive, if it is.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What the thread runs.
pub(super) trait EngineModel {
    /// It pauses as this says from now on, if it can.
    fn obey(&mut self, _duty: Duty) {}

    /// What it states of itself.
    fn facts(&mut self) -> &mut ModelContext;

    /// Learns how fast it is here.
    ///
    /// # Errors
    /// If the library fails.
    fn measure(&mut self) -> Result<(), Fault>;

    /// Answers; looks often whether it was stopped and ends soon after, whatever it then returns. It
    /// may let more urgent prompts go first.
    ///
    /// # Errors
    /// See [`Fault`].
    fn answer(&mut self, job: &Job, out: &mut Out, turn: &mut Turn<'_>) -> Result<Usage, Fault>;

    /// See [`OnThread::read`].
    ///
    /// # Errors
    /// See [`OnThread::read`].
    fn read_text(&mut self, text: &str) -> Result<PromptProgress, Fault>;
}

/// A model that writes one token after the other, as a library offers it.
pub(super) trait Decoder {
    /// A conversation as the model wants to read it.
    ///
    /// # Errors
    /// The chat template's own complaint.
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal>;

    /// A plain text as tokens; `begins` says whether the token that begins a text, if the model
    /// wants one, stands before it.
    ///
    /// # Errors
    /// If it can't be tokenized.
    fn encode(&mut self, text: &str, begins: bool) -> Result<Vec<u32>, Refusal>;

    /// Makes the key-value cache hold as much of the beginning of `prompt` as it can ([`common`]),
    /// and nothing else; says how much that is.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the cache can't be cut.
    fn reuse(&mut self, prompt: &[u32]) -> Result<usize, Fault>;

    /// Reads tokens behind those that are cached, at most [`Decoder::step`] of them; afterwards
    /// the logits are those that follow the last one.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library fails; the cache is then as it was.
    fn read(&mut self, tokens: &[u32]) -> Result<(), Fault>;

    /// Forgets the last tokens that were read; what the logits are then is undefined.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the cache can't be cut.
    fn forget(&mut self, last: usize) -> Result<(), Fault>;

    /// The natural logarithm of the probability that each of these texts comes next, given their
    /// tokens (at least one each); the cache is as before. The logits must be those that follow
    /// the last token read.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library fails.
    fn continuations(&mut self, all: &[Vec<u32>]) -> Result<Vec<f32>, Fault> {
        let first = log_probabilities(self.logits());
        let mut sums: Vec<f32> = all.iter().map(|tokens| first[tokens[0] as usize]).collect();
        for (sum, tokens) in sums.iter_mut().zip(all) {
            for pair in tokens.windows(2) {
                self.read(&pair[..1])?;
                *sum += log_probabilities(self.logits())[pair[1] as usize];
            }
            self.forget(tokens.len() - 1)?;
        }
        Ok(sums)
    }

    /// Conversations that are kept ready; so many prompts can be begun at once.
    fn kept(&self) -> u32 {
        1
    }

    /// Most tokens that are read at once; between two steps a request can be stopped.
    fn step(&self) -> usize;

    /// One number for each token of the vocabulary; the sampler may change them.
    fn logits(&mut self) -> &mut [f32];

    /// Whether this token ends an answer.
    fn is_end(&self, token: u32) -> bool;

    /// The bytes that a token adds to an answer; none for a control token.
    fn piece(&self, token: u32) -> Vec<u8>;

    /// The vocabulary as a tree of bytes; control tokens are marked, so that no text matches them.
    fn trie(&self) -> TokTrie;

    /// A request begins; reading stops early when the flag is set, if the library can do that.
    fn begin(&mut self, _stop: &Arc<AtomicBool>) {}

    /// The request has ended; the flag is not looked at any more.
    fn end(&mut self) {}
}

/// Something for the thread to do.
enum EngineTask {
    Answer(Box<Prompt>),
    Read { text: String, done: oneshot::Sender<Result<PromptProgress, Fault>> },
}

/// One prompt.
struct Prompt {
    job: Job,
    out: Out,
    /// Set when nobody waits for the answer any more.
    stop: Arc<AtomicBool>,
    done: oneshot::Sender<Result<Usage, Fault>>,
    urgency: Urgency,
}

/// How a model reads a text: what it expects at each place.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptProgress {
    /// The text's tokens.
    pub tokens: Vec<u32>,
    /// For each token of the text, the natural logarithm of the probability of every token of the
    /// vocabulary to follow it.
    pub expected: Vec<Vec<f32>>,
}

/// A model on a thread of its own.
pub struct OnThread {
    context: ModelContext,
    duty: Duty,
    work: mpsc::Sender<EngineTask>,
    thread: Option<JoinHandle<()>>,
}

/// The thread's end of the line.
pub(super) struct EngineWorker {
    ready: oneshot::Sender<Result<ModelContext, Fault>>,
    duty: Duty,
    inbox: mpsc::Receiver<EngineTask>,
}

impl EngineWorker {
    /// The model can't be loaded.
    pub(super) fn fail(self, fault: Fault) {
        let _ = self.ready.send(Err(fault));
    }

    /// Measures the model, says that it is ready, then answers until the line is closed.
    pub(super) fn serve(self, mut model: impl EngineModel, started: Instant) {
        model.facts().runtime.load_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(0);
        if let Err(fault) = model.measure() {
            return self.fail(fault);
        }
        model.obey(self.duty.clone());
        if self.ready.send(Ok(model.facts().clone())).is_err() {
            return;
        }
        let mut others = Others::new(self.inbox, model.facts().runtime.slots);
        while let Some(work) = others.next() {
            match work {
                EngineTask::Answer(prompt) => take_turn(&mut model, *prompt, &mut others),
                EngineTask::Read { text, done } => drop(done.send(model.read_text(&text))),
            }
        }
    }
}

impl OnThread {
    /// Starts the thread, which loads the model and serves the line.
    ///
    /// # Errors
    /// Whatever the loader says.
    pub(super) async fn open(
        run: impl FnOnce(EngineWorker) + Send + 'static,
    ) -> Result<OnThread, Fault> {
        let (ready, is_ready) = oneshot::channel();
        let (work, inbox) = mpsc::channel(SLOTS as usize);
        let duty = Duty::default();
        let line = EngineWorker { ready, duty: duty.clone(), inbox };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(line))
            .map_err(|e| Fault::unavailable(format!("no thread for the engine: {e}")))?;
        let context = is_ready
            .await
            .map_err(|_| Fault::unavailable("the engine ended while it loaded".to_owned()))??;
        Ok(OnThread { context, duty, work, thread: Some(thread) })
    }

    /// Reads a text and says what the model expected at each place: how two engines with the same
    /// weights are compared.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if the text is empty or longer than the context.
    pub async fn read(&self, text: &str) -> Result<PromptProgress, Fault> {
        let (done, ended) = oneshot::channel();
        let work = EngineTask::Read { text: text.to_owned(), done };
        self.work.send(work).await.map_err(|_| ended_early())?;
        ended.await.map_err(|_| ended_early())?
    }

    async fn ask(&self, job: &Job, out: Out) -> Result<Usage, Fault> {
        let reader = out.watch();
        let (done, mut ended) = oneshot::channel();
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let stop_flag = Arc::clone(&stop.0);
        let urgency = (job.priority, now() + job.time_left);
        let prompt = Prompt { job: job.clone(), out, stop: stop_flag, done, urgency };
        let work = EngineTask::Answer(Box::new(prompt));
        tokio::select! {
            sent = self.work.send(work) => sent.map_err(|_| ended_early())?,
            () = reader.gone() => return Err(Fault::Cancelled),
        }
        let mut beats = self.duty.beats();
        loop {
            tokio::select! {
                result = &mut ended => return result.map_err(|_| ended_early())?,
                () = reader.gone() => return Err(Fault::Cancelled),
                () = tokio::time::sleep(ALIVE_EVERY) => {
                    // the thread may work on a more urgent prompt
                    let before = std::mem::replace(&mut beats, self.duty.beats());
                    if beats != before {
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

/// Tells the thread to stop when the asker goes.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Generate for OnThread {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(self.ask(job, out))
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }

    fn pace(&self, duty: f32) {
        self.duty.set(duty);
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        // the thread ends when its inbox is closed
        let (closed, _) = mpsc::channel(1);
        self.work = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How much of the beginning of `prompt` is in a cache. It is less than the whole: the last token
/// is always read again, because its logits are needed.
pub(super) fn common(cached: &[u32], prompt: &[u32]) -> usize {
    let same = prompt.iter().zip(cached).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1))
}

/// Log-softmax, with the greatest logit taken off first so that nothing overflows.
pub(super) fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "of the size of a logit")]
    let norm = sum.ln() as f32;
    logits.iter().map(|logit| logit - most - norm).collect()
}

/// SHA-256 of a file, hexadecimal.
///
/// # Errors
/// If it can't be read.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// How many threads read a prompt: all processors if nobody says.
pub(super) fn threads_or_all(asked: u32) -> u32 {
    if asked > 0 {
        return asked;
    }
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(all).unwrap_or(1)
}

/// SHA-256 of a chat template, hexadecimal.
pub(super) fn template_digest(template: &ChatTemplate) -> String {
    format!("{:x}", Sha256::digest(template.source().as_bytes()))
}
