//! The clock: the only module that reads the monotonic clock and the time of day.

#![expect(clippy::disallowed_methods, reason = "all other modules get the time from this one")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time of the monotonic clock.
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day.
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// The time since the Unix epoch; zero if the system's clock is set to an earlier time.
pub fn since_epoch() -> Duration {
    time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default()
}
