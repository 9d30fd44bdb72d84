//! Which of several models' answers counts, and why: the rules of the strategies.
//!
//! - *cascade*: the first, unless it lacks something; then the second, if it was given.
//! - *refine*: the second, made from the first; the first if there is no second.
//! - *compare*: of the answers that lack nothing, that which most agree with; among equals the
//!   one from furthest away, where the larger models are.

use super::decision::{Decision, Reason, Step};
use super::explain::explain as explain_one;
use crate::fit;
use crate::generate::{Finish, Usage};
use crate::model::Reach;
use crate::prompt::{Format, Strategy};

/// What an answer lacks, by the signs that cost nothing: its shape, its end, how likely its tokens
/// were.
pub fn lacks(format: &Format, text: &str, usage: &Usage, threshold: Option<f32>) -> Option<Reason> {
    if usage.finish == Finish::Length {
        return Some(Reason::CutOff);
    }
    // who calls a tool has not come to the answer yet
    if usage.finish != Finish::ToolCalls && fit::check(format, text).is_err() {
        return Some(Reason::Shape);
    }
    let mean = mean_logprob(usage)?;
    threshold.is_some_and(|least| mean < least).then_some(Reason::Confidence)
}

/// The mean log-probability of the tokens of an answer; none if it was not told.
#[expect(clippy::cast_precision_loss, reason = "an answer has some thousand tokens")]
pub fn mean_logprob(usage: &Usage) -> Option<f32> {
    let tokens = &usage.logprobs;
    let sum: f32 = tokens.iter().map(|one| one.token.logprob).sum();
    (!tokens.is_empty()).then(|| sum / tokens.len() as f32)
}

/// Which of these counts, and why; `steps` are in the order in which they were asked.
pub fn conclude(strategy: Strategy, steps: &[Step]) -> Option<(usize, Reason)> {
    let last = steps.len().checked_sub(1)?;
    let own = |at: usize| (at, steps[at].decision.reason);
    Some(match strategy {
        Strategy::Cascade => match steps[0].lacks {
            None => own(0),
            Some(lack) if last > 0 && steps[last].answered => (last, lack),
            Some(lack) => (0, lack),
        },
        Strategy::Refine if steps[last].answered => (last, Reason::Strategy),
        // the draft, and why nobody could refine it
        Strategy::Refine if steps[0].answered => (0, steps[last].decision.reason),
        Strategy::Refine | Strategy::Single => own(last),
        Strategy::Compare => {
            let rank = |at: &usize| {
                let step = &steps[*at];
                (step.answered, step.lacks.is_none(), step.agree, distance(&step.decision.route))
            };
            let best = (0..steps.len()).max_by_key(rank)?;
            if steps[best].answered { (best, Reason::Strategy) } else { own(best) }
        }
    })
}

fn distance(route: &str) -> u8 {
    [Reach::Device, Reach::Peer, Reach::Cloud]
        .into_iter()
        .position(|reach| super::route_to(reach) == route)
        .map_or(0, |at| 1 + u8::try_from(at).unwrap_or(0))
}

/// One record of all steps; the attempts of all stand in it one after the other.
pub fn record(strategy: Strategy, steps: Vec<Step>, counts: (usize, Reason)) -> Decision {
    let (at, reason) = counts;
    let own = &steps[at].decision;
    Decision {
        route: own.route.clone(),
        reason,
        attempts: steps.iter().flat_map(|step| step.decision.attempts.clone()).collect(),
        predicted_ms: own.predicted_ms,
        pressure: own.pressure,
        strategy: Some(strategy),
        figures: None,
        steps,
    }
}

/// Decides again: each step by its own figures, and then which of them counts.
///
/// # Errors
/// If the record does not say enough, or a step was not decided as it says.
pub(super) fn explain(decision: &Decision) -> Result<(String, Reason), String> {
    for (n, step) in decision.steps.iter().enumerate() {
        if !step.decision.steps.is_empty() {
            return Err("a step has no steps of its own".to_owned());
        }
        let again = explain_one(&step.decision)?;
        if again != (step.decision.route.clone(), step.decision.reason) {
            let word = again.1.word();
            return Err(format!("step {}: the judge says {} ({word})", n + 1, again.0));
        }
    }
    let strategy = decision.strategy.ok_or("the record names no strategy")?;
    let counts = conclude(strategy, &decision.steps).ok_or("the record has no steps")?;
    Ok((decision.steps[counts.0].decision.route.clone(), counts.1))
}
