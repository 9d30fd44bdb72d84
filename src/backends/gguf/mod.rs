//! GGUF models through llama.cpp: one model, one thread that owns it, one bounded line to it.
//!
//! llama.cpp ends the process on a failed assertion and reads files from anywhere, so this runs
//! in a child process (`pilotlight engine`); see `docs/decisions/0002-child-engines.md`.

mod answer;
mod constraint;
mod load;
mod template;

pub mod quantize;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::generate::{BoxFuture, Fault, Generate, Out, Usage, channel};
use crate::model::ModelContext;
use crate::prompt::Job;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// The name by which it is asked for; the file's name without its ending if none.
    pub name: Option<String>,
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Threads that read the prompt; all processors if 0.
    pub threads: u32,
    /// Threads that write the answer. A tiny model is bound by memory: one is as fast as two, and
    /// far faster beside a busy neighbour.
    pub decode_threads: u32,
    /// Layers that an accelerator takes, if one is built in.
    pub gpu_layers: u32,
}

/// A loaded model.
pub struct Gguf {
    context: ModelContext,
    work: mpsc::Sender<Work>,
    thread: Option<JoinHandle<()>>,
}

/// One prompt for the thread.
struct Work {
    job: Job,
    out: Out,
    /// Set when nobody waits for the answer any more.
    stop: Arc<AtomicBool>,
    done: oneshot::Sender<Result<Usage, Fault>>,
}

/// One prompt may wait at the engine while another runs, so that it never idles between two.
const WORK_WAITING_MAX: usize = 1;

impl Gguf {
    /// Loads the model and measures it; takes from tens of milliseconds to seconds.
    ///
    /// # Errors
    /// [`Fault::Away`] says what is wrong with the file, the machine's memory or the options.
    pub async fn open(options: Options) -> Result<Gguf, Fault> {
        let (ready, is_ready) = oneshot::channel();
        let (work, inbox) = mpsc::channel(WORK_WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || answer::run(&options, ready, inbox))
            .map_err(|e| Fault::Away(format!("no thread for the engine: {e}")))?;
        let context = is_ready
            .await
            .map_err(|_| Fault::Away("the engine ended while it loaded".to_owned()))??;
        Ok(Gguf { context, work, thread: Some(thread) })
    }

    async fn ask(&self, job: &Job, out: &mut Out) -> Result<Usage, Fault> {
        let (inner, mut chunks) = channel();
        let (done, ended) = oneshot::channel();
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let work = Work { job: job.clone(), out: inner, stop: Arc::clone(&stop.0), done };
        tokio::select! {
            sent = self.work.send(work) => sent.map_err(|_| ended_early())?,
            () = out.gone() => return Err(Fault::Cancelled),
        }
        loop {
            let chunk = tokio::select! {
                chunk = chunks.recv() => chunk,
                () = out.gone() => return Err(Fault::Cancelled),
            };
            match chunk {
                Some(chunk) if chunk.text.is_empty() => out.alive(),
                Some(chunk) => out.write(chunk.text).await.map_err(|_| Fault::Cancelled)?,
                None => break,
            }
        }
        ended.await.map_err(|_| ended_early())?
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

impl Generate for Gguf {
    fn generate<'a>(
        &'a self,
        job: &'a Job,
        out: &'a mut Out,
    ) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(self.ask(job, out))
    }

    fn context(&self) -> &ModelContext {
        &self.context
    }
}

impl Drop for Gguf {
    fn drop(&mut self) {
        // the thread ends when its inbox is closed
        let (closed, _) = mpsc::channel(1);
        self.work = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
