//! The order of the steps of a batch, with a decoder that writes the alphabet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use toktrie::TokTrie;

use super::constraint::{VocabToken, trie};
use super::queue::PromptQueue;
use super::step_times::StepTimes;
use super::{
    Calibration, Decoder, Engine, EngineModel, EngineTask, Measurement, PrefixScope, Prompt,
    StepPart, Threads, Tokenize,
};
use crate::clock::now;
use crate::model::batch::BatchRates;
use crate::model::context::{Capabilities, ModelContext};
use crate::model::generate::{Fault, Finish, Pace, Usage};
use crate::model::out::{Chunk, channel};
use crate::request::job::{Job, Message, Priority};
use crate::request::refusal::Refusal;

const END: u32 = 256;
const SEQUENCES: usize = 4;
const BATCH_TOKENS: usize = 64;

/// Tokens of each part of a step, by the first token of its sequence.
pub(super) type Step = BTreeMap<char, usize>;

/// Its tokens are bytes; after each comes the next byte, and after `z` the end.
pub(super) struct Alphabet {
    /// The tokens of each sequence, and whether it is in use; the last is alone.
    sequences: [(Vec<u32>, bool); SEQUENCES + 1],
    /// Tokens for which the KV cache has room.
    room: usize,
    logits: Vec<Vec<f32>>,
    steps: Arc<Mutex<Vec<Step>>>,
    /// Threads of each step, and how long a step with so many or more takes.
    threads: Arc<Mutex<Vec<u32>>>,
    set: u32,
    pub(super) delay_from: u32,
    pub(super) delay: Duration,
    /// What an earlier start has measured.
    kept: Option<Measurement>,
    /// Sent before the step of this number.
    later: Option<(usize, EngineTask, mpsc::Sender<EngineTask>)>,
}

impl Decoder for Alphabet {
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal> {
        Ok(messages.iter().flat_map(|message| message.content.bytes()).map(u32::from).collect())
    }

    fn encode(&mut self, text: &str, _begins: bool) -> Result<Vec<u32>, Refusal> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn sequences(&self) -> usize {
        SEQUENCES
    }

    fn threads(&self) -> Option<Threads> {
        Some(Threads { one: 2, many: 2 })
    }

    fn set_threads(&mut self, threads: Threads) {
        self.set = threads.one;
    }

    fn measured(&self) -> Option<Measurement> {
        self.kept.clone()
    }

    fn keep_measured(&mut self, measurement: &Measurement) {
        self.kept = Some(measurement.clone());
    }

    fn free_tokens(&self) -> usize {
        let in_use = self.sequences[..SEQUENCES].iter().filter(|(_, in_use)| *in_use);
        let used = in_use.map(|(tokens, _)| tokens.len()).sum();
        self.room.checked_sub(used).expect("more tokens than the cache has room for")
    }

    fn reuse(&mut self, prompt: &[u32], _scope: &PrefixScope) -> Result<(usize, usize), Fault> {
        let is_start = |tokens: &[u32]| prompt.len() > tokens.len() && prompt.starts_with(tokens);
        let free = || (0..SEQUENCES).filter(|at| !self.sequences[*at].1);
        let found = free().find(|at| is_start(&self.sequences[*at].0)).or_else(|| free().next());
        let found = found.expect("a sequence that is not in use");
        let (tokens, in_use) = &mut self.sequences[found];
        *in_use = true;
        if !is_start(tokens) {
            tokens.clear();
        }
        Ok((found, tokens.len()))
    }

    fn open_alone(&mut self, tokens: usize) -> Result<usize, Fault> {
        assert!(!self.sequences[SEQUENCES].1, "there is one already");
        if tokens > self.room {
            return Err(Fault::unavailable("no memory"));
        }
        self.sequences[SEQUENCES] = (Vec::new(), true);
        Ok(SEQUENCES)
    }

    fn release(&mut self, sequence: usize) {
        self.sequences[sequence].1 = false;
    }

    fn clear(&mut self) {
        self.sequences = Default::default();
    }

