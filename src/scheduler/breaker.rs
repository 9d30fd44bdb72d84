//! The circuit breaker of one backend: open after a failure, then half-open until it answers; and open
//! for a long time after repeated answers with impossible figures.

use std::time::Duration;

use crate::limits::{IMPLAUSIBLE_MAX, IMPLAUSIBLE_REST, REST_MAX, REST_MIN, RETRY_AFTER_MAX};
use crate::model::figures::Credibility;
use crate::time::Time;

/// The circuit breaker of one backend.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    until: Option<Time>,
    failures: u32,
    /// Two for each implausible answer, less one for each plausible answer.
    doubts: u32,
    /// When the rest after implausible answers ends.
    rested: Option<Time>,
}

/// So many doubts open the breaker.
const DOUBTS_MAX: u32 = 2 * IMPLAUSIBLE_MAX;

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

    /// Closes the breaker after failures: the backend answered, or was started again. The rest after
    /// implausible answers goes on: a backend could end it by connecting again.
    pub(super) fn worked(&mut self) {
        (self.until, self.failures) = (None, 0);
    }

    /// Counts an answer whose figures were checked. [`IMPLAUSIBLE_MAX`] implausible ones, or fewer after
    /// an earlier rest, open the breaker for [`IMPLAUSIBLE_REST`].
    pub(super) fn stated(&mut self, credibility: Credibility, now: Time) {
        match credibility {
            Credibility::Plausible => self.doubts = self.doubts.saturating_sub(1),
            Credibility::Implausible => {
                self.doubts = (self.doubts + 2).min(DOUBTS_MAX);
                if self.doubts >= DOUBTS_MAX {
                    self.rested = Some(now + IMPLAUSIBLE_REST);
                }
            }
        }
    }

    /// Whether the breaker is open: the backend is given no job.
    pub(super) fn is_open(&self, now: Time) -> bool {
        self.open_until(now).is_some()
    }

    /// Whether the backend has not answered since it failed: once closed by time, it is given a
    /// single job at a time.
    pub(super) fn is_half_open(&self) -> bool {
        self.failures > 0
    }

    /// When the breaker stops being open, if it is.
    pub(super) fn open_until(&self, now: Time) -> Option<Time> {
        self.until.max(self.rested).filter(|until| now < *until)
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

    #[test]
    fn implausible_answers_open_it_for_long() {
        let (mut breaker, now) = (Breaker::default(), Time(0));
        let implausible = |breaker: &mut Breaker, now| {
            breaker.worked();
            breaker.stated(Credibility::Implausible, now);
        };
        for _ in 1..IMPLAUSIBLE_MAX {
            implausible(&mut breaker, now);
            assert!(!breaker.is_open(now));
        }
        // one plausible answer between does not clear a backend
        breaker.stated(Credibility::Plausible, now);
        implausible(&mut breaker, now);
        assert!(!breaker.is_open(now));
        implausible(&mut breaker, now);
        assert_eq!(breaker.open_until(now), Some(now + IMPLAUSIBLE_REST));
        // nor does a new connection
        breaker.worked();
        assert!(breaker.is_open(now));
        // after the rest, one more is enough; plausible answers clear it
        let later = now + IMPLAUSIBLE_REST;
        assert!(!breaker.is_open(later));
        implausible(&mut breaker, later);
        let later = later + IMPLAUSIBLE_REST;
        assert!(breaker.is_open(Time(later.0 - 1)) && !breaker.is_open(later));
        (0..DOUBTS_MAX).for_each(|_| breaker.stated(Credibility::Plausible, later));
        implausible(&mut breaker, later);
        assert!(!breaker.is_open(later));
    }
}
