//! Steps beside other programs: the threads of a step wait for each other at barriers, and where not all of them
//! are scheduled, a step takes many times as long as with one thread.

use std::time::{Duration, Instant};

/// How many times as long as measured at start a step takes that counts as slow.
const SLOW: f64 = 2.0;
/// Slow steps, less the others, after which one thread is tried.
const SLOW_STEPS: u32 = 3;
/// Steps after which one thread is compared with several.
const TRIAL_STEPS: u32 = 6;
/// The share of the time of several threads that one thread takes at most where it is better.
const GAIN: f64 = 0.9;
/// How long one thread is used; then several are tried again. Each time in a row is twice as long as the last.
const SINGLE_FOR: Duration = Duration::from_secs(10);
/// Longest time with one thread.
const SINGLE_MAX: Duration = Duration::from_secs(80);
/// How long one thread is not tried again where it was no better.
const NO_GAIN_FOR: Duration = Duration::from_secs(60);

/// Whether several threads are slower than one.
#[derive(Debug, Default)]
pub(super) struct Contention {
    slow_steps: u32,
    /// Duration of the last slow step, in times of the measured one.
    slow: f64,
    single: Option<Single>,
    /// How long one thread was used the last time, if steps have been slow since.
    last: Option<Duration>,
    not_before: Option<Instant>,
}

/// A time with one thread.
#[derive(Debug)]
struct Single {
    until: Instant,
    steps: u32,
    /// Sum of their durations, in times of the measured ones.
    sum: f64,
}

impl Single {
    fn until(until: Instant) -> Single {
        Single { until, steps: 0, sum: 0.0 }
    }
}

impl Contention {
    /// Counts a step that took so many times as long as measured at start.
    pub(super) fn count(&mut self, times: f64, now: Instant) {
        if let Some(single) = self.single.as_mut().filter(|single| now < single.until) {
            single.steps += 1;
            single.sum += times;
            let is_judged = single.steps == TRIAL_STEPS;
            if is_judged && single.sum > GAIN * self.slow * f64::from(TRIAL_STEPS) {
                self.single = None;
                self.last = None;
                self.not_before = Some(now + NO_GAIN_FOR);
            }
            return;
        }
        if times <= SLOW {
            self.slow_steps = self.slow_steps.saturating_sub(1);
            self.last = self.last.filter(|_| self.slow_steps > 0);
            return;
        }
        self.slow_steps = SLOW_STEPS.min(self.slow_steps + 1);
        self.slow = times;
        if self.slow_steps >= SLOW_STEPS && self.not_before.is_none_or(|at| at <= now) {
            self.slow_steps = 0;
            let length = self.last.map_or(SINGLE_FOR, |last| SINGLE_MAX.min(last * 2));
            self.last = Some(length);
            self.single = Some(Single::until(now + length));
        }
    }

    /// One thread is used from now on, because several were slow in the measurement at start.
    pub(super) fn begin(&mut self, now: Instant) {
        self.slow = f64::INFINITY;
        self.single = Some(Single::until(now + SINGLE_FOR));
    }

    /// Whether one thread is better now.
    pub(super) fn is_high(&self, now: Instant) -> bool {
        self.single.as_ref().is_some_and(|single| now < single.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn one_thread_is_used_for_a_while_after_slow_steps() {
        let began = now();
        let mut contention = Contention::default();
        for times in [9.0, 9.0, 1.0, 9.0, 1.9] {
            contention.count(times, began);
            assert!(!contention.is_high(began));
        }
        for _ in 0..2 {
            contention.count(9.0, began);
        }
        assert!(contention.is_high(began));
        // one thread alone is slower than measured, and better
        for _ in 0..50 {
            contention.count(3.0, began);
        }
        assert!(contention.is_high(began));
        let slow = |contention: &mut Contention, at| (0..3).for_each(|_| contention.count(9.0, at));
        let (first, most) = (SINGLE_FOR, SINGLE_MAX);
        let mut at = began + first;
        for length in [first * 2, first * 4, most, most] {
            assert!(!contention.is_high(at));
            slow(&mut contention, at);
            assert!(contention.is_high(at + length.mul_f64(0.9)));
            at += length;
        }
        // the other program has gone, and comes again
        contention.count(1.0, at);
        slow(&mut contention, at);
        assert!(!contention.is_high(at + first));
    }

    #[test]
    fn one_thread_that_is_no_better_is_not_kept() {
        let began = now();
        let mut contention = Contention::default();
        let slow = |contention: &mut Contention, at| (0..9).for_each(|_| contention.count(2.5, at));
        slow(&mut contention, began);
        assert!(!contention.is_high(began), "3 steps as slow, and 6 with one thread");
        slow(&mut contention, began);
        assert!(!contention.is_high(began));
        let later = began + NO_GAIN_FOR;
        (0..3).for_each(|_| contention.count(2.5, later));
        assert!(contention.is_high(later));
    }
}
