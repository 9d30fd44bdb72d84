//! The watchdog of an engine: work that was stopped must end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use llguidance::CancellationHandle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::pacer::Duty;
use crate::model::generate::{Fault, Usage};

/// Set once the grammar of a prompt is compiled; cancels the computation of its masks.
pub(super) type GrammarStop = OnceLock<CancellationHandle>;

/// The end of a prompt, as the thread reports it.
pub(super) type PromptEnd = oneshot::Receiver<Result<Usage, Fault>>;

/// Work that was stopped and has not ended.
pub(crate) enum Stopped {
    /// A prompt whose client has gone.
    Prompt(PromptEnd),
    /// The compilation of a schema that took too long; the thread closes the channel when it ends.
    Compilation(oneshot::Receiver<Infallible>),
}

/// Waits until stopped work has neither ended nor, for a prompt, advanced by a step for this time.
pub(super) async fn stuck(mut work: mpsc::Receiver<Stopped>, duty: &Duty, longest: Duration) {
    // ends with the process
    while let Some(stopped) = work.recv().await {
        let mut ended = match stopped {
            Stopped::Prompt(ended) => ended,
            Stopped::Compilation(ended) => match timeout(longest, ended).await {
                Ok(_) => continue,
                Err(_) => return,
            },
        };
        let mut steps = duty.steps();
        while timeout(longest, &mut ended).await.is_err() {
            // the thread may be working on a more urgent prompt
            let before = std::mem::replace(&mut steps, duty.steps());
            if steps == before {
                return;
            }
        }
    }
    std::future::pending::<()>().await;
}

/// A prompt whose end is awaited; it is stopped when its client is gone.
pub(super) struct PendingPrompt<'t> {
    pub(super) stop: Arc<AtomicBool>,
    pub(super) grammar: Arc<GrammarStop>,
    /// None before the thread has the prompt, and after its end.
    pub(super) ended: Option<PromptEnd>,
    stopped: &'t mpsc::Sender<Stopped>,
}

impl PendingPrompt<'_> {
    pub(super) fn new(stopped: &mpsc::Sender<Stopped>) -> PendingPrompt<'_> {
        PendingPrompt { stop: Arc::default(), grammar: Arc::default(), ended: None, stopped }
    }
}

impl Drop for PendingPrompt<'_> {
    fn drop(&mut self) {
        let Some(ended) = self.ended.take() else { return };
        self.stop.store(true, Ordering::Release);
        if let Some(grammar) = self.grammar.get() {
            grammar.cancel();
        }
        // a full channel has work that was stopped earlier
        let _ = self.stopped.try_send(Stopped::Prompt(ended));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_millis(20);

    async fn is_found(work: Stopped, duty: &Duty) -> bool {
        let (stopped, received) = mpsc::channel(1);
        drop(stopped.try_send(work));
        timeout(10 * LONGEST, stuck(received, duty, LONGEST)).await.is_ok()
    }

    #[tokio::test]
    async fn work_that_does_not_end_is_found() {
        let duty = Duty::default();
        let (done, ended) = oneshot::channel();
        assert!(is_found(Stopped::Prompt(ended), &duty).await);
        drop(done);
        let (done, ended) = oneshot::channel();
        assert!(is_found(Stopped::Compilation(ended), &duty).await);
        drop(done);
        let (done, ended) = oneshot::channel();
        drop(done);
        assert!(!is_found(Stopped::Prompt(ended), &duty).await);
    }

    /// A prompt that waits behind another one, whose steps go on, is not stuck; a compilation is, whatever
    /// the steps.
    #[tokio::test]
    async fn a_prompt_behind_a_working_one_is_not_stuck() {
        let duty = Duty::default();
        let steps = async {
            // ends with the test
            loop {
                tokio::task::yield_now().await;
                duty.count_step();
            }
        };
        let (_done, ended) = oneshot::channel();
        tokio::select! {
            biased;
            found = is_found(Stopped::Prompt(ended), &duty) => assert!(!found),
            () = steps => {}
        }
        let (_done, ended) = oneshot::channel();
        assert!(is_found(Stopped::Compilation(ended), &duty).await);
    }
}
