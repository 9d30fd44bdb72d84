//! Deterministic answers beside others, with the decoder that writes the alphabet.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::EngineTask;
use super::batch_tests::{Asked, Step, cut, setting, task};
use crate::limits::CHUNKS_WAITING_MAX;
use crate::model::generate::Fault;
use crate::request::job::{Job, Priority};

/// A deterministic prompt with its deadline in so many seconds, for an answer of four tokens.
fn alone(text: &str, seconds: u64, priority: Priority) -> (EngineTask, Asked) {
    task(exact(text, seconds, priority))
}

fn exact(text: &str, seconds: u64, priority: Priority) -> Job {
    let mut job = Job { priority, ..Job::plain(text, Duration::from_secs(seconds)) };
    job.sampling.temperature = Some(0.0);
    job.sampling.repeat_penalty = Some(1.0);
    job.sampling.max_tokens = Some(4);
    job.sampling.deterministic = true;
    job
}

fn letters(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| step.keys().collect()).collect()
}

#[test]
fn a_deterministic_answer_takes_turns_with_the_others() {
    let setting = setting(2, 1000);
    let (a, g) = (setting.ask("a", 10), setting.ask("g", 12));
    let (task, m) = alone("m", 11, Priority::Normal);
    setting.tasks.try_send(task).ok().unwrap();
    let steps = setting.run();
    assert_eq!([a, g, m].map(Asked::answer), [cut("bcde"), cut("hijk"), cut("nopq")]);
    assert_eq!(letters(&steps), ["m", "ag", "m", "ag", "m", "ag", "m", "ag"]);
}

#[test]
fn priorities_come_before_turns() {
    for (priority, order) in [
        (Priority::Interactive, ["m", "m", "m", "m", "a", "a", "a", "a"]),
        (Priority::Batch, ["a", "a", "a", "a", "m", "m", "m", "m"]),
    ] {
        let setting = setting(2, 1000);
        let a = setting.ask("a", 10);
        let (task, m) = alone("m", 11, priority);
        setting.tasks.try_send(task).ok().unwrap();
        let steps = setting.run();
        assert_eq!([a, m].map(Asked::answer), [cut("bcde"), cut("nopq")]);
        assert_eq!(letters(&steps), order, "{priority:?}");
    }
}

#[test]
fn its_steps_follow_from_the_request_alone() {
    let text = "m".repeat(150);
    let parts = |beside: bool, width: usize| {
        // a KV cache that the prompt would not fit into beside others
        let setting = setting(width, 200);
        let mut asked = Vec::new();
        if beside {
            asked.extend((10..14).map(|seconds| setting.ask(&"a".repeat(40), seconds)));
        }
        let (task, m) = alone(&text, 11, Priority::Normal);
        setting.tasks.try_send(task).ok().unwrap();
        let steps = setting.run();
        assert_eq!(m.answer(), cut("nopq"));
        assert!(asked.into_iter().all(|asked| asked.answer() == cut("bcde")));
        steps.iter().filter_map(|step| step.get(&'m').copied()).collect::<Vec<_>>()
    };
    assert_eq!(parts(false, 1), [64, 64, 22, 1, 1, 1]);
    assert_eq!(parts(true, 3), parts(false, 1));
}

#[test]
fn deterministic_answers_wait_for_each_other_and_for_nobody_else() {
    let setting = setting(1, 1000);
    let asked: Vec<Asked> = [("m", 10), ("s", 11)]
        .into_iter()
        .map(|(text, seconds)| {
            let (task, asked) = alone(text, seconds, Priority::Normal);
            setting.tasks.try_send(task).ok().unwrap();
            asked
        })
        .collect();
    let a = setting.ask("a", 12);
    let steps = setting.run();
    assert_eq!(a.answer(), cut("bcde"));
    let answers: Vec<_> = asked.into_iter().map(Asked::answer).collect();
    assert_eq!(answers, [cut("nopq"), cut("tuvw")]);
    assert_eq!(letters(&steps), ["m", "a", "m", "a", "m", "a", "m", "a", "s", "s", "s", "s"]);
}

#[test]
fn one_without_memory_fails_and_one_without_a_client_ends() {
    let setting = setting(2, 100);
    let (task, mut large) = alone(&"m".repeat(99), 10, Priority::Normal);
    setting.tasks.try_send(task).ok().unwrap();
    let (task, mut gone) = alone("s", 11, Priority::Normal);
    if let EngineTask::Answer(prompt) = &task {
        prompt.stop.store(true, Ordering::Relaxed);
    }
    setting.tasks.try_send(task).ok().unwrap();
    let a = setting.ask("a", 12);
    setting.run();
    assert_eq!(large.ended.try_recv().unwrap(), Err(Fault::unavailable("no memory")));
    assert_eq!(gone.ended.try_recv().unwrap(), Err(Fault::Cancelled));
    assert_eq!(a.answer(), cut("bcde"));
}

#[test]
fn a_complete_answer_that_is_not_read_keeps_no_memory() {
    let setting = setting(1, 1000);
    // each byte is a piece, and there is room for all but one
    let pieces = u32::try_from(CHUNKS_WAITING_MAX).unwrap() + 1;
    let mut job = exact("!", 10, Priority::Normal);
    job.sampling.max_tokens = Some(pieces);
    let (first, mut behind) = task(job);
    let (second, other) = alone("m", 11, Priority::Normal);
    setting.tasks.try_send(first).ok().unwrap();
    setting.tasks.try_send(second).ok().unwrap();
    let reader = std::thread::Builder::new();
    let reader = reader.spawn(move || {
        assert_eq!(other.ended.blocking_recv().unwrap().unwrap().completion_tokens, 4);
        while behind.ended.try_recv().is_err() {
            behind.text();
        }
    });
    let steps = setting.run();
    reader.unwrap().join().unwrap();
    assert_eq!(steps.iter().filter(|step| step.contains_key(&'!')).count(), pieces as usize);
}
