//! Measures a model on this machine: the speed of reading and writing, of several answers at once, its energy.
//!
//! The requests go through [`Generate`], so that the figures of a model in a child process include the time of its
//! protocol.

mod answers;
pub mod bandwidth;
pub mod choice;
#[cfg(feature = "engine")]
pub mod loss;

use serde::Serialize;

use self::answers::{TimedAnswer, answers, tokens_per_s};
use crate::clock::now;
use crate::device::energy::EnergyMeter;
use crate::limits::benchmark::{
    BENCHMARK_ANSWER_TOKENS, BENCHMARK_ANSWER_TOKENS_MIN, BENCHMARK_AT_ONCE,
    BENCHMARK_PROMPT_TOKENS, POWER_INTERVAL,
};
use crate::model::context::ModelContext;
use crate::model::generate::{Fault, Generate};

/// Text that long prompts repeat.
const SENTENCE: &str = "The pump in hall four is running and the pressure is good. ";
/// Sentences that a second prompt has more than a first one, which shows how many tokens a sentence has.
const SENTENCES_MORE: usize = 8;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchmarkPlan {
    /// Rounds, each with all requests; the medians count.
    pub rounds: usize,
    /// Tokens of the long prompt, about.
    pub prompt_tokens: u32,
    /// Most tokens of an answer.
    pub answer_tokens: u32,
    /// Answers at once, in rising order.
    pub at_once: Vec<u32>,
}

impl BenchmarkPlan {
    /// The usual plan for a model that states this, with so many rounds.
    pub fn of(context: &ModelContext, rounds: usize) -> BenchmarkPlan {
        let length = context.capabilities.context_tokens;
        let slots = context.runtime.slots.max(1);
        BenchmarkPlan {
            rounds,
            prompt_tokens: BENCHMARK_PROMPT_TOKENS.min(length / 2),
            answer_tokens: context.output_tokens_max(Some(BENCHMARK_ANSWER_TOKENS.min(length / 8))),
            at_once: BENCHMARK_AT_ONCE.into_iter().filter(|n| *n <= slots).collect(),
        }
    }
}

/// Measured speeds of a model: medians over the rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSpeeds {
    /// Tokens of the long prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens a second, of the long prompt.
    pub prefill_tokens_per_s: f64,
    /// Milliseconds until its first token.
    pub prompt_ms: f64,
    /// Answers at once, in rising order of their number, from one on.
    pub at_once: Vec<AnswersAtOnce>,
}

/// Measured speed of several answers at once to short prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AnswersAtOnce {
    /// The number of answers.
    pub answers: u32,
    /// Tokens a second of all of them together.
    pub tokens_per_s: f64,
    /// Milliseconds until the first token of the last one.
    pub first_token_ms: f64,
    /// Energy of a token, in joules: all that the machine used, prompts included. None without a sensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
}

impl ModelSpeeds {
    /// Tokens a second of one answer alone.
    pub fn decode_tokens_per_s(&self) -> f64 {
        self.at_once.first().map_or(0.0, |one| one.tokens_per_s)
    }

    /// Seconds that each of so many requests at once takes with a prompt and an answer of so many tokens, if their
    /// prompts are read one after the other; of the nearest measured number of requests that is not less.
    pub fn request_s(&self, prompt: u32, answer: u32, at_once: u32) -> f64 {
        let found = self.at_once.iter().find(|rate| rate.answers >= at_once);
        let rate = found.or(self.at_once.last()).map_or(0.0, |rate| rate.tokens_per_s);
        f64::from(at_once)
            * (f64::from(prompt) / self.prefill_tokens_per_s + f64::from(answer) / rate)
    }
}

