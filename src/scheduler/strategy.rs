//! Which of several models' answers counts, and why: the rules of the strategies.
//!
//! - *cascade*: the first, unless it lacks something; then the second, if it was given.
//! - *refine*: the second, made from the first; the first if there is no second.
//! - *compare*: of the answers that lack nothing, that which most agree with; if none agree, that
//!   which a judge prefers whichever stands first; else the one from furthest away, where the larger
//!   models are.

use crate::decision::{Decision, Reason, StrategyStep};
use crate::model::generate::{Finish, Usage};
use crate::request::format;
use crate::request::format::Format;
use crate::request::job::Strategy;

/// A log-probability from which on a token was as good as the only one.
const FORCED: f32 = -1e-6;

/// What an answer lacks, by the signs that cost nothing: its shape, its end, how likely its tokens
/// were.
pub fn lacks(format: &Format, text: &str, usage: &Usage, threshold: Option<f32>) -> Option<Reason> {
    if usage.finish == Finish::Length {
        return Some(Reason::CutOff);
    }
    // a tool call is no answer yet
    if usage.finish != Finish::ToolCalls && format::check(format, text).is_err() {
        return Some(Reason::Shape);
    }
    let mean = mean_logprob(usage)?;
    threshold.is_some_and(|least| mean < least).then_some(Reason::Confidence)
}

/// The mean log-probability of those tokens of an answer that the model had to choose, among those
/// that the format allowed; none if it was not told.
#[expect(clippy::cast_precision_loss, reason = "an answer has some thousand tokens")]
pub fn mean_logprob(usage: &Usage) -> Option<f32> {
    let told = usage.logprobs.iter();
    let chosen = told.filter(|one| one.allowed_logprob.is_none_or(|allowed| allowed < FORCED));
    let (mut sum, mut count) = (0.0, 0);
    for one in chosen {
        sum += one.allowed_logprob.unwrap_or(one.token.logprob);
        count += 1;
    }
    // nothing to choose is nothing to doubt
    (!usage.logprobs.is_empty()).then(|| if count == 0 { 0.0 } else { sum / count as f32 })
}

/// Which of these counts, and why; `steps` are in the order in which they were asked.
pub fn conclude(strategy: Strategy, steps: &[StrategyStep]) -> Option<(usize, Reason)> {
    let last = steps.len().checked_sub(1)?;
    let own = |at: usize| (at, steps[at].decision.reason);
    Some(match strategy {
        Strategy::Cascade => match steps[0].lacks {
            None => own(0),
            Some(lack) if last > 0 && steps[last].answered => (last, lack),
            Some(lack) => (0, lack),
        },
        Strategy::Refine if steps[last].answered => (last, Reason::Strategy),
        // the draft, with the reason why it was not refined
        Strategy::Refine if steps[0].answered => (0, steps[last].decision.reason),
        Strategy::Refine | Strategy::Single => own(last),
        Strategy::Compare => {
            let preferred = preferred(steps);
            let rank = |at: &usize| {
                let step = &steps[*at];
                let is_preferred = preferred == Some(*at);
                // the declared order of routes is their distance
                let far = step.decision.route;
                (step.answered, step.lacks.is_none(), is_preferred, step.agree, far)
            };
            let answers = steps.iter().take_while(|step| !step.judges).count();
            let best = (0..answers).max_by_key(rank)?;
            if steps[best].answered { (best, Reason::Strategy) } else { own(best) }
        }
    })
}

/// What all who judge prefer, if they do: one that prefers whatever stands first prefers nothing.
fn preferred(steps: &[StrategyStep]) -> Option<usize> {
    let mut words = steps.iter().filter(|step| step.judges).map(|step| step.prefers);
    let first = words.next()??;
    words.all(|word| word == Some(first)).then_some(first)
}

/// What a judge decides between: the answers that lack nothing, if no two of them agree; else it has
/// nothing to say, and there are none.
pub fn contested(steps: &[StrategyStep]) -> Vec<usize> {
    let is_good = |at: &usize| steps[*at].answered && steps[*at].lacks.is_none();
    let good: Vec<usize> = (0..steps.len()).filter(is_good).collect();
    let is_open = good.len() > 1 && good.iter().all(|at| steps[*at].agree == 1);
    if is_open { good } else { Vec::new() }
}

/// One record of all steps; the attempts of all stand in it one after the other.
pub fn record(strategy: Strategy, steps: Vec<StrategyStep>, counts: (usize, Reason)) -> Decision {
    let (at, reason) = counts;
    let own = &steps[at].decision;
    Decision {
        route: own.route,
        reason,
        attempts: steps.iter().flat_map(|step| step.decision.attempts.clone()).collect(),
        predicted_ms: own.predicted_ms,
        pressure: own.pressure,
        strategy: Some(strategy),
        figures: None,
        steps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generate::{Logprob, TokenLogprob};

    fn usage(tokens: &[(f32, Option<f32>)]) -> Usage {
        let token = |(logprob, allowed_logprob): &(f32, Option<f32>)| TokenLogprob {
            token: Logprob { token: "x".to_owned(), bytes: vec![b'x'], logprob: *logprob },
            allowed_logprob: *allowed_logprob,
            top_logprobs: Vec::new(),
        };
        Usage { logprobs: tokens.iter().map(token).collect(), ..Usage::one_piece("m") }
    }

    #[test]
    fn only_what_could_be_chosen_counts() {
        assert_eq!(mean_logprob(&usage(&[])), None);
        assert_eq!(mean_logprob(&usage(&[(-1.0, None), (-3.0, None)])), Some(-2.0));
        let json = [(-9.0, Some(0.0)), (-4.0, Some(-1.0)), (-2.0, Some(-0.5)), (-7.0, Some(0.0))];
        assert_eq!(mean_logprob(&usage(&json)), Some(-0.75));
        assert_eq!(mean_logprob(&usage(&[(-9.0, Some(0.0))])), Some(0.0));
        let lacks = |least| lacks(&Format::Text, "x", &usage(&json), Some(least));
        assert_eq!((lacks(-0.8), lacks(-0.7)), (None, Some(Reason::Confidence)));
    }
}
