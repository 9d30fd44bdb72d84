//! The circuit breaker of one backend: open after a failure, then half-open until it answers.

use std::time::Duration;

use crate::limits::{REST_MAX, REST_MIN, RETRY_AFTER_MAX};
use crate::time::Time;

/// The circuit breaker of one backend.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    until: Option<Time>,
    failures: u32,
}

impl Breaker {
    /// Opens the breaker after a failure: for an exponential backoff of [`REST_MIN`] to
    /// [`REST_MAX`], or for as long as the backend asked for if that is longer, at most
    /// [`RETRY_AFTER_MAX`]. A later failure never shortens the time.
    pub(super) fn failed(&mut self, now: Time, retry_after: Option<Duration>) {
        let backoff = REST_MIN.saturating_mul(2_u32.saturating_pow(self.failures)).min(REST_MAX);
        let stated = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = self.until.max(Some(now + backoff.max(stated)));
    }

    /// Closes the breaker: the backend answered, or was started again.
    pub(super) fn worked(&mut self) {
        *self = Breaker::default();
    }

    /// Whether the breaker is open: the backend is given no job.
    pub(super) fn is_open(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether the backend has not answered since it failed: once closed by time, it is given a
    /// single job at a time.
    pub(super) fn is_half_open(&self) -> bool {
        self.failures > 0
    }

    /// When the breaker stops being open, if it is.
    pub(super) fn open_until(&self, now: Time) -> Option<Time> {
        self.until.filter(|until| now < *until)
    }

    /// How long the breaker stays open.
    #[cfg(test)]
    fn left(&self, now: Time) -> Duration {
        self.until.map_or(Duration::ZERO, |until| now.until(until))
    }
}

const _: () = assert!(REST_MIN.as_millis() > 0 && REST_MIN.as_millis() < REST_MAX.as_millis());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_bound() {
        let mut breaker = Breaker::default();
        let now = Time(0);
        assert!(!breaker.is_open(now));
        breaker.failed(now, None);
        assert_eq!(breaker.left(now), REST_MIN);
        breaker.failed(now, None);
        assert_eq!(breaker.left(now), REST_MIN * 2);
        for _ in 0..100 {
            breaker.failed(now, None);
        }
        assert_eq!(breaker.left(now), REST_MAX);
        assert!(breaker.is_open(now));
        assert!(!breaker.is_open(now + REST_MAX) && breaker.is_half_open());
        breaker.worked();
        assert!(!breaker.is_half_open());
        assert!(!breaker.is_open(now));
    }

    #[test]
    fn retry_after_is_obeyed_up_to_a_bound() {
        let (now, second) = (Time(0), Duration::from_secs(1));
        let mut breaker = Breaker::default();
        breaker.failed(now, Some(90 * second));
        assert_eq!(breaker.left(now), 90 * second);
        // neither a failure that states nothing nor a shorter time shortens it
        breaker.failed(now, None);
        breaker.failed(now, Some(second));
        assert_eq!(breaker.left(now), 90 * second);
        breaker.failed(now, Some(Duration::MAX));
        assert_eq!(breaker.left(now), RETRY_AFTER_MAX);
        breaker.worked();
        assert!(!breaker.is_open(now));
        // a stated time below the backoff does not shorten that either
        breaker.failed(now, Some(Duration::ZERO));
        assert_eq!(breaker.left(now), REST_MIN);
    }
}