/// Measures a model. `progress` is called with the number of measured steps and that of all.
///
/// # Errors
/// The model's fault, or that its answers are too short to be measured.
pub async fn measure(
    model: &dyn Generate,
    plan: &BenchmarkPlan,
    mut meter: Option<EnergyMeter>,
    mut progress: impl FnMut(usize, usize),
) -> Result<ModelSpeeds, Fault> {
    let steps = (plan.rounds + 1) * (plan.at_once.len() + 1);
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, steps);
    };
    let sentences = sentences(model, plan).await?;
    let mut long = Vec::new();
    let mut short: Vec<Vec<ShortRound>> = vec![Vec::new(); plan.at_once.len()];
    // the first round warms up
    for round in 0..=plan.rounds {
        let prompt = [long_prompt(round, sentences)];
        let read = answers(model, &prompt, 1).await?;
        step();
        if round > 0 {
            long.extend(read);
        }
        for (rounds, width) in short.iter_mut().zip(&plan.at_once) {
            let measured = short_round(model, plan, *width, round, &mut meter).await?;
            step();
            if round > 0 {
                rounds.push(measured);
            }
        }
    }
    let at_once = plan.at_once.iter().zip(short).map(|(answers, rounds)| AnswersAtOnce {
        answers: *answers,
        tokens_per_s: median(rounds.iter().map(|round| round.tokens_per_s)),
        first_token_ms: median(rounds.iter().map(|round| round.first_ms)),
        joules_per_token: rounds
            .iter()
            .map(|round| round.joules)
            .collect::<Option<Vec<_>>>()
            .map(median),
    });
    Ok(ModelSpeeds {
        prompt_tokens: long.first().map_or(0, |one| one.usage.prompt_tokens),
        prefill_tokens_per_s: median(long.iter().map(TimedAnswer::prefill)),
        prompt_ms: median(long.iter().map(TimedAnswer::first_ms)),
        at_once: at_once.collect(),
    })
}

/// One round of several answers at once.
#[derive(Debug, Clone, Copy)]
struct ShortRound {
    tokens_per_s: f64,
    first_ms: f64,
    joules: Option<f64>,
}

async fn short_round(
    model: &dyn Generate,
    plan: &BenchmarkPlan,
    width: u32,
    round: usize,
    meter: &mut Option<EnergyMeter>,
) -> Result<ShortRound, Fault> {
    let prompts: Vec<_> = (0..width).map(|n| short_prompt(round, width, n)).collect();
    let work = answers(model, &prompts, plan.answer_tokens);
    let (all, joules) = metered(meter, work).await;
    let all = all?;
    let tokens: u32 = all.iter().map(|answer| answer.usage.completion_tokens).sum();
    let shortest = all.iter().map(|answer| answer.usage.completion_tokens).min().unwrap_or(0);
    if shortest < BENCHMARK_ANSWER_TOKENS_MIN {
        return Err(Fault::ProtocolError(format!(
            "the model ended an answer after {shortest} tokens; a rate needs {BENCHMARK_ANSWER_TOKENS_MIN}"
        )));
    }
    let come_at_once =
        || Fault::ProtocolError("the pieces of an answer came all at once".to_owned());
    let tokens_per_s = tokens_per_s(&all).ok_or_else(come_at_once)?;
    Ok(ShortRound {
        tokens_per_s,
        first_ms: all.iter().map(TimedAnswer::first_ms).fold(0.0, f64::max),
        joules: joules.map(|joules| joules / f64::from(tokens.max(1))),
    })
}

/// Does this work, and measures its energy in joules.
async fn metered<T>(
    meter: &mut Option<EnergyMeter>,
    work: impl Future<Output = T>,
) -> (T, Option<f64>) {
    let Some(meter) = meter else { return (work.await, None) };
    meter.start(now());
    let mut work = std::pin::pin!(work);
    let mut ticks = tokio::time::interval(POWER_INTERVAL);
    loop {
        tokio::select! {
            done = &mut work => return (done, meter.joules(now())),
            _ = ticks.tick() => meter.read(now()),
        }
    }
}

/// How many sentences the long prompt has: a template adds tokens of its own.
async fn sentences(model: &dyn Generate, plan: &BenchmarkPlan) -> Result<usize, Fault> {
    let mut tokens = [0.0; 2];
    for (tokens, sentences) in tokens.iter_mut().zip([1, 1 + SENTENCES_MORE]) {
        let found = answers(model, &[long_prompt(usize::MAX, sentences)], 1).await?;
        *tokens = found.first().map_or(0.0, |one| f64::from(one.usage.prompt_tokens));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a number of sentences"
    )]
    let more = {
        let each = (tokens[1] - tokens[0]) / SENTENCES_MORE as f64;
        ((f64::from(plan.prompt_tokens) - tokens[0]) / each.max(1.0)).max(0.0) as usize
    };
    Ok(1 + more)
}

/// Prompts begin with something of their own, so that no beginning is cached.
fn long_prompt(round: usize, sentences: usize) -> String {
    format!("{round}: {}", SENTENCE.repeat(sentences))
}

fn short_prompt(round: usize, width: u32, n: u32) -> String {
    format!("{round}-{width}-{n}: Write a long report of a day in hall four, hour by hour.")
}

/// The middle value, the upper of two; 0 without any.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
