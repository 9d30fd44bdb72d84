//! How much is asked of models elsewhere: fewer requests at once of one that fails, and few retries.

use crate::limits::{RETRIES_SAVED_MAX, RETRY_EVERY};
use crate::time::Time;

/// How many requests at once one model elsewhere is given: half as many after a failure, one more
/// after as many answers as there are at once (additive increase, multiplicative decrease: D.-M.
/// Chiu, R. Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in
/// computer networks", 1989).
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    at_once: f64,
    /// When it was made less; what was asked before that says nothing new.
    cut: Option<Time>,
}

impl Default for ConcurrencyLimit {
    fn default() -> ConcurrencyLimit {
        ConcurrencyLimit { at_once: f64::INFINITY, cut: None }
    }
}

impl ConcurrencyLimit {
    /// What it may be given, if it offers this many places.
    pub(super) fn slots(&self, offered: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 and more")]
        let slots = self.at_once.min(f64::from(offered.max(1))) as u32;
        slots
    }

    /// It has answered.
    pub(super) fn worked(&mut self) {
        self.at_once += 1.0 / self.at_once;
    }

    /// What was asked at that time has failed.
    pub(super) fn failed(&mut self, asked: Time, now: Time, offered: u32) {
        if self.cut.is_none_or(|cut| asked >= cut) {
            self.at_once = (self.at_once.min(f64::from(offered)) / 2.0).max(1.0);
            self.cut = Some(now);
        }
    }
}

/// How often models elsewhere that have failed at a job may be asked for it again: once for
/// [`RETRY_EVERY`] first requests, and some that were saved up.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// In parts of a retry, [`RETRY_EVERY`] each.
    saved: u32,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget { saved: RETRIES_SAVED_MAX * RETRY_EVERY }
    }
}

impl RetryBudget {
    /// Whether there is one left.
    pub(super) fn may(&self) -> bool {
        self.saved >= RETRY_EVERY
    }

    /// One was asked.
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
