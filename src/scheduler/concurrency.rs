//! Limits for remote backends: an AIMD concurrency limit for each, and one retry budget.

use crate::limits::{RETRIES_SAVED_MAX, RETRY_EVERY};
use crate::time::Time;

/// Requests at once that one remote backend is given: half as many after a failure, one more
/// after as many answers as there are at once (additive increase, multiplicative decrease: D.-M.
/// Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in
/// computer networks", 1989).
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    at_once: f64,
    /// When it was last reduced; failures of requests from before that are ignored.
    cut: Option<Time>,
}

impl Default for ConcurrencyLimit {
    fn default() -> ConcurrencyLimit {
        ConcurrencyLimit { at_once: f64::INFINITY, cut: None }
    }
}

impl ConcurrencyLimit {
    /// Slots that may be used of those that the backend offers.
    pub(super) fn slots(&self, offered: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 and more")]
        let slots = self.at_once.min(f64::from(offered.max(1))) as u32;
        slots
    }

    /// Increases the limit after an answer.
    pub(super) fn worked(&mut self) {
        self.at_once += 1.0 / self.at_once;
    }

    /// Reduces the limit after the failure of a request that began at `asked`.
    pub(super) fn failed(&mut self, asked: Time, now: Time, offered: u32) {
        if self.cut.is_none_or(|cut| asked >= cut) {
            self.at_once = (self.at_once.min(f64::from(offered)) / 2.0).max(1.0);
            self.cut = Some(now);
        }
    }
}

/// Retry budget of all remote backends: one retry for [`RETRY_EVERY`] first requests, and at most
/// [`RETRIES_SAVED_MAX`] saved ones.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// In fractions of a retry: [`RETRY_EVERY`] make one.
    saved: u32,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget { saved: RETRIES_SAVED_MAX * RETRY_EVERY }
    }
}

impl RetryBudget {
    /// Whether a retry is left.
    pub(super) fn may(&self) -> bool {
        self.saved >= RETRY_EVERY
    }

    /// Counts one request.
    pub(super) fn asked(&mut self, is_retry: bool) {
        self.saved = if is_retry {
            self.saved.saturating_sub(RETRY_EVERY)
        } else {
            (self.saved + 1).min(RETRIES_SAVED_MAX * RETRY_EVERY)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_after_a_failure_and_one_more_after_a_round() {
        let mut flow = ConcurrencyLimit::default();
        assert_eq!((flow.slots(8), flow.slots(0)), (8, 1));
        flow.failed(Time(5), Time(9), 8);
        assert_eq!(flow.slots(8), 4);
        // asked before that
        flow.failed(Time(8), Time(10), 8);
        assert_eq!(flow.slots(8), 4);
        (0..4).for_each(|_| flow.worked());
        assert_eq!(flow.slots(8), 4);
        flow.worked();
        assert_eq!(flow.slots(8), 5);
        for at in 20..30 {
            flow.failed(Time(at), Time(at), 8);
        }
        assert_eq!(flow.slots(8), 1);
        (0..1000).for_each(|_| flow.worked());
        assert_eq!(flow.slots(8), 8);
    }

    #[test]
    fn one_retry_for_ten_requests() {
        let mut retries = RetryBudget::default();
        let used = |retries: &mut RetryBudget| {
            let mut count = 0;
            while retries.may() {
                retries.asked(true);
                count += 1;
            }
            count
        };
        assert_eq!(used(&mut retries), RETRIES_SAVED_MAX);
        (0..RETRY_EVERY * 3 + 9).for_each(|_| retries.asked(false));
        assert_eq!(used(&mut retries), 3);
        (0..10_000).for_each(|_| retries.asked(false));
        assert_eq!(used(&mut retries), RETRIES_SAVED_MAX);
    }
}
