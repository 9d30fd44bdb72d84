//! The prompts that an engine has, and whose turn it is: the most urgent goes first, and one that is
//! put aside for it goes on afterwards.
//!
//! An engine works on one prompt at a time. Between two steps it looks whether a more urgent one has
//! come; that is answered from beginning to end, inside the other. What was put aside last is
//! always the most urgent of those put aside, so a stack is enough.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use super::{EngineModel, EngineTask, Prompt};
use crate::model::generate::Fault;
use crate::request::job::Priority;

/// Most prompts that an engine has at once: one that it works on, and those that wait or were put aside.
pub(in crate::backends) const SLOTS: u32 = 3;

/// The lesser is the more urgent.
pub(super) type Urgency = (Priority, Instant);

/// What came and is not worked on.
pub(in crate::backends) struct Others {
    inbox: mpsc::Receiver<EngineTask>,
    waiting: VecDeque<EngineTask>,
    /// Prompts that were begun and have not ended.
    begun: u32,
    /// Most of these: a conversation that is not kept would have to be read again.
    slots: u32,
}

/// The turn of one prompt.
pub(in crate::backends) struct Turn<'t> {
    pub(super) others: &'t mut Others,
    pub(super) urgency: Urgency,
    /// Set when nobody waits for the answer any more.
    pub(in crate::backends) stop: &'t Arc<AtomicBool>,
}

impl Others {
    pub(super) fn new(inbox: mpsc::Receiver<EngineTask>, slots: u32) -> Others {
        Others { inbox, waiting: VecDeque::new(), begun: 0, slots }
    }

    /// The most urgent of what has come, or what comes next; none when the line is closed.
    pub(super) fn next(&mut self) -> Option<EngineTask> {
        self.collect();
        let first = (0..self.waiting.len()).min_by_key(|at| self.waiting[*at].urgency());
        match first {
            Some(at) => self.waiting.remove(at),
            None => self.inbox.blocking_recv(),
        }
    }

    /// A prompt that is more urgent than this, if there is room to put that aside.
    pub(super) fn more_urgent(&mut self, than: Urgency) -> Option<Box<Prompt>> {
        if self.begun >= self.slots {
            return None;
        }
        self.collect();
        let urgent = |work: &EngineTask| work.urgency().is_some_and(|urgency| urgency < than);
        let all = (0..self.waiting.len()).filter(|at| urgent(&self.waiting[*at]));
        let at = all.min_by_key(|at| self.waiting[*at].urgency())?;
        match self.waiting.remove(at) {
            Some(EngineTask::Answer(prompt)) => Some(prompt),
            Some(EngineTask::Read { .. }) | None => None,
        }
    }

    fn collect(&mut self) {
        while self.waiting.len() < SLOTS as usize
            && let Ok(work) = self.inbox.try_recv()
        {
            self.waiting.push_back(work);
        }
    }
}

impl EngineTask {
    /// None for what is not urgent at all; that goes first, because nobody else asks then.
    fn urgency(&self) -> Option<Urgency> {
        match self {
            EngineTask::Answer(prompt) => Some(prompt.urgency),
            EngineTask::Read { .. } => None,
        }
    }
}

/// Answers one prompt and says how it ended.
pub(super) fn take_turn(model: &mut impl EngineModel, prompt: Prompt, others: &mut Others) {
    let Prompt { job, mut out, stop, done, urgency } = prompt;
    others.begun += 1;
    let mut turn = Turn { others: &mut *others, urgency, stop: &stop };
    let result = model.answer(&job, &mut out, &mut turn);
    others.begun -= 1;
    let gone = stop.load(Ordering::Relaxed) || out.is_gone();
    let result = if gone { Err(Fault::Cancelled) } else { result };
    // nothing is written once the end is known
    drop(out);
    let _ = done.send(result);
}
