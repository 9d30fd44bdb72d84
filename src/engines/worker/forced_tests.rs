//! Tokens without a choice, with the decoder that writes the alphabet.

use std::time::Duration;

use serde_json::json;

use super::EngineTask;
use super::batch_tests::{Asked, cut, setting, task};
use crate::request::format::Format;
use crate::request::job::Job;

#[test]
fn tokens_without_a_choice_are_not_decoded_one_by_one() {
    let alarm = json!({
        "type": "object",
        "properties": {"alarm": {"type": "boolean"}, "unit": {"const": "degrees"}},
        "required": ["alarm", "unit"],
        "additionalProperties": false,
    });
    for (logprobs, most, forced, steps) in
        [(None, 99, 31, 1), (None, 20, 19, 1), (Some(0), 99, 0, 32)]
    {
        let setting = setting(2, 1000);
        let mut job = Job::plain("a", Duration::from_secs(9));
        job.format = Format::Schema(alarm.clone().into());
        job.sampling.max_tokens = Some(most);
        job.sampling.logprobs = logprobs;
        let (task, mut asked) = task(job);
        setting.tasks.try_send(task).ok().unwrap();
        let beside = setting.ask("g", 10);
        let done = setting.run();
        let all = r#"{"alarm":false,"unit":"degrees"}"#;
        let text = asked.text();
        assert_eq!(text, all[..all.len().min(most as usize)], "{logprobs:?} {most}");
        let usage = asked.ended.try_recv().unwrap().unwrap();
        assert_eq!((usage.completion_tokens as usize, usage.forced_tokens), (text.len(), forced));
        assert_eq!(done.iter().filter(|step| step.contains_key(&'a')).count(), steps);
        assert_eq!(beside.answer(), cut("hijk"));
    }
}

/// An answer with a choice, tokens without one, and another choice.
fn two_flags() -> (EngineTask, Asked) {
    let flag = json!({"type": "boolean"});
    let schema = json!({
        "type": "object",
        "properties": {"a": flag, "b": flag},
        "required": ["a", "b"],
        "additionalProperties": false,
    });
    let format = Format::Schema(schema.into());
    task(Job { format, ..Job::plain("a", Duration::from_secs(9)) })
}

#[test]
fn tokens_without_a_choice_are_charged_as_reading() {
    let mut setting = setting(2, 1000);
    (setting.engine.decoder.delay, setting.engine.decoder.delay_from) =
        (Duration::from_millis(40), 1);
    let (task, mut asked) = two_flags();
    setting.tasks.try_send(task).ok().unwrap();
    // the prompt with the beginning of the answer, then one token with a choice and those after it
    assert_eq!(setting.run().len(), 2);
    let usage = asked.ended.try_recv().unwrap().unwrap();
    let share = usage.decode_ms / (usage.decode_ms + usage.prefill_ms);
    assert!((0.1..0.4).contains(&share), "{share} of {usage:?}");
}

#[test]
fn nothing_is_sent_before_the_prompt_is_read() {
    let mut setting = setting(2, 1000);
    let (EngineTask::Answer(prompt), mut asked) = two_flags() else { panic!("no prompt") };
    let mut answer = setting.engine.begin(*prompt).unwrap();
    assert!(answer.pending().len() > 5 && !answer.is_held());
    answer.flush().unwrap();
    assert_eq!(asked.text(), "");
    answer.evaluated = answer.tokens.len();
    answer.flush().unwrap();
    assert_eq!(asked.text(), r#"{"a":"#);
}
