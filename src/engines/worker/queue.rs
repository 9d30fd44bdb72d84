//! The prompts that wait for an engine, in the order of their urgency.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc;

use super::{EngineTask, Prompt};
use crate::model::generate::{Fault, Usage};
use crate::request::job::Priority;

/// Prompts of an engine beside those of its batch: they are paused for more urgent ones.
pub(super) const PAUSED: u32 = 2;
/// Most prompts of an engine at once: those of the widest batch, and paused ones.
pub(crate) const SLOTS: u32 = 8 + PAUSED;

/// Priority, then deadline; the lesser is the more urgent.
pub(super) type Urgency = (Priority, Instant);

/// Prompts that wait for the engine.
pub(crate) struct PromptQueue {
    inbox: mpsc::Receiver<EngineTask>,
    waiting: VecDeque<EngineTask>,
}

impl PromptQueue {
    pub(super) fn new(inbox: mpsc::Receiver<EngineTask>) -> PromptQueue {
        PromptQueue { inbox, waiting: VecDeque::new() }
    }

    /// The most urgent waiting task; blocks until there is one. `None` when the channel is closed.
    pub(super) fn next(&mut self) -> Option<EngineTask> {
        self.take(|_| true).or_else(|| self.inbox.blocking_recv())
    }

    /// The most urgent waiting task of those that may be taken.
    pub(super) fn take(&mut self, may: impl Fn(&EngineTask) -> bool) -> Option<EngineTask> {
        while self.waiting.len() < SLOTS as usize
            && let Ok(task) = self.inbox.try_recv()
        {
            self.waiting.push_back(task);
        }
        let all = (0..self.waiting.len()).filter(|at| may(&self.waiting[*at]));
        let first = all.min_by_key(|at| self.waiting[*at].urgency())?;
        self.waiting.remove(first)
    }
}

impl EngineTask {
    /// `None` for a task without priority; it runs first, and only when there is no other client.
    fn urgency(&self) -> Option<Urgency> {
        match self {
            EngineTask::Answer(prompt) => Some(prompt.urgency),
            EngineTask::Read { .. } => None,
        }
    }
}

impl Prompt {
    /// Whether no client waits for the answer.
    pub(super) fn is_gone(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.out.is_gone()
    }

    /// Sends the result. Nothing is written once the end is known.
    pub(super) fn end(self, result: Result<Usage, Fault>) {
        let result = if self.is_gone() { Err(Fault::Cancelled) } else { result };
        drop(self.out);
        let _ = self.done.send(result);
    }
}
