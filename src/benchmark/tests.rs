//! Measurements of a scripted model, and what is computed from measured speeds.

use super::*;
use crate::backends::scripted::{Crash, Scripted};
use crate::model::generate::{BoxFuture, Usage};
use crate::model::out::Out;
use crate::request::job::Job;

/// A scripted model that takes a millisecond for each piece.
struct Slow(Scripted);

impl Slow {
    fn new() -> Slow {
        Slow(Scripted::new("slow", 4, Crash::Report))
    }
}

impl Generate for Slow {
    fn generate<'a>(&'a self, job: &'a Job, out: Out) -> BoxFuture<'a, Result<Usage, Fault>> {
        Box::pin(async move {
            let mut job = job.clone();
            job.messages[0].content.push_str(" /delay-us=1000");
            self.0.generate(&job, out).await
        })
    }

    fn context(&self) -> &ModelContext {
        self.0.context()
    }
}

fn plan(rounds: usize, at_once: &[u32]) -> BenchmarkPlan {
    BenchmarkPlan { rounds, prompt_tokens: 100, answer_tokens: 16, at_once: at_once.to_vec() }
}

#[test]
fn a_plan_keeps_to_the_context_and_the_slots() {
    let mut context = ModelContext::default();
    context.capabilities.context_tokens = 256;
    context.capabilities.max_output_tokens = 256;
    context.runtime.slots = 4;
    let found = BenchmarkPlan::of(&context, 3);
    let expected =
        BenchmarkPlan { rounds: 3, prompt_tokens: 128, answer_tokens: 32, at_once: vec![1, 2, 4] };
    assert_eq!(found, expected);
    context.capabilities.context_tokens = 8192;
    context.runtime.slots = 0;
    let found = BenchmarkPlan::of(&context, 1);
    assert_eq!((found.prompt_tokens, found.answer_tokens), (512, 64));
    assert_eq!(found.at_once, [1]);
}

#[tokio::test]
async fn a_model_is_measured_in_the_order_of_the_plan() {
    let mut steps = Vec::new();
    let plan = plan(2, &[1, 2]);
    let speeds = measure(&Slow::new(), &plan, None, |done, all| steps.push((done, all))).await;
    let speeds = speeds.unwrap();
    assert_eq!(steps.len(), 9);
    assert_eq!(steps.last(), Some(&(9, 9)));
    let numbers: Vec<_> = speeds.at_once.iter().map(|rate| rate.answers).collect();
    assert_eq!(numbers, [1, 2]);
    assert!(speeds.at_once.iter().all(|rate| rate.tokens_per_s > 0.0), "{speeds:?}");
    assert!(speeds.at_once.iter().all(|rate| rate.joules_per_token.is_none()));
}

#[tokio::test]
async fn short_answers_are_no_measurement() {
    let plan = BenchmarkPlan { answer_tokens: 4, ..plan(1, &[1]) };
    let fault = measure(&Slow::new(), &plan, None, |_, _| ()).await.unwrap_err();
    assert!(fault.to_string().contains("after 4 tokens"), "{fault}");
}

#[test]
fn the_time_of_a_request_is_that_of_reading_and_writing() {
    let rate = |answers, tokens_per_s| AnswersAtOnce {
        answers,
        tokens_per_s,
        first_token_ms: 1.0,
        joules_per_token: None,
    };
    let speeds = ModelSpeeds {
        prompt_tokens: 512,
        prefill_tokens_per_s: 100.0,
        prompt_ms: 5120.0,
        at_once: vec![rate(1, 10.0), rate(4, 20.0)],
    };
    assert!((speeds.request_s(200, 50, 1) - 7.0).abs() < 1e-9);
    // four prompts of 2 s, and 200 tokens at 20 a second
    assert!((speeds.request_s(200, 50, 4) - 18.0).abs() < 1e-9);
    assert!((speeds.request_s(200, 50, 3) - 13.5).abs() < 1e-9);
    assert!((speeds.request_s(200, 50, 8) - 36.0).abs() < 1e-9);
}

#[test]
fn the_median_is_the_upper_of_two() {
    assert!((median([3.0, 1.0]) - 3.0).abs() < 1e-9);
    assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    assert!(median([]).abs() < 1e-9);
}
