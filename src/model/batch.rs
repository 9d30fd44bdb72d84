//! Speeds of a model that decodes several answers in one batch.

use serde::{Deserialize, Serialize};

/// Most speeds that a model may state.
const RATES_MAX: usize = 16;
/// Share of the time of a step in which a prompt is read, while more urgent answers are written: these take at
/// most half as long again.
pub const READ_SHARE: f64 = 1.0 / 3.0;
/// A prompt whose rest can be read in so many durations of the answers' step is read at once beside answers of its
/// priority: they wait no longer for it altogether, and it waits much less.
const READ_AT_ONCE_STEPS: f64 = 4.0;
/// Share of the time until its deadline that a prompt may take to be read beside answers.
const READING_MAX: f64 = 0.75;

/// Speed of a batch of answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchRate {
    /// Answers that are decoded at once.
    pub answers: u32,
    /// Tokens a second, of all of them together.
    pub tokens_per_s: f64,
}

/// Speeds by the number of answers, in rising order of it, the first of one answer alone; empty for a model
/// that decodes one answer at a time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchRates(Vec<BatchRate>);

impl BatchRates {
    /// Speeds from the durations of a step that gives each of so many answers a token, in milliseconds; none
    /// if they are not those of rising numbers from 1 on.
    pub fn of_steps(steps: &[(u32, f64)]) -> BatchRates {
        let rates = steps.iter().map(|&(answers, ms)| BatchRate {
            answers,
            tokens_per_s: f64::from(answers) / ms * 1e3,
        });
        BatchRates(rates.collect()).checked()
    }

    /// The same if they are plausible, else none: they may come from another process.
    #[must_use]
    pub fn checked(self) -> BatchRates {
        let rising = self.0.windows(2).all(|pair| pair[0].answers < pair[1].answers);
        let is_speed = |rate: &BatchRate| rate.tokens_per_s.is_finite() && rate.tokens_per_s > 0.0;
        let from_one = self.0.first().is_some_and(|rate| rate.answers == 1);
        let is_plausible = rising && from_one && self.0.iter().all(is_speed);
        if is_plausible && self.0.len() <= RATES_MAX { self } else { BatchRates::default() }
    }

    /// Whether one answer is decoded at a time.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Most answers that are decoded at once; 1 without a batch.
    pub fn width(&self) -> u32 {
        self.0.last().map_or(1, |rate| rate.answers)
    }

    /// The part for at most so many answers.
    #[must_use]
    pub fn up_to(mut self, width: u32) -> BatchRates {
        self.0.retain(|rate| rate.answers <= width);
        self
    }

    /// The widest batch that gains this factor in tokens a second over the best narrower one. Code that computes four
    /// rows at a time gains nothing with two answers, and doubles the speed with four.
    pub fn best_width(&self, gain_min: f64) -> u32 {
        let wider = |best: BatchRate, rate: BatchRate| {
            if rate.tokens_per_s >= gain_min * best.tokens_per_s { rate } else { best }
        };
        self.0.iter().copied().reduce(wider).map_or(1, |best| best.answers)
    }

    /// How many times as long a token of one answer takes if so many are decoded at once: linear between the
    /// stated numbers, in proportion to the number beyond them.
    pub fn slowdown(&self, answers: u32) -> f64 {
        let Some(alone) = self.0.first() else { return f64::from(answers.max(1)) };
        let of = |rate: &BatchRate| {
            (f64::from(rate.answers) * alone.tokens_per_s / rate.tokens_per_s).max(1.0)
        };
        match self.0.iter().position(|rate| rate.answers >= answers) {
            Some(0) => 1.0,
            Some(at) => {
                let (low, high) = (self.0[at - 1], self.0[at]);
                let share =
                    f64::from(answers - low.answers) / f64::from(high.answers - low.answers);
                of(&low) + (of(&high) - of(&low)) * share
            }
            None => {
                let last = self.0.last().unwrap_or(alone);
                of(last) * f64::from(answers) / f64::from(last.answers)
            }
        }
    }

    /// The longest time at full speed, in milliseconds, of a prompt that is read at once beside so many answers of its
    /// priority; 0 without a batch.
    pub fn read_at_once_ms(&self, answers: u32) -> f64 {
        let alone = self.0.first().map_or(0.0, |rate| 1e3 / rate.tokens_per_s);
        READ_AT_ONCE_STEPS * alone * self.slowdown(answers)
    }
}

/// Whether a prompt has time to be read beside answers, if it takes `read_ms` milliseconds at full speed and has
/// `left_ms` until its deadline.
pub fn has_time_beside(read_ms: f64, left_ms: f64) -> bool {
    read_ms <= READ_SHARE * READING_MAX * left_ms
}

/// How long a prompt that is read keeps or lacks the time to be read beside answers, in milliseconds of the engine at
/// full speed; negative or infinite if that does not change. It is read with `speed`, 1 being the engine's, and
/// the engine computes `engine_speed` milliseconds in a millisecond.
pub fn until_time_changes_ms(read_ms: f64, left_ms: f64, speed: f64, engine_speed: f64) -> f64 {
    let part = READ_SHARE * READING_MAX;
    (part * left_ms - read_ms) / (part / engine_speed - speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn slowdowns_are_interpolated() {
        let rates = BatchRates::of_steps(&[(1, 10.0), (2, 12.0), (4, 20.0)]);
        assert_eq!(rates.width(), 4);
        close(rates.slowdown(0), 1.0);
        close(rates.slowdown(1), 1.0);
        close(rates.slowdown(2), 1.2);
        close(rates.slowdown(3), 1.6);
        close(rates.slowdown(8), 4.0);
        // without a batch each waits for the others
        close(BatchRates::default().slowdown(3), 3.0);
        assert_eq!(BatchRates::default().width(), 1);
    }

    #[test]
    fn a_batch_is_as_wide_as_it_gains() {
        let width = |steps: &[(u32, f64)]| BatchRates::of_steps(steps).best_width(1.15);
        assert_eq!(width(&[]), 1);
        assert_eq!(width(&[(1, 10.0)]), 1);
        assert_eq!(width(&[(1, 10.0), (2, 20.0), (4, 40.0), (8, 80.0)]), 1);
        assert_eq!(width(&[(1, 10.0), (2, 12.0), (4, 16.0), (8, 31.0)]), 4);
        assert_eq!(width(&[(1, 10.0), (2, 9.0), (4, 8.0), (8, 7.0)]), 8);
        // Q8_0 with AVX-512 and two threads, as measured
        assert_eq!(width(&[(1, 9.4), (2, 17.6), (4, 19.5), (8, 26.6)]), 8);
    }

    #[test]
    fn implausible_speeds_are_ignored() {
        let width = |steps: &[(u32, f64)]| BatchRates::of_steps(steps).width();
        for wrong in [&[(2, 1.0)][..], &[(1, 1.0), (1, 2.0)], &[(1, 1.0), (0, 1.0)], &[(1, 0.0)]] {
            assert_eq!(width(wrong), 1, "{wrong:?}");
        }
        let many: Vec<(u32, f64)> = (1..40).map(|n| (n, 1.0)).collect();
        assert_eq!(width(&many), 1);
    }
}
