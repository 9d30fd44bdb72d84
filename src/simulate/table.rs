//! Comparison of policies over the same days, as a Markdown table.

use std::fmt::Write as _;

use super::board::SimulatedBoard;
use super::load::{Demand, day};
use super::policy::Policy;
use super::world::{DayResult, DaySetup, run};

/// The results of a policy over the days of these seeds, added up.
pub fn over(
    board: &SimulatedBoard,
    demand: Demand,
    seeds: u64,
    policy: Policy,
    given: &DaySetup,
) -> DayResult {
    let mut sum = DayResult::default();
    for seed in 0..seeds.max(1) {
        let orders = day(board, demand, given.seed + seed);
        sum.add(run(
            board,
            &orders,
            policy,
            &DaySetup { seed: given.seed + seed, ..given.clone() },
        ));
    }
    sum
}

/// All policies as a table.
pub fn table(outcomes: &[(Policy, DayResult)]) -> String {
    let mut text = String::from(
        "| policy | requests offloaded | tokens offloaded | deadlines missed | above trip point, s/h | mode \
         changes/h | needless | peak °C |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (policy, outcome) in outcomes {
        // writing to a string can't fail
        let _ = writeln!(
            text,
            "| {} | {:.1} % | {:.1} % | {:.2} % | {:.0} | {:.1} | {:.0} % | {:.1} |",
            policy.name(),
            percent(outcome.away, outcome.jobs),
            percent(outcome.away_tokens, outcome.tokens),
            percent(outcome.missed, outcome.jobs),
            outcome.hot_s / outcome.hours,
            per_hour(outcome.mode_changes, outcome.hours),
            percent(outcome.needless, outcome.away),
            outcome.peak_c,
        );
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few days")]
fn percent<T: TryInto<u64>>(part: T, whole: T) -> f64 {
    let number = |value: T| value.try_into().unwrap_or(0) as f64;
    100.0 * number(part) / number(whole).max(1.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few days")]
fn per_hour(count: usize, hours: f64) -> f64 {
    count as f64 / hours
}
