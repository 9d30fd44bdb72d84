//! Our judge against the simple rules that others use, over the same simulated days.
//!
//! `cargo bench --no-default-features --bench policies [-- HOURS [DAYS]]` prints the tables of
//! `docs/measurements.md`; the same seeds give the same figures on every machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark ends at the first surprise"
)]

use std::time::Duration;

use pilotlight::model::batch::BatchRates;
use pilotlight::simulate::board::BOARDS;
use pilotlight::simulate::load::Demand;
use pilotlight::simulate::policy::{POLICIES, Policy};
use pilotlight::simulate::table::{over, table};
use pilotlight::simulate::world::{DayResult, DaySetup};

/// Milliseconds of a step with so many answers, as an engine measured them at its start: `SmolLM2-135M` `Q8_0` on 2 cores of
/// a Xeon, 1 thread for one answer and 2 for more.
const MEASURED: [(u32, f64); 4] = [(1, 27.4), (2, 21.3), (4, 30.1), (8, 48.4)];

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let hours = numbers.next().unwrap_or(6);
    let days = numbers.next().unwrap_or(2);
    let length = Duration::from_secs(hours * 3600);
    // engines: with batches; one job at a time with preemption; one job at a time without
    for (slots, batch) in [(10, &MEASURED[..]), (3, &[]), (1, &[])] {
        let batch = BatchRates::of_steps(batch);
        let width = batch.width();
        for board in &BOARDS {
            let loads = [(0.5, 1.0), (0.8, 1.0), (1.0, 1.0), (0.8, 4.0), (1.5, 1.0), (2.0, 1.0)];
            for (load, burst) in loads {
                let demand = Demand { load, burst, length };
                let batch = batch.clone();
                let given =
                    DaySetup { seed: 0, slots, batch, memory_runs_short: true, trace: None };
                let outcome = |policy| (policy, over(board, demand, days, policy, &given));
                let outcomes: Vec<_> = POLICIES.into_iter().map(outcome).collect();
                println!(
                    "\n{}, load {load}, bursts of {burst}, engine computes {width} and holds {slots}, \
                     {days} x {hours} h",
                    board.name
                );
                println!("{}", table(&outcomes));
                let ours = outcomes.iter().find(|(policy, _)| *policy == Policy::Ours);
                let (_, ours) = ours.expect("ours is one of them");
                let on_front = is_pareto_optimal(ours, &outcomes);
                println!("ours is on the front: {on_front}; left for: {:?}", ours.reasons);
            }
        }
    }
}

/// Whether no other is at least as good in missed jobs and in tokens offloaded, and better in one.
fn is_pareto_optimal(outcome: &DayResult, others: &[(Policy, DayResult)]) -> bool {
    let at = |o: &DayResult| (percent(o.missed, o.jobs), percent(o.away_tokens, o.tokens));
    let (missed, tokens) = at(outcome);
    !others.iter().any(|(_, other)| {
        let (its_missed, its_tokens) = at(other);
        its_missed <= missed && its_tokens <= tokens && (its_missed < missed || its_tokens < tokens)
    })
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few days")]
fn percent<T: TryInto<u64>>(part: T, total: T) -> f64 {
    let number = |value: T| value.try_into().unwrap_or(0) as f64;
    100.0 * number(part) / number(total).max(1.0)
}
