//! An estimate at four confidence levels, from optimistic to worst case.

use serde::{Deserialize, Serialize};

/// The confidence level of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The 20 % quantile.
    Hopeful,
    /// The median.
    Likely,
    /// The 95 % quantile.
    Careful,
    /// The worst case that can be known.
    Worst,
}

/// One figure at each confidence level.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    /// The 20 % quantile.
    pub p20: f64,
    /// The median.
    pub p50: f64,
    /// The 95 % quantile.
    pub p95: f64,
    /// The worst case that can be known.
    pub worst: f64,
}

impl Spread {
    pub(crate) const fn all(value: f64) -> Spread {
        Spread { p20: value, p50: value, p95: value, worst: value }
    }

    pub(crate) fn at(&self, level: Level) -> f64 {
        match level {
            Level::Hopeful => self.p20,
            Level::Likely => self.p50,
            Level::Careful => self.p95,
            Level::Worst => self.worst,
        }
    }

    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Spread {
        Spread {
            p20: change(self.p20),
            p50: change(self.p50),
            p95: change(self.p95),
            worst: change(self.worst),
        }
    }

    pub(crate) fn with(&self, other: &Spread, join: impl Fn(f64, f64) -> f64) -> Spread {
        Spread {
            p20: join(self.p20, other.p20),
            p50: join(self.p50, other.p50),
            p95: join(self.p95, other.p95),
            worst: join(self.worst, other.worst),
        }
    }

    pub(crate) fn capped(&self, most: f64) -> Spread {
        self.map(|value| value.min(most))
    }
}
