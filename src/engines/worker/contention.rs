//! Batches beside other programs: threads that wait for each other at barriers lose most of their time there if
//! not all of them are scheduled, and a step for several answers is then slower than a step for each.

use std::time::{Duration, Instant};

/// How many times as long as its answers one after the other a step takes that counts as slow.
const SLOW: f64 = 2.0;
/// Slow steps, less the others, after which one answer is computed at a time.
const SLOW_STEPS: u32 = 3;
/// How long; then a batch is tried again.
const NARROW_FOR: Duration = Duration::from_secs(10);

/// Whether batches are slower than one answer at a time.
#[derive(Debug, Default)]
pub(super) struct Contention {
    slow_steps: u32,
    narrow_until: Option<Instant>,
}

impl Contention {
    /// Counts a step that took `ms` for its `answers`, each of which takes `alone_ms` alone by the measurement at
    /// start.
    pub(super) fn count(&mut self, answers: u32, ms: f64, alone_ms: f64, now: Instant) {
        if answers < 2 {
            return;
        }
        if ms <= SLOW * f64::from(answers) * alone_ms {
            self.slow_steps = self.slow_steps.saturating_sub(1);
            return;
        }
        self.slow_steps += 1;
        if self.slow_steps >= SLOW_STEPS {
            self.slow_steps = 0;
            self.narrow_until = Some(now + NARROW_FOR);
        }
    }

    /// Most answers in a step.
    pub(super) fn width(&self, now: Instant) -> usize {
        if self.narrow_until.is_some_and(|until| now < until) { 1 } else { usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    #[test]
    fn slow_batches_are_not_used_for_a_while() {
        let began = now();
        let mut contention = Contention::default();
        for ms in [900.0, 900.0, 30.0, 900.0, 79.0] {
            contention.count(4, ms, 10.0, began);
            assert_eq!(contention.width(began), usize::MAX);
        }
        // however slow, one answer alone is no batch
        for _ in 0..9 {
            contention.count(1, 900.0, 10.0, began);
        }
        assert_eq!(contention.width(began), usize::MAX);
        for _ in 0..2 {
            contention.count(4, 81.0, 10.0, began);
        }
        assert_eq!(contention.width(began), 1);
        assert_eq!(contention.width(began + NARROW_FOR), usize::MAX);
    }
}
