//! Duty cycle: an engine pauses between its steps, so that it computes for a share of the time only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::now;
use crate::model::generate::Pace;

/// Least share of the time; with less, no answer would meet its deadline.
const DUTY_MIN: f32 = 0.02;
/// Longest pause after one step.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Interval at which a pause looks whether its request was stopped.
const POLL: Duration = Duration::from_millis(20);

/// The engine's limits, set by any thread, and a count of its steps.
#[derive(Debug, Clone)]
pub(crate) struct Duty(Arc<EngineLimits>);

#[derive(Debug)]
struct EngineLimits {
    /// The duty cycle, 0.02 to 1, as bits.
    share: AtomicU32,
    width: AtomicU32,
    steps: AtomicU64,
}

impl Default for Duty {
    fn default() -> Duty {
        let Pace { duty, width } = Pace::default();
        Duty(Arc::new(EngineLimits {
            share: AtomicU32::new(duty.to_bits()),
            width: AtomicU32::new(width),
            steps: AtomicU64::new(0),
        }))
    }
}

impl Duty {
    pub(super) fn set(&self, pace: Pace) {
        let share = pace.duty.clamp(DUTY_MIN, 1.0);
        self.0.share.store(share.to_bits(), Ordering::Relaxed);
        self.0.width.store(pace.width.max(1), Ordering::Relaxed);
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.share.load(Ordering::Relaxed))
    }

    /// Most answers at once.
    pub(super) fn width(&self) -> usize {
        self.0.width.load(Ordering::Relaxed) as usize
    }

    /// Counts a completed step.
    pub(super) fn count_step(&self) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps that the engine has completed.
    pub(super) fn steps(&self) -> u64 {
        self.0.steps.load(Ordering::Relaxed)
    }
}

/// Pauses after each step, and sums the pauses: token rates are those of the computing time.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    pub(super) duty: Duty,
    paused: Duration,
}

impl Pacer {
    /// Pauses after a step of this duration; ends early when `stop` is set.
    pub(super) fn pause(&mut self, computed: Duration, stop: Option<&AtomicBool>) {
        self.duty.count_step();
        let duty = self.duty.get();
        if duty >= 1.0 {
            return;
        }
        let pause = computed.mul_f32(1.0 / duty - 1.0).min(PAUSE_MAX);
        let began = now();
        // bounded by the pause
        while began.elapsed() < pause && !stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            std::thread::sleep(POLL.min(pause.saturating_sub(began.elapsed())));
        }
        self.paused += began.elapsed();
    }

    /// The sum of the pauses since the last call.
    pub(super) fn take_paused(&mut self) -> Duration {
        std::mem::take(&mut self.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_proportional_and_end_when_stopped() {
        let mut pacer = Pacer::default();
        pacer.pause(Duration::from_secs(9), None);
        assert_eq!(pacer.take_paused(), Duration::ZERO);
        let share = |duty| Pace { duty, ..Pace::default() };
        pacer.duty.set(share(0.25));
        pacer.pause(Duration::from_millis(20), None);
        // three times the step
        assert!(pacer.take_paused() >= Duration::from_millis(60));
        let stopped = AtomicBool::new(true);
        pacer.pause(Duration::from_secs(1), Some(&stopped));
        assert!(pacer.take_paused() < Duration::from_secs(1));
        pacer.duty.set(share(-3.0));
        assert!((pacer.duty.get() - DUTY_MIN).abs() < 1e-6);
    }
}
