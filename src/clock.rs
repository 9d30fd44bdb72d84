//! The clock: the only place where the service reads the time of day and the monotonic time.

#![expect(clippy::disallowed_methods, reason = "every other module is given the time by this one")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic time.
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day.
pub fn time_of_day() -> SystemTime {
    SystemTime::now()
}

/// Time since the Unix epoch; zero if the system's clock is set to before it.
pub fn since_epoch() -> Duration {
    time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default()
}
