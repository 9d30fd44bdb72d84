//! Steps beside other programs: the threads of a step wait for each other at barriers, and where not all of them
//! are scheduled, a step takes many times as long as with one thread.
//!
//! One thread and several are compared by a few steps of each, one after the other, because what other programs leave
//! cannot be computed from what they take.

use std::time::{Duration, Instant};

/// How many times as long as the shortest mean steps take with several threads, for one thread to be tried.
const SLOW: f64 = 1.3;
/// Steps in a row for which the mean is so long, before that.
const SLOW_STEPS: u32 = 3;
/// Steps of a trial.
const TRIAL_STEPS: u32 = 4;
/// The share of the time of what is used that the other takes at most, to be used in its place.
const GAIN: f64 = 0.9;
/// Pause between two trials after a change; it doubles with each trial that changes nothing.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause with one thread: how much later several are used after another program has ended.
const PAUSE_SINGLE_MAX: Duration = Duration::from_secs(8);
/// Longest pause with several threads, whose steps may be slow for another reason.
const PAUSE_SEVERAL_MAX: Duration = Duration::from_secs(32);
/// Weight of a step in the mean.
const WEIGHT: f64 = 0.5;

/// Whether several threads are slower than one. Durations are in times of those measured at start.
#[derive(Debug)]
pub(super) struct Contention {
    /// One thread is used, several in a trial.
    is_single: bool,
    /// Mean duration of the last steps with the threads that are used.
    mean: Option<f64>,
    /// Shortest mean with several threads.
    best: f64,
    slow_steps: u32,
    trial: Option<ThreadTrial>,
    not_before: Option<Instant>,
    pause: Duration,
}

/// Steps with the other number of threads.
#[derive(Debug, Default)]
struct ThreadTrial {
    steps: u32,
    /// Sum of their durations.
    sum: f64,
}

impl Default for Contention {
    fn default() -> Contention {
        Contention {
            is_single: false,
            mean: None,
            best: 1.0,
            slow_steps: 0,
            trial: None,
            not_before: None,
            pause: PAUSE_MIN,
        }
    }
}

impl Contention {
    /// Counts a step that took so many times as long as measured at start.
    pub(super) fn count(&mut self, times: f64, now: Instant) {
        if let Some(mut trial) = self.trial.take() {
            trial.steps += 1;
            trial.sum += times;
            // what is lost already is not continued
            let most = self.mean.map_or(f64::INFINITY, |mean| GAIN * mean * f64::from(TRIAL_STEPS));
            if trial.steps < TRIAL_STEPS && trial.sum < most {
                self.trial = Some(trial);
            } else {
                self.end(&trial, now);
            }
            return;
        }
        let mean = self.mean.map_or(times, |mean| mean + WEIGHT * (times - mean));
        self.mean = Some(mean);
        if !self.is_single {
            self.best = self.best.min(mean);
        }
        let is_slow = mean > SLOW * self.best;
        self.slow_steps = if is_slow { self.slow_steps.saturating_add(1) } else { 0 };
        let is_due = self.not_before.is_none_or(|at| at <= now);
        if is_due && (self.is_single || self.slow_steps >= SLOW_STEPS) {
            self.trial = Some(ThreadTrial::default());
        }
    }

    fn end(&mut self, trial: &ThreadTrial, now: Instant) {
        let other = trial.sum / f64::from(trial.steps);
        if self.mean.is_none_or(|mean| other < GAIN * mean) {
            self.is_single = !self.is_single;
            self.mean = Some(other);
            self.pause = PAUSE_MIN;
            self.slow_steps = 0;
        } else {
            let most = if self.is_single { PAUSE_SINGLE_MAX } else { PAUSE_SEVERAL_MAX };
            self.pause = most.min(self.pause * 2);
        }
        self.not_before = Some(now + self.pause);
    }

    /// One thread is used from now on, because several were slow in the measurement at start.
    pub(super) fn begin(&mut self, now: Instant) {
        self.is_single = true;
        self.not_before = Some(now + PAUSE_MIN);
    }

    /// How many times as long as measured at the start the steps take at present, at least 1.
    pub(super) fn usual_times(&self) -> f64 {
        self.mean.unwrap_or(1.0).max(1.0)
    }

    /// Whether the next step that is counted has one thread.
    pub(super) fn is_high(&self) -> bool {
        self.is_single != self.trial.is_some()
    }

    /// Whether a step that is not counted has one thread: several are used again if nothing was counted for a while.
    pub(super) fn is_high_at(&self, now: Instant) -> bool {
        let is_known = |at| now < at + PAUSE_SINGLE_MAX;
        self.is_single && self.not_before.is_some_and(is_known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    const STEP: Duration = Duration::from_millis(50);

    /// Steps for so many seconds; the share of them with one thread. A step takes so many times as long as measured
    /// with several threads, and with one.
    fn share(state: &mut Contention, at: &mut Instant, seconds: u32, times: (f64, f64)) -> f64 {
        let (mut steps, mut single) = (0.0, 0.0);
        let end = *at + Duration::from_secs(seconds.into());
        while *at < end {
            let is_single = state.is_high();
            let times = if is_single { times.1 } else { times.0 };
            *at += STEP.mul_f64(times);
            state.count(times, *at);
            steps += 1.0;
            single += f64::from(u8::from(is_single));
        }
        single / steps
    }

    #[test]
    fn one_thread_is_used_while_several_wait_for_each_other() {
        let (mut state, mut at) = (Contention::default(), now());
        let (idle, busy) = ((1.0, 1.6), (4.0, 1.9));
        assert!(share(&mut state, &mut at, 30, idle) < 0.001);
        let began = share(&mut state, &mut at, 2, busy);
        assert!(began > 0.7, "{began}");
        let kept = share(&mut state, &mut at, 60, busy);
        assert!(kept > 0.95, "{kept}");
        // the other program has ended
        share(&mut state, &mut at, 9, idle);
        let after = share(&mut state, &mut at, 60, idle);
        assert!(after < 0.001, "{after}");
        // and comes again
        assert!(share(&mut state, &mut at, 2, busy) > 0.7);
    }

    /// Long contexts and a lower clock frequency make all steps slower.
    #[test]
    fn one_thread_that_is_no_better_is_not_used() {
        let (mut state, mut at) = (Contention::default(), now());
        let single = share(&mut state, &mut at, 120, (2.0, 3.0));
        assert!(single < 0.05, "{single}");
    }

    /// The measurement at start has found several threads slow, so that all durations are those of one.
    #[test]
    fn a_start_beside_a_busy_program_is_made_good() {
        let (mut state, mut at) = (Contention::default(), now());
        state.begin(at);
        assert!(state.is_high() && state.is_high_at(at));
        assert!(!state.is_high_at(at + PAUSE_MIN + PAUSE_SINGLE_MAX));
        let busy = share(&mut state, &mut at, 30, (3.0, 1.0));
        assert!(busy > 0.9, "{busy}");
        share(&mut state, &mut at, 9, (0.6, 1.0));
        assert!(share(&mut state, &mut at, 30, (0.6, 1.0)) < 0.001);
        assert!(share(&mut state, &mut at, 2, (1.5, 1.0)) > 0.5);
    }
}
