//! A guard that closes at once and opens only after it has been well for a while.

use std::time::Duration;

use super::level::PressureStage;
use crate::time::Time;

/// How long it must have been well before it opens.
const OPENS_AFTER: Duration = Duration::from_secs(30);

/// What a reading calls for.
#[derive(Debug, Clone, Copy)]
pub struct Levels {
    /// To get in.
    pub enter: PressureStage,
    /// To stay: never less than `enter`.
    pub stay: PressureStage,
}

/// The guard.
#[derive(Debug, Default)]
pub struct Latch {
    stage: PressureStage,
    /// Since when a lesser stage would do, and the highest that was called for since.
    well: Option<(Time, PressureStage)>,
}

impl Latch {
    /// Takes a reading in and says which stage holds.
    pub fn on(&mut self, levels: Levels, now: Time) -> PressureStage {
        if levels.enter >= self.stage {
            (self.stage, self.well) = (levels.enter, None);
            return self.stage;
        }
        let called = levels.stay.max(levels.enter);
        if called >= self.stage {
            self.well = None;
            return self.stage;
        }
        let (since, highest) = match self.well {
            // a clock that went back starts the wait anew
            Some((since, highest)) if since <= now => (since, highest.max(called)),
            Some(_) | None => (now, called),
        };
        self.well = Some((since, highest));
        if now.since(since) >= OPENS_AFTER {
            (self.stage, self.well) = (highest, None);
        }
        self.stage
    }
}
