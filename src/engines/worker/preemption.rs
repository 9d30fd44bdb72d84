//! Preemption: the prompts of an engine in the order of their urgency.
//!
//! An engine works on one prompt at a time. Between two steps it looks for a more urgent prompt, which
//! is answered completely before the preempted one continues. The prompt that was preempted last is
//! always the most urgent of those that were, so the call stack holds them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::watchdog::GrammarStop;
use super::{EngineModel, EngineTask, PrefixScope, Prompt};
use crate::model::generate::Fault;
use crate::request::job::Priority;

/// Most prompts of an engine at once: the current one, those that were preempted, and those that wait.
pub(crate) const SLOTS: u32 = 3;

/// Priority, then deadline; the lesser is the more urgent.
pub(super) type Urgency = (Priority, Instant);

/// Prompts that wait for the engine.
pub(crate) struct PromptQueue {
    inbox: mpsc::Receiver<EngineTask>,
    waiting: VecDeque<EngineTask>,
    /// Prompts that were started and have not ended.
    started: u32,
    /// Most started prompts: one whose KV cache is evicted would need another prefill.
    slots: u32,
}

/// The prompt that the engine works on.
pub(crate) struct ActivePrompt<'q> {
    pub(super) queue: &'q mut PromptQueue,
    pub(super) urgency: Urgency,
    /// Whose cached prompts it may continue.
    pub(super) scope: PrefixScope,
    /// Set when no client waits for the answer.
    pub(crate) stop: &'q Arc<AtomicBool>,
    /// The same for the grammar of the answer.
    pub(super) grammar: &'q GrammarStop,
}

impl PromptQueue {
    pub(super) fn new(inbox: mpsc::Receiver<EngineTask>, slots: u32) -> PromptQueue {
        PromptQueue { inbox, waiting: VecDeque::new(), started: 0, slots }
    }

    /// The most urgent waiting task; blocks until there is one. `None` when the channel is closed.
    pub(super) fn next(&mut self) -> Option<EngineTask> {
        self.collect();
        let first = (0..self.waiting.len()).min_by_key(|at| self.waiting[*at].urgency());
        match first {
            Some(at) => self.waiting.remove(at),
            None => self.inbox.blocking_recv(),
        }
    }

    /// The most urgent waiting prompt that may preempt one of this urgency, if a slot is free.
    pub(super) fn more_urgent(&mut self, than: Urgency) -> Option<Box<Prompt>> {
        if self.started >= self.slots {
            return None;
        }
        self.collect();
        let urgent = |task: &EngineTask| task.urgency().is_some_and(|urgency| urgency < than);
        let all = (0..self.waiting.len()).filter(|at| urgent(&self.waiting[*at]));
        let at = all.min_by_key(|at| self.waiting[*at].urgency())?;
        match self.waiting.remove(at) {
            Some(EngineTask::Answer(prompt)) => Some(prompt),
            Some(EngineTask::Read { .. }) | None => None,
        }
    }

    fn collect(&mut self) {
        while self.waiting.len() < SLOTS as usize
            && let Ok(task) = self.inbox.try_recv()
        {
            self.waiting.push_back(task);
        }
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

/// Answers one prompt and sends the result.
pub(super) fn run_prompt(model: &mut impl EngineModel, prompt: Prompt, queue: &mut PromptQueue) {
    let Prompt { job, mut out, stop, grammar, done, urgency } = prompt;
    queue.started += 1;
    let mut active = ActivePrompt {
        queue: &mut *queue,
        urgency,
        scope: PrefixScope::default(),
        stop: &stop,
        grammar: &grammar,
    };
    let result = model.answer(&job, &mut out, &mut active);
    queue.started -= 1;
    let gone = stop.load(Ordering::Relaxed) || out.is_gone();
    let result = if gone { Err(Fault::Cancelled) } else { result };
    // nothing is written once the end is known
    drop(out);
    let _ = done.send(result);
}