    fn eval(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault> {
        assert!(parts.iter().map(|part| part.tokens.len()).sum::<usize>() <= BATCH_TOKENS);
        let mut step = Step::new();
        self.logits.clear();
        for part in parts {
            let (tokens, in_use) = &mut self.sequences[part.sequence];
            assert!(*in_use && !part.tokens.is_empty());
            assert!(part.sequence < SEQUENCES || parts.len() == 1);
            tokens.extend(part.tokens);
            let last = *part.tokens.last().unwrap();
            let next = if last == u32::from(b'z') { END } else { last + 1 };
            self.logits.push((0..=END).map(|t| if t == next { 99.0 } else { 0.0 }).collect());
            step.insert(char::from_u32(tokens[0]).unwrap(), part.tokens.len());
        }
        self.free_tokens();
        self.threads.lock().unwrap().push(self.set);
        if self.set >= self.delay_from {
            std::thread::sleep(self.delay);
        }
        let mut steps = self.steps.lock().unwrap();
        steps.push(step);
        if self.later.as_ref().is_some_and(|(at, ..)| *at == steps.len())
            && let Some((_, task, to)) = self.later.take()
        {
            to.try_send(task).ok().unwrap();
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: usize, last: usize) -> Result<(), Fault> {
        let tokens = &mut self.sequences[sequence].0;
        tokens.truncate(tokens.len() - last);
        Ok(())
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    fn logits(&mut self, part: usize) -> &mut [f32] {
        &mut self.logits[part]
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        u8::try_from(token).map_or_else(|_| Vec::new(), |byte| vec![byte])
    }

    fn tokenizer(&self) -> Option<Tokenize> {
        Some(Arc::new(|text| text.bytes().map(u32::from).collect()))
    }

    fn trie(&self) -> TokTrie {
        let bytes = (0..=u8::MAX).map(|byte| VocabToken::Text(vec![byte]));
        trie(bytes.chain([VocabToken::Control(b"<end>".to_vec())]), &[END])
    }
}

/// An engine with the prompts that are in its queue.
pub(super) struct Setting {
    pub(super) engine: Engine<Alphabet>,
    pub(super) tasks: mpsc::Sender<EngineTask>,
    inbox: mpsc::Receiver<EngineTask>,
    steps: Arc<Mutex<Vec<Step>>>,
}

/// A prompt's answer.
pub(super) struct Asked {
    chunks: mpsc::Receiver<Chunk>,
    pub(super) ended: oneshot::Receiver<Result<Usage, Fault>>,
}

impl Asked {
    pub(super) fn text(&mut self) -> String {
        let mut text = String::new();
        while let Ok(chunk) = self.chunks.try_recv() {
            text.push_str(&chunk.text);
        }
        text
    }

    pub(super) fn answer(mut self) -> (String, Finish) {
        (self.text(), self.ended.try_recv().unwrap().unwrap().finish)
    }
}

/// A prompt with its deadline in so many seconds, for an answer of at most so many tokens.
fn prompt(text: &str, seconds: u64, priority: Priority, most: u32) -> (EngineTask, Asked) {
    let mut job = Job { priority, ..Job::plain(text, Duration::from_secs(seconds)) };
    job.sampling.temperature = Some(0.0);
    job.sampling.repeat_penalty = Some(1.0);
    job.sampling.max_tokens = Some(most);
    task(job)
}

pub(super) fn task(job: Job) -> (EngineTask, Asked) {
    let (out, chunks) = channel();
    let (done, ended) = oneshot::channel();
    let urgency = (job.priority, now() + job.time_left);
    let (stop, grammar) = Default::default();
    let prompt = Prompt { job, out, stop, grammar, done, urgency };
    (EngineTask::Answer(Box::new(prompt)), Asked { chunks, ended })
}

pub(super) fn setting(width: usize, room: usize) -> Setting {
    let steps = Arc::<Mutex<Vec<Step>>>::default();
    let decoder = Alphabet {
        sequences: Default::default(),
        room,
        logits: Vec::new(),
        steps: Arc::clone(&steps),
        threads: Arc::default(),
        set: 2,
        delay_from: 2,
        delay: Duration::ZERO,
        kept: None,
        later: None,
    };
    let capabilities = Capabilities { context_tokens: 512, ..Capabilities::default() };
    let context = ModelContext { capabilities, ..ModelContext::default() };
    let mut engine = Engine::new(decoder, context, Calibration::default());
    engine.width = width;
    let batch = BatchRates::of_steps(&[(1, 10.0), (2, 12.0), (4, 16.0)]);
    engine.times = StepTimes { read_ms: 1.0, write_ms: 10.0, batch };
    let (tasks, inbox) = mpsc::channel(16);
    Setting { engine, tasks, inbox, steps }
}

impl Setting {
    pub(super) fn ask(&self, text: &str, seconds: u64) -> Asked {
        self.ask_for(4, text, seconds)
    }

    fn ask_for(&self, most: u32, text: &str, seconds: u64) -> Asked {
        let (task, asked) = prompt(text, seconds, Priority::Normal, most);
        self.tasks.try_send(task).ok().unwrap();
        asked
    }

    /// Answers all prompts; returns the steps.
    pub(super) fn run(self) -> Vec<Step> {
        let Setting { mut engine, tasks, inbox, steps } = self;
        drop(tasks);
        engine.serve(&mut PromptQueue::new(inbox));
        assert!(engine.decoder.sequences.iter().all(|(_, in_use)| !in_use));
        let steps = steps.lock().unwrap();
        steps.clone()
    }
}

fn stopped(text: &str) -> (String, Finish) {
    (text.to_owned(), Finish::Stop)
}

pub(super) fn cut(text: &str) -> (String, Finish) {
    (text.to_owned(), Finish::Length)
}

#[test]
fn one_thread_is_used_where_several_wait_for_each_other() {
    let mut setting = setting(1, 512);
    // steps that were measured as 1 ms take 50 with two threads
    setting.engine.times.write_ms = 1.0;
    setting.engine.decoder.delay = Duration::from_millis(50);
    let threads = Arc::clone(&setting.engine.decoder.threads);
    let asked = setting.ask_for(10, "a", 9);
    setting.run();
    assert_eq!(asked.answer(), cut("bcdefghijk"));
    // the first reads one token, which is not compared
    assert_eq!(*threads.lock().unwrap(), [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn an_earlier_measurement_is_taken_if_it_holds() {
    let speeds = vec![(1, 40.0), (2, 45.0), (4, 60.0)];
    let start = |kept: &Measurement, delay_from: u32| {
        let mut setting = setting(1, 1000);
        let decoder = &mut setting.engine.decoder;
        decoder.kept = Some(kept.clone());
        (decoder.delay, decoder.delay_from) = (Duration::from_millis(40), delay_from);
        setting.engine.measure().unwrap();
        assert_eq!(setting.engine.decoder.free_tokens(), 1000);
        let steps = setting.steps.lock().unwrap().len();
        (setting.engine, steps)
    };
    let earlier = Measurement::of(1.5, speeds.clone(), 2);
    let (engine, steps) = start(&earlier, 1);
    assert_eq!((steps, engine.width, engine.threads.one), (4, 4, 2));
    assert_eq!(engine.context.runtime.prefill_tokens_per_s, Some(666.7));
    assert_eq!(engine.context.runtime.batch.width(), 4);
    assert_eq!(engine.decoder.kept, Some(earlier));
    // a faster machine, more answers than it has sequences, more threads than it was given, a damaged file
    let slower = Measurement::of(1.5, vec![(1, 400.0)], 2);
    let wider = Measurement::of(1.5, vec![(1, 40.0), (64, 90.0)], 2);
    let threads = Measurement::of(1.5, speeds, 3);
    for wrong in [&slower, &wider, &threads, &Measurement::of(f64::NAN, vec![(1, 40.0)], 2)] {
        let (engine, steps) = start(wrong, 1);
        assert!(steps > 8 && engine.decoder.kept.as_ref() != Some(wrong), "{wrong:?}");
        assert!((10.0..26.0).contains(&engine.context.runtime.decode_tokens_per_s.unwrap()));
    }
    // several threads wait for another program
    let (engine, _) = start(&slower, 2);
    assert!(engine.contention.is_high() && engine.decoder.kept == Some(slower));
}

#[test]
fn answers_advance_together_as_many_as_the_width() {
    let setting = setting(2, 1000);
    let (a, g, y) = (setting.ask("a", 10), setting.ask("g", 11), setting.ask("y", 12));
    let steps = setting.run();
    assert_eq!([a, g, y].map(Asked::answer), [cut("bcde"), cut("hijk"), stopped("z")]);
    let of = |step: &Step| step.keys().collect::<String>();
    assert_eq!(steps.iter().map(of).collect::<Vec<_>>(), ["ag", "ag", "ag", "ag", "y", "y"]);
}

#[test]
fn a_long_prompt_is_read_beside_more_urgent_answers() {
    let setting = setting(2, 1000);
    let long = format!("m{}", "n".repeat(99));
    let (short, long) = (setting.ask("a", 10), setting.ask(&long, 11));
    let steps = setting.run();
    assert_eq!([short, long].map(Asked::answer), [cut("bcde"), cut("opqr")]);
    let read = |step: &Step| step.get(&'m').copied().unwrap_or_default();
    // a third of the time of a step; the rest at once when nobody waits for it
    assert_eq!(steps[0].get(&'a'), Some(&1));
    assert_eq!(steps[..4].iter().map(read).collect::<Vec<_>>(), [5; 4]);
    assert_eq!(steps[4..6].iter().map(read).collect::<Vec<_>>(), [BATCH_TOKENS, 100 - 20 - 64]);
}

#[test]
fn a_long_prompt_that_is_the_most_urgent_is_read_beside_others_while_its_deadline_is_far() {
    for (deadline_ms, read) in [(5000, [5, 5]), (100, [63, 37])] {
        let setting = setting(2, 1000);
        let short = setting.ask("a", 10);
        let mut job = Job::plain("m".repeat(100), Duration::from_millis(deadline_ms));
        job.sampling.temperature = Some(0.0);
        job.sampling.max_tokens = Some(1);
        let (task, long) = task(job);
        setting.tasks.try_send(task).ok().unwrap();
        let steps = setting.run();
        assert_eq!([short, long].map(Asked::answer), [cut("bcde"), cut("n")]);
        let of = |step: &Step| step.get(&'m').copied();
        assert_eq!([of(&steps[0]), of(&steps[1])], read.map(Some), "{deadline_ms}");
        assert!(steps[..2].iter().all(|step| step.get(&'a') == Some(&1)));
    }
}

#[test]
fn a_short_prompt_is_read_at_once_beside_answers_of_its_priority() {
    for (priority, read) in [(Priority::Normal, [30, 1]), (Priority::Batch, [5, 5])] {
        let setting = setting(2, 1000);
        let first = setting.ask("a", 10);
        let (task, short) = prompt(&"m".repeat(30), 11, priority, 4);
        setting.tasks.try_send(task).ok().unwrap();
        let steps = setting.run();
        assert_eq!([first, short].map(Asked::answer), [cut("bcde"), cut("nopq")]);
        let of = |step: &Step| (step[&'a'], step[&'m']);
        assert_eq!([of(&steps[0]), of(&steps[1])], read.map(|read| (1, read)), "{priority:?}");
    }
}

#[test]
fn the_most_urgent_prompt_is_read_at_once() {
    let mut setting = setting(2, 1000);
    let (first, second) = (setting.ask("a", 10), setting.ask("g", 11));
    let (task, urgent) = prompt(&"m".repeat(50), 99, Priority::Interactive, 4);
    setting.engine.decoder.later = Some((2, task, setting.tasks.clone()));
    let steps = setting.run();
    assert_eq!([first, second, urgent].map(Asked::answer), [cut("bcde"), cut("hijk"), cut("nopq")]);
    // the less urgent of the two is paused for it, and resumed where it was
    assert_eq!(steps[2], Step::from([('a', 1), ('m', 50)]));
    assert!(steps[3..6].iter().all(|step| step.contains_key(&'m')));
    assert_eq!(steps.iter().filter_map(|step| step.get(&'g')).sum::<usize>(), 4);
}

#[test]
fn a_client_that_does_not_read_delays_nobody() {
    let setting = setting(2, 1000);
    let chunks = crate::limits::CHUNKS_WAITING_MAX;
    // each byte is a piece, and there is room for 64 of them
    let mut behind = setting.ask_for(80, "!", 10);
    let others: Vec<Asked> = (11..25).map(|seconds| setting.ask("a", seconds)).collect();
    let reader = std::thread::Builder::new();
    let reader = reader.spawn(move || {
        for Asked { mut chunks, ended } in others {
            assert_eq!(ended.blocking_recv().unwrap().unwrap().completion_tokens, 4);
            while chunks.blocking_recv().is_some() {}
        }
        let mut text = String::new();
        while let Some(chunk) = behind.chunks.blocking_recv() {
            text.push_str(&chunk.text);
        }
        text
    });
    let steps = setting.run();
    let text = reader.unwrap().join().unwrap();
    assert_eq!(text.len(), 80, "{text}");
    assert!(steps.len() > chunks);
}

#[test]
fn one_at_a_time_a_client_that_does_not_read_delays_nobody_either() {
    let setting = setting(2, 1000);
    let behind = setting.ask_for(80, "!", 10);
    let other = setting.ask("a", 99);
    let narrow = Pace { width: 1, ..Pace::default() };
    setting.engine.pacer.duty.set(narrow);
    let reader = std::thread::Builder::new().spawn(move || {
        let usage = other.ended.blocking_recv().unwrap();
        drop(behind);
        usage.unwrap().completion_tokens
    });
    let steps = setting.run();
    assert_eq!(reader.unwrap().join().unwrap(), 4);
    assert!(steps.iter().all(|step| step.len() == 1));
}

#[test]
fn answers_wait_for_room_in_the_cache() {
    let setting = setting(4, 150);
    let prompts = ["a".repeat(50), "g".repeat(50), "m".repeat(50)];
    let asked: Vec<Asked> = prompts.iter().zip(10..).map(|(p, at)| setting.ask(p, at)).collect();
    let steps = setting.run();
    let answers: Vec<_> = asked.into_iter().map(Asked::answer).collect();
    assert_eq!(answers, [cut("bcde"), cut("hijk"), cut("nopq")]);
    assert!(
        steps.iter().all(|step| !(step.contains_key(&'a') && step.contains_key(&'m'))),
        "{steps:?}"
    );
}

#[test]
fn an_answer_is_paused_when_the_cache_is_full_and_resumed() {
    let setting = setting(2, 70);
    let asked = [setting.ask_for(60, "!", 10), setting.ask_for(60, "#", 11)];
    let steps = setting.run();
    let letters = |first: u8| (first..first + 60).map(char::from).collect::<String>();
    assert_eq!(asked.map(Asked::answer), [cut(&letters(b'"')), cut(&letters(b'$'))]);
    let together = steps.iter().take_while(|step| step.len() == 2).count();
    assert_eq!(together, 35, "{steps:?}");
}

#[test]
fn a_paused_answer_waits_for_room_for_all_of_its_tokens() {
    let mut setting = setting(2, 150);
    let first = setting.ask_for(20, &"a".repeat(60), 10);
    let (task, urgent) = prompt(&"m".repeat(80), 99, Priority::Interactive, 4);
    setting.engine.decoder.later = Some((2, task, setting.tasks.clone()));
    let steps = setting.run();
    assert_eq!([first, urgent].map(Asked::answer), [cut("bcdefghijklmnopqrstu"), cut("nopq")]);
    let both = |step: &&Step| step.contains_key(&'a') && step.contains_key(&'m');
    assert_eq!(steps.iter().find(both), None);
}

#[test]
fn a_complete_answer_that_is_paused_needs_no_room() {
    let mut setting = setting(2, 200);
    // its last piece waits for its client
    let mut complete = setting.ask_for(65, "!", 10);
    let (task, mut urgent) = prompt(&"#".repeat(80), 99, Priority::Interactive, 70);
    setting.engine.decoder.later = Some((65, task, setting.tasks.clone()));
    let reader = std::thread::Builder::new().spawn(move || {
        urgent.chunks.blocking_recv().unwrap();
        while complete.chunks.blocking_recv().is_some() {}
        let usage = complete.ended.blocking_recv().unwrap().unwrap();
        while urgent.chunks.blocking_recv().is_some() {}
        (usage.completion_tokens, urgent.ended.blocking_recv().unwrap().unwrap().completion_tokens)
    });
    setting.run();
    assert_eq!(reader.unwrap().join().unwrap(), (65, 70));
}

#[test]
fn one_that_is_gone_ends_and_the_others_go_on() {
    let setting = setting(2, 1000);
    let (mut gone, stays) = (setting.ask("a", 10), setting.ask("g", 11));
    gone.chunks.close();
    let steps = setting.run();
    assert_eq!(stays.answer(), cut("hijk"));
    assert!(matches!(gone.ended.try_recv(), Ok(Err(Fault::Cancelled))));
    assert!(steps.iter().all(|step| !step.contains_key(&'a')));
}
