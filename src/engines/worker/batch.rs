//! Continuous batching: the answers of an engine advance together, one step at a time.
//!
//! A step evaluates the next token of each running answer, with the forced tokens after it, and beside them a part of
//! the prompts that are not read yet, the most urgent first. Only [`Engine::width`] answers run at once; one that is less
//! urgent than a waiting prompt is paused, and continues from what is left of it in the prefix cache.
//!
//! A deterministic answer is computed alone, in steps of its own; see [`Decoder::open_alone`].

use std::cmp::Ordering;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::answer::ActiveAnswer;
use super::engine::Engine;
use super::queue::{PromptQueue, SLOTS, Urgency};
use super::{Decoder, EngineTask, Prompt, StepPart, Threads};
use crate::clock::now;
use crate::model::batch::{READ_SHARE, has_time_beside};
use crate::model::generate::Fault;
use crate::request::format::Format;
use crate::request::job::Priority;

/// Room in the KV cache with which an answer is started beside others, tokens: a paused one that had less
/// would soon be paused again.
const ROOM_MIN: usize = 64;
/// The least of [`Engine::beside`], and how many times it may change in a step.
const BESIDE_MIN: f64 = 0.05;
const CHANGE_MAX: f64 = 1.25;
/// Interval at which clients are looked at while all of them are behind.
const READER_POLL: Duration = Duration::from_millis(2);
/// Most tokens of a step of a deterministic answer.
const ALONE_TOKENS: usize = 64;

/// The prompts that were taken from the queue.
#[derive(Default)]
struct Batch {
    running: Vec<Running>,
    /// Those that have no sequence: they were paused, or have not begun.
    paused: Vec<ActiveAnswer>,
    /// The deterministic answer that has begun; at most one.
    alone: Vec<Running>,
    /// The last step was that of `alone`.
    alone_had_turn: bool,
}

/// What a step evaluates.
#[derive(Default)]
struct StepPlan {
    /// Places of running answers, and how many of their tokens.
    parts: Vec<(usize, usize)>,
    /// The number of answers beside which a prompt is read in a share of the step, if there is one.
    shared_by: Option<usize>,
}

/// An answer with its sequence of the KV cache.
struct Running {
    answer: ActiveAnswer,
    sequence: usize,
}

impl Running {
    fn can_go_on(&self) -> bool {
        self.answer.finish.is_none() && !self.answer.is_held()
    }
}

impl Batch {
    fn len(&self) -> usize {
        self.running.len() + self.paused.len() + self.alone.len()
    }

    /// The place of the most urgent answer of this kind that is paused; complete ones wait for their client only.
    fn next_paused(&self, is_deterministic: bool) -> Option<usize> {
        let is_next = |answer: &ActiveAnswer| {
            answer.finish.is_none() && answer.is_deterministic() == is_deterministic
        };
        let all = self.paused.iter().enumerate().filter(|(_, answer)| is_next(answer));
        all.min_by_key(|(_, answer)| answer.urgency()).map(|(at, _)| at)
    }

    fn all(&self) -> impl Iterator<Item = &ActiveAnswer> {
        let begun = self.running.iter().chain(&self.alone).map(|run| &run.answer);
        begun.chain(&self.paused)
    }

    /// Whether the next step is that of the deterministic answer: before less urgent priorities, and in turn with
    /// answers of its own.
    fn is_turn_of_alone(&self, plan: &StepPlan) -> bool {
        let Some(alone) = self.alone.first().filter(|run| run.can_go_on()) else { return false };
        let priority = |run: &Running| run.answer.urgency().0;
        let others = plan.parts.iter().map(|(at, _)| priority(&self.running[*at])).min();
        others.is_none_or(|others| match priority(alone).cmp(&others) {
            Ordering::Less => true,
            Ordering::Equal => !self.alone_had_turn,
            Ordering::Greater => false,
        })
    }

    /// The urgency of the running answer that would be paused first.
    fn least(&self) -> Option<Urgency> {
        self.running.iter().map(|run| run.answer.urgency()).max()
    }
}

/// A label is scored in one go, while all answers wait.
fn is_alone(prompt: &Prompt) -> bool {
    matches!(prompt.job.format, Format::Label(_))
}

