//! Load of a simulated device: prompts over a day, generated from a seed.

use std::time::Duration;

use fastrand::Rng;

use super::board::SimulatedBoard;
use crate::request::job::{Mode, Priority};

/// One prompt of a simulated day.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Time of its arrival, from the beginning.
    pub at: Duration,
    /// The application that asks.
    pub app: usize,
    /// How urgent it is.
    pub priority: Priority,
    /// Where it may go.
    pub mode: Mode,
    /// Time for its answer.
    pub time_left: Duration,
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Of these, tokens that are in the cache already.
    pub cached: u32,
    /// Tokens of its answer, unknown to the policy.
    pub answer: u32,
    /// Most tokens that it may have.
    pub most: u32,
    /// The client reads the answer as a whole, not as a stream.
    pub whole: bool,
}

/// The arrival process of a day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Requested work over the capacity of the engine when cool.
    pub load: f64,
    /// Factor of the arrival rate in bursts, which take a tenth of the time; 1 is no burst.
    pub burst: f64,
    /// How long the day is.
    pub length: Duration,
}

/// A kind of prompt: share of all, priority, seconds to its deadline, median tokens of the prompt
/// and of the answer.
type ArrivalKind = (f64, Priority, u64, f64, f64);

const KINDS: [ArrivalKind; 3] = [
    (0.60, Priority::Interactive, 8, 120.0, 20.0),
    (0.30, Priority::Normal, 30, 200.0, 60.0),
    (0.10, Priority::Batch, 120, 300.0, 180.0),
];
/// Spread of the lengths of answers and prompts (sigma of the logarithm).
const ANSWER_SIGMA: f64 = 0.6;
const PROMPT_SIGMA: f64 = 0.3;
/// `max_tokens` over the median answer.
const MOST: f64 = 5.0;
/// Share of a prompt that is in the prefix cache.
const CACHED: f64 = 0.4;
const APPS: usize = 4;
const LOCAL_ONLY: f64 = 0.1;
const STREAMED: f64 = 0.2;
/// Length of a burst, in seconds.
const BURST_S: f64 = 60.0;

/// A day of prompts.
pub fn day(board: &SimulatedBoard, demand: Demand, seed: u64) -> Vec<Arrival> {
    let mut random = Rng::with_seed(seed);
    // the mean of a log-normal is e^(s²/2) times its median
    let mean = |middle: f64, sigma: f64| middle * (sigma * sigma / 2.0).exp();
    let work: f64 = KINDS
        .iter()
        .map(|(share, _, _, prompt, answer)| {
            let read = mean(*prompt, PROMPT_SIGMA) * (1.0 - CACHED) / board.prefill;
            share * (read + mean(*answer, ANSWER_SIGMA) / board.decode)
        })
        .sum();
    let rate = demand.load / work;
    // the same number in all, whatever the bursts
    let quiet = rate / (0.9 + 0.1 * demand.burst);
    let mut at = 0.0;
    let mut orders = Vec::new();
    while at < demand.length.as_secs_f64() {
        let is_burst = at % (10.0 * BURST_S) < BURST_S;
        let rate = if is_burst { quiet * demand.burst } else { quiet };
        at += -(1.0 - random.f64()).ln() / rate;
        orders.push(order(&mut random, at));
    }
    orders
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tokens of a prompt, positive and small"
)]
fn order(random: &mut Rng, at: f64) -> Arrival {
    let mut pick = random.f64();
    let kind = KINDS.iter().position(|(share, ..)| {
        pick -= share;
        pick < 0.0
    });
    let kind = kind.unwrap_or(KINDS.len() - 1);
    let (_, priority, seconds, prompt, answer) = KINDS[kind];
    let most = answer * MOST;
    let mut spread = |middle: f64, sigma: f64| middle * (sigma * normal(random)).exp();
    let prompt = spread(prompt, PROMPT_SIGMA).clamp(8.0, 1500.0);
    let answer = spread(answer, ANSWER_SIGMA).clamp(1.0, most);
    Arrival {
        at: Duration::from_secs_f64(at),
        app: kind * APPS + random.usize(0..APPS),
        priority,
        mode: if random.f64() < LOCAL_ONLY { Mode::LocalOnly } else { Mode::PreferLocal },
        time_left: Duration::from_secs(seconds),
        prompt: prompt as u32,
        cached: (prompt * CACHED) as u32,
        answer: answer as u32,
        most: most as u32,
        whole: random.f64() >= STREAMED,
    }
}

/// A number of the standard normal distribution (Box and Muller).
pub(super) fn normal(random: &mut Rng) -> f64 {
    let (a, b) = (1.0 - random.f64(), random.f64());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
