//! The wait before a reconnection: exponential back-off while the broker can't be reached, and a budget
//! of reconnections to a broker that accepts connections and ends them.

use std::time::{Duration, Instant};

use super::reasons::Pause;
use crate::limits::{
    RECONNECT_BURST, RECONNECT_EVERY, RECONNECT_LATER, RECONNECT_MAX, RECONNECT_MIN,
    RECONNECT_RARELY,
};

/// The state of the back-off.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
    /// The budget, a generic cell rate algorithm: the time at which the reconnections so far would have
    /// been made at one every [`RECONNECT_EVERY`].
    due: Instant,
}

impl Backoff {
    pub(super) fn new(now: Instant) -> Backoff {
        Backoff { wait: RECONNECT_MIN, due: now }
    }

    /// The wait after a connection that ended for a reason with this pause.
    ///
    /// That the broker accepted it does not start the back-off again: two clients with one identifier
    /// would take the session from each other without a pause.
    pub(super) fn after(&mut self, attempt: Acceptance, pause: Pause, now: Instant) -> Duration {
        let wait = match attempt {
            Acceptance::Accepted => {
                self.wait = RECONNECT_MIN;
                self.due = self.due.max(now) + RECONNECT_EVERY;
                let over_budget = self.due - now;
                over_budget.saturating_sub(RECONNECT_EVERY * RECONNECT_BURST).max(RECONNECT_MIN)
            }
            Acceptance::Failed => {
                let wait = self.wait;
                self.wait = (wait * 2).min(RECONNECT_MAX);
                wait
            }
        };
        let least = match pause {
            Pause::Soon => RECONNECT_MIN,
            Pause::Later => RECONNECT_LATER,
            Pause::Rarely => RECONNECT_RARELY,
        };
        jittered(wait.max(least))
    }
}

/// What became of an attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acceptance {
    /// The broker accepted the connection.
    Accepted,
    Failed,
}

/// Between half and all of `wait`, so that many devices do not reconnect at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_broker_that_is_not_reached_is_asked_ever_more_seldom() {
        let now = clock::now();
        let mut backoff = Backoff::new(now);
        let mut check = |attempt: Acceptance, pause: Pause, expected: Duration| {
            let wait = backoff.after(attempt, pause, now);
            assert!(wait <= expected && wait >= expected / 2, "{wait:?} {expected:?}");
        };
        check(Acceptance::Failed, Pause::Soon, RECONNECT_MIN);
        check(Acceptance::Failed, Pause::Soon, RECONNECT_MIN * 2);
        check(Acceptance::Failed, Pause::Soon, RECONNECT_MIN * 4);
        check(Acceptance::Failed, Pause::Later, RECONNECT_LATER);
        check(Acceptance::Failed, Pause::Rarely, RECONNECT_RARELY);
        check(Acceptance::Accepted, Pause::Soon, RECONNECT_MIN);
        check(Acceptance::Failed, Pause::Soon, RECONNECT_MIN);
    }

    #[test]
    fn a_broker_that_accepts_and_ends_connections_has_a_bounded_number_of_them() {
        let start = clock::now();
        for held in [Duration::ZERO, Duration::from_millis(900)] {
            let (mut backoff, mut now, mut count) = (Backoff::new(start), start, 0);
            while now < start + Duration::from_secs(600) {
                now += held + backoff.after(Acceptance::Accepted, Pause::Soon, now);
                count += 1;
            }
            let most = 600 / RECONNECT_EVERY.as_secs() + u64::from(RECONNECT_BURST) + 1;
            assert!(count <= most, "{count} {held:?}");
        }
        // a connection that held is not waited for
        let mut backoff = Backoff::new(start);
        for hour in 0..24 {
            let now = start + Duration::from_secs(3600) * hour;
            assert!(backoff.after(Acceptance::Accepted, Pause::Soon, now) <= RECONNECT_MIN);
        }
    }
}