impl<D: Decoder> Engine<D> {
    /// Answers prompts until the queue is closed.
    pub(super) fn answer_all(&mut self, queue: &mut PromptQueue) {
        let mut batch = Batch::default();
        // ends with the queue: each prompt has an end
        loop {
            if batch.len() == 0 {
                let Some(task) = queue.next() else { return };
                self.take(task, &mut batch);
            }
            self.end_gone(&mut batch);
            self.admit(queue, &mut batch);
            self.step(&mut batch);
        }
    }

    fn take(&mut self, task: EngineTask, batch: &mut Batch) {
        match task {
            EngineTask::Read { text, done } => drop(done.send(self.read(&text))),
            EngineTask::Answer(prompt) if is_alone(&prompt) => {
                self.pause_all(batch);
                self.use_threads(self.contention.is_high_at(now()));
                self.choose(*prompt);
            }
            EngineTask::Answer(prompt) => batch.paused.extend(self.begin(*prompt)),
        }
    }

    /// Takes prompts from the queue, and gives sequences to the most urgent answers.
    fn admit(&mut self, queue: &mut PromptQueue, batch: &mut Batch) {
        // bounded: each round takes a prompt out of a bounded queue
        while batch.len() < SLOTS as usize {
            let (least, is_full) = (batch.least(), batch.running.len() >= self.width);
            let is_next =
                |answer: &ActiveAnswer| answer.is_deterministic() && answer.finish.is_none();
            let is_free = || !batch.all().any(is_next);
            let may = |task: &EngineTask| match task {
                EngineTask::Read { .. } => batch.len() == 0,
                EngineTask::Answer(prompt) => {
                    let is_first = least.is_none_or(|least| prompt.urgency < least);
                    let all = batch.all().filter(|answer| answer.finish.is_none());
                    let top = || all.map(ActiveAnswer::urgency).min();
                    let is_top = || top().is_none_or(|top| prompt.urgency < top);
                    match (is_alone(prompt), prompt.job.sampling.deterministic) {
                        (true, false) => is_top(),
                        (true, true) => is_top() && is_free(),
                        (false, true) => is_free(),
                        (false, false) => !is_full || is_first,
                    }
                }
            };
            let Some(task) = queue.take(may) else { break };
            self.take(task, batch);
            self.resume(batch);
        }
        self.resume(batch);
    }

    /// Gives free sequences to paused answers, and those of less urgent answers.
    fn resume(&mut self, batch: &mut Batch) {
        self.begin_alone(batch);
        // bounded: each round moves an answer to `running`, and pauses only less urgent ones
        while let Some(at) = batch.next_paused(false) {
            let next = &batch.paused[at];
            // of the others too, what is not read yet
            let unread = batch.running.iter().map(|run| run.answer.pending().len());
            let needed = next.pending().len() + unread.sum::<usize>() + ROOM_MIN;
            let has_room = batch.running.is_empty() || self.decoder.free_tokens() >= needed;
            if batch.running.len() >= self.width || !has_room {
                if batch.least().is_none_or(|least| least <= next.urgency()) {
                    return;
                }
                self.pause_least(batch);
                continue;
            }
            let mut answer = batch.paused.swap_remove(at);
            match self.decoder.reuse(&answer.tokens, &answer.scope) {
                Ok((sequence, kept)) => {
                    answer.continue_from(kept);
                    batch.running.push(Running { answer, sequence });
                }
                Err(fault) => answer.prompt.end(Err(fault)),
            }
        }
    }

    /// Begins a deterministic answer if there is no other.
    fn begin_alone(&mut self, batch: &mut Batch) {
        if !batch.alone.is_empty() {
            return;
        }
        let Some(at) = batch.next_paused(true) else { return };
        let answer = batch.paused.swap_remove(at);
        match self.decoder.open_alone(answer.tokens_max()) {
            Ok(sequence) => batch.alone.push(Running { answer, sequence }),
            Err(fault) => answer.prompt.end(Err(fault)),
        }
    }

    fn pause_least(&mut self, batch: &mut Batch) {
        let all = 0..batch.running.len();
        let Some(at) = all.max_by_key(|at| batch.running[*at].answer.urgency()) else { return };
        let Running { mut answer, sequence } = batch.running.swap_remove(at);
        self.decoder.release(sequence);
        // the tokens of a released sequence may be evicted, and need room again
        answer.evaluated = 0;
        batch.paused.push(answer);
    }

    fn pause_all(&mut self, batch: &mut Batch) {
        // bounded: each round removes one
        while !batch.running.is_empty() {
            self.pause_least(batch);
        }
    }

