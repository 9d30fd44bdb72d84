//! What the configuration states of single thermal zones.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// One zone, by its type or the name of its folder, in lower case.
pub type ZoneLimits = BTreeMap<String, ZoneLimit>;

/// Whether and with which bounds a zone counts.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be \"use\", \"ignore\", or two temperatures in °C such as [70, 80]"
)]
pub enum ZoneLimit {
    /// It counts or not, whatever its type.
    Named(ZoneUse),
    /// It counts, and the duty cycle falls between these temperatures, in degrees Celsius.
    Between(
        #[schemars(range(min = 20.0, max = 120.0))] f64,
        #[schemars(range(min = 20.0, max = 120.0))] f64,
    ),
}

/// Whether a zone counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ZoneUse {
    /// It counts.
    Use,
    /// It does not.
    Ignore,
}
