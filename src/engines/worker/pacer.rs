//! Lets an engine pause between its steps, so that it computes for a share of the time only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::now;

/// Least share: slower than this, nobody waits for an answer.
const DUTY_MIN: f32 = 0.02;
/// Longest pause after one step.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How soon a request that is stopped ends its pause.
const STEP: Duration = Duration::from_millis(20);

/// The share of the time for which the engine may compute, set by any thread, and a count of its
/// steps.
#[derive(Debug, Clone)]
pub(crate) struct Duty(Arc<(AtomicU32, AtomicU64)>);

impl Default for Duty {
    fn default() -> Duty {
        Duty(Arc::new((AtomicU32::new(1.0_f32.to_bits()), AtomicU64::new(0))))
    }
}

impl Duty {
    pub(super) fn set(&self, share: f32) {
        self.0.0.store(share.clamp(DUTY_MIN, 1.0).to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> f32 {
        f32::from_bits(self.0.0.load(Ordering::Relaxed))
    }

    /// Steps that the engine has done.
    pub(super) fn beats(&self) -> u64 {
        self.0.1.load(Ordering::Relaxed)
    }
}

/// Pauses, and remembers for how long, so that rates are those of computing.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    pub(super) duty: Duty,
    paused: Duration,
}

impl Pacer {
    /// Pauses after a step that took so long.
    pub(super) fn rest(&mut self, worked: Duration, stop: Option<&AtomicBool>) {
        self.duty.0.1.fetch_add(1, Ordering::Relaxed);
        let duty = self.duty.get();
        if duty >= 1.0 {
            return;
        }
        let pause = worked.mul_f32(1.0 / duty - 1.0).min(PAUSE_MAX);
        let began = now();
        // bounded by the pause
        while began.elapsed() < pause && !stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            std::thread::sleep(STEP.min(pause.saturating_sub(began.elapsed())));
        }
        self.paused += began.elapsed();
    }

    /// What was spent on others counts as a pause.
    pub(super) fn add(&mut self, time: Duration) {
        self.paused += time;
    }

    /// How long it has paused since this was asked last.
    pub(super) fn taken(&mut self) -> Duration {
        std::mem::take(&mut self.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_in_proportion_and_not_when_stopped() {
        let mut pacer = Pacer::default();
        pacer.rest(Duration::from_secs(9), None);
        assert_eq!(pacer.taken(), Duration::ZERO);
        pacer.duty.set(0.25);
        pacer.rest(Duration::from_millis(20), None);
        // three times the step
        assert!(pacer.taken() >= Duration::from_millis(60));
        let stopped = AtomicBool::new(true);
        pacer.rest(Duration::from_secs(1), Some(&stopped));
        assert!(pacer.taken() < Duration::from_secs(1));
        pacer.duty.set(-3.0);
        assert!((pacer.duty.get() - DUTY_MIN).abs() < 1e-6);
    }
}