    /// Ends answers whose client has gone, and those that are complete and sent.
    fn end_gone(&mut self, batch: &mut Batch) {
        let begun = batch.running.iter_mut().chain(&mut batch.alone);
        for answer in begun.map(|run| &mut run.answer).chain(&mut batch.paused) {
            if answer.flush().is_err() {
                answer.prompt.stop.store(true, Relaxed);
            }
        }
        let model = &self.context.identification.name;
        let has_ended = |answer: &mut ActiveAnswer| answer.has_ended();
        batch.paused.extract_if(.., has_ended).for_each(|answer| answer.end(model));
        let begun = [&mut batch.running, &mut batch.alone];
        for run in
            begun.into_iter().flat_map(|all| all.extract_if(.., |run| run.answer.has_ended()))
        {
            self.decoder.release(run.sequence);
            run.answer.end(model);
        }
        // its memory is not needed while its client is behind
        if let Some(done) = batch.alone.pop_if(|run| run.answer.finish.is_some()) {
            self.decoder.release(done.sequence);
            batch.paused.push(done.answer);
        }
    }

    /// Evaluates the next tokens of the running answers, or of the deterministic one.
    fn step(&mut self, batch: &mut Batch) {
        self.make_room(batch);
        batch.running.sort_unstable_by_key(|run| run.answer.urgency());
        let plan = self.plan(&batch.running);
        batch.alone_had_turn = batch.is_turn_of_alone(&plan);
        if batch.alone_had_turn {
            let tokens = batch.alone[0].answer.pending().len().min(ALONE_TOKENS);
            let plan = StepPlan { parts: vec![(0, tokens)], shared_by: None };
            self.evaluate(&mut batch.alone, plan);
        } else if !plan.parts.is_empty() {
            self.evaluate(&mut batch.running, plan);
        } else if batch.len() > 0 {
            std::thread::sleep(READER_POLL);
        }
    }

    /// Evaluates what is planned of some answers, and samples.
    fn evaluate(
        &mut self,
        running: &mut Vec<Running>,
        StepPlan { parts: plan, shared_by }: StepPlan,
    ) {
        let alone = (running.len() == 1).then(|| running[0].answer.prompt.stop.clone());
        if let Some(stop) = &alone {
            self.decoder.begin_request(stop);
        }
        let began = now();
        // prompts gain more by several threads than answers do, so that they are not compared
        let is_reading = plan.iter().any(|&(at, _)| running[at].answer.is_reading());
        let is_high =
            if is_reading { self.contention.is_high_at(began) } else { self.contention.is_high() };
        self.use_threads(is_high);
        let parts: Vec<StepPart<'_>> = plan
            .iter()
            .map(|&(at, tokens)| StepPart {
                sequence: running[at].sequence,
                tokens: &running[at].answer.pending()[..tokens],
            })
            .collect();
        let result = self.decoder.eval(&parts);
        self.decoder.end_request();
        if let Err(fault) = result {
            // an aborted evaluation was of one answer alone
            let all = plan.iter().map(|&(at, _)| (at, fault.clone())).collect();
            return self.end_failed(running, all);
        }
        let mut failed = Vec::new();
        let mut reading = Vec::new();
        for (part, &(at, tokens)) in plan.iter().enumerate() {
            let answer = &mut running[at].answer;
            reading.push(answer.is_reading());
            answer.evaluated += tokens;
            if answer.evaluated < answer.tokens.len() {
                answer.prompt.out.alive();
            } else if let Err(fault) = self.sample(answer, part) {
                failed.push((at, fault));
            } else if answer.flush().is_err() {
                failed.push((at, Fault::Cancelled));
            }
        }
        let computed = began.elapsed();
        if let Some(write) = shared_by {
            self.adjust_share(write, computed);
        }
        self.account(running, &plan, &reading, computed);
        self.end_failed(running, failed);
        self.pacer.pause(computed, alone.as_deref());
    }

    /// One thread, where several wait for each other beside other programs.
    pub(super) fn use_threads(&mut self, is_high: bool) {
        self.set_threads(if is_high { Threads::SINGLE } else { self.threads });
    }

    /// Pauses answers until the next tokens of each fit in the KV cache. One answer alone fits.
    fn make_room(&mut self, batch: &mut Batch) {
        // bounded: each round pauses an answer
        let next = |batch: &Batch| -> usize {
            batch.running.iter().map(|run| run.answer.next_tokens()).sum()
        };
        while batch.running.len() > 1 && self.decoder.free_tokens() < next(batch) {
            self.pause_least(batch);
        }
    }

