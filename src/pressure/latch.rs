//! A latch: hysteresis in time, by which a stage is entered at once and left after a delay.

use std::time::Duration;

use super::level::PressureStage;
use crate::time::Time;

/// How long a lesser stage must have been enough before the latch changes to it.
const LEAVES_AFTER: Duration = Duration::from_secs(30);

/// The stages that one reading requires.
#[derive(Debug, Clone, Copy)]
pub struct Levels {
    /// The stage that is entered at once.
    pub enter: PressureStage,
    /// The stage that is kept if it holds already; at least `enter`.
    pub stay: PressureStage,
}

/// A latched stage.
#[derive(Debug, Default)]
pub struct Latch {
    stage: PressureStage,
    /// Since when a lesser stage is enough, and the highest that was required since.
    eased: Option<(Time, PressureStage)>,
}

impl Latch {
    /// Takes a reading and returns the stage that holds.
    pub fn on(&mut self, levels: Levels, now: Time) -> PressureStage {
        if levels.enter >= self.stage {
            (self.stage, self.eased) = (levels.enter, None);
            return self.stage;
        }
        let required = levels.stay.max(levels.enter);
        if required >= self.stage {
            self.eased = None;
            return self.stage;
        }
        let (since, highest) = match self.eased {
            // a clock that went back restarts the delay
            Some((since, highest)) if since <= now => (since, highest.max(required)),
            Some(_) | None => (now, required),
        };
        self.eased = Some((since, highest));
        if now.since(since) >= LEAVES_AFTER {
            (self.stage, self.eased) = (highest, None);
        }
        self.stage
    }
}
