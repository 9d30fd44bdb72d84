//! How long a backend that failed is left alone.

use crate::limits::{REST_MAX, REST_MIN};
use crate::time::Time;

/// The rest of one backend.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    until: Option<Time>,
    failures: u32,
}

impl Breaker {
    /// It failed: it rests, each time twice as long.
    pub(super) fn failed(&mut self, now: Time) {
        let rest = REST_MIN.saturating_mul(2_u32.saturating_pow(self.failures)).min(REST_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + rest);
    }

    /// It answered, or was started anew.
    pub(super) fn worked(&mut self) {
        *self = Breaker::default();
    }

    /// Whether it is to be left alone.
    pub(super) fn is_open(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether it has not answered since it failed: it is given one job to try.
    pub(super) fn is_half_open(&self) -> bool {
        self.failures > 0
    }

    /// When its rest ends, if it rests.
    pub(super) fn wakes_at(&self, now: Time) -> Option<Time> {
        self.until.filter(|until| now < *until)
    }

    /// How long it still rests.
    #[cfg(test)]
    fn left(&self, now: Time) -> std::time::Duration {
        self.until.map_or(std::time::Duration::ZERO, |until| now.until(until))
    }
}

const _: () = assert!(REST_MIN.as_millis() > 0 && REST_MIN.as_millis() < REST_MAX.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_longer_each_time_up_to_a_bound() {
        let mut breaker = Breaker::default();
        let now = Time(0);
        assert!(!breaker.is_open(now));
        breaker.failed(now);
        assert_eq!(breaker.left(now), REST_MIN);
        breaker.failed(now);
        assert_eq!(breaker.left(now), REST_MIN * 2);
        for _ in 0..100 {
            breaker.failed(now);
        }
        assert_eq!(breaker.left(now), REST_MAX);
        assert!(breaker.is_open(now));
        assert!(!breaker.is_open(now + REST_MAX) && breaker.is_half_open());
        breaker.worked();
        assert!(!breaker.is_half_open());
        assert!(!breaker.is_open(now));
    }
}