    /// For each answer that takes part in the next step, how many of its tokens are evaluated. The answers
    /// are in the order of their urgency; the least urgent ones stand still if the scheduler limits the width.
    fn plan(&self, running: &[Running]) -> StepPlan {
        let width = self.pacer.duty.width();
        let parts = running.iter().enumerate().filter(|(_, run)| run.can_go_on()).take(width);
        let writers = parts.clone().filter(|(_, run)| !run.answer.is_long());
        let writing = writers.clone().count();
        let written: usize = writers.clone().map(|(_, run)| run.answer.next_tokens()).sum();
        let mut left = self.decoder.batch_tokens().saturating_sub(written);
        left = left.min(self.decoder.free_tokens().saturating_sub(written).max(1));
        let mut share = self.times.tokens_beside(writing, self.beside);
        let first = writers.map(|(at, run)| (at, run.answer.urgency().0)).next();
        let mut plan = StepPlan::default();
        for (at, run) in parts {
            if !run.answer.is_long() {
                plan.parts.push((at, run.answer.next_tokens()));
                continue;
            }
            let mut tokens = run.answer.pending().len().min(left);
            if first.is_some_and(|(first, priority)| {
                self.is_beside(&run.answer, priority, first < at, writing)
            }) {
                tokens = tokens.min(share);
                share -= tokens;
                plan.shared_by = Some(writing);
            }
            left -= tokens;
            if tokens > 0 {
                plan.parts.push((at, tokens));
            }
        }
        plan
    }

    /// Whether a prompt is read in a share of each step beside so many answers, of which the most urgent has this
    /// priority. It is read at once if it has a higher priority than all of them; beside answers of its priority, if it
    /// is short, or if it is the most urgent and its deadline is near.
    fn is_beside(
        &self,
        reading: &ActiveAnswer,
        priority: Priority,
        is_less_urgent: bool,
        writing: usize,
    ) -> bool {
        let (own, deadline) = reading.urgency();
        let tokens = reading.pending().len();
        match priority.cmp(&own) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal if tokens <= self.times.tokens_at_once(writing) => false,
            Ordering::Equal => {
                let left = deadline.saturating_duration_since(now()).as_secs_f64() * 1e3;
                is_less_urgent || has_time_beside(self.times.step_ms(tokens, 0), left)
            }
        }
    }

    /// Ends running answers with their faults; the places are in rising order.
    fn end_failed(&mut self, running: &mut Vec<Running>, failed: Vec<(usize, Fault)>) {
        for (at, fault) in failed.into_iter().rev() {
            let Running { answer, sequence } = running.swap_remove(at);
            self.decoder.release(sequence);
            answer.prompt.end(Err(fault));
        }
    }

    /// Reads fewer tokens beside answers if a step took longer than it may: few tokens in a long context take longer each
    /// than was measured at the start.
    fn adjust_share(&mut self, write: usize, computed: Duration) {
        let usual = self.times.step_ms(0, write) * self.contention.usual_times();
        let most = usual / (1.0 - READ_SHARE);
        let change = (most / (computed.as_secs_f64() * 1e3)).clamp(1.0 / CHANGE_MAX, CHANGE_MAX);
        self.beside = (self.beside * change).clamp(BESIDE_MIN, 1.0);
    }

    /// Adds the time of a step to its answers, as each would have taken alone.
    fn account(
        &mut self,
        running: &mut [Running],
        plan: &[(usize, usize)],
        reading: &[bool],
        computed: Duration,
    ) {
        // the first token of an answer's part is written, the others take the time of reading
        let parts = || plan.iter().map(|(_, tokens)| *tokens).zip(reading);
        let read: usize = parts().map(|(n, reading)| n - usize::from(!*reading)).sum();
        let write = reading.iter().filter(|reading| !**reading).count();
        let predicted = self.times.step_ms(read, write);
        let ms = computed.as_secs_f64() * 1e3;
        // a deterministic answer has other threads
        if read == 0 && !running.iter().any(|run| run.answer.is_deterministic()) {
            self.contention.count(ms / predicted, now());
        }
        for (&(at, tokens), reading) in plan.iter().zip(reading) {
            let answer = &mut running[at].answer;
            let write = usize::from(!*reading);
            answer.prefill_ms += ms * self.times.step_ms(tokens - write, 0) / predicted;
            answer.decode_ms += ms * self.times.step_ms(0, write) / predicted;
        }
    }
}
