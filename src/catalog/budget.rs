//! Prices and caps on spending as `mcp.json` has them, in US dollars.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::catalog::Mistake;
use crate::money::{Caps, Limits, Price, Usd};
use crate::request::name::is_name;

/// Most that a cap can be, in US dollars.
const CAP_MAX: f64 = 1_000_000.0;

/// US dollars a million tokens.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPrice {
    input: f64,
    output: f64,
}

impl RawPrice {
    /// The price, nothing if it can't be one.
    pub(super) fn check(self, path: &str, mistakes: &mut Vec<Mistake>) -> Price {
        Price::of_million(self.input, self.output).unwrap_or_else(|| {
            let message = "must be US dollars a million tokens, 0 to 10000".to_owned();
            mistakes.push(Mistake { path: format!("{path}.price"), message });
            Price::default()
        })
    }
}

/// What may be spent in the hours, days and months of the calendar.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    usd_per_hour: Option<f64>,
    usd_per_day: Option<f64>,
    usd_per_month: Option<f64>,
    /// For each application that is not among `apps`.
    per_app: RawLimits,
    apps: BTreeMap<String, RawLimits>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    usd_per_hour: Option<f64>,
    usd_per_day: Option<f64>,
    usd_per_month: Option<f64>,
}

impl RawBudget {
    pub(super) fn check(self, mistakes: &mut Vec<Mistake>) -> Caps {
        let path = "pilotlight.policy.budget";
        let RawBudget { usd_per_hour, usd_per_day, usd_per_month, per_app, apps } = self;
        let device = RawLimits { usd_per_hour, usd_per_day, usd_per_month };
        for name in apps.keys().filter(|name| !is_name(name)) {
            let message = "an application's name is [A-Za-z0-9_-]{1,64}".to_owned();
            mistakes.push(Mistake { path: format!("{path}.apps.{name}"), message });
        }
        let app = |(name, limits): (String, RawLimits)| {
            let limits = limits.check(&format!("{path}.apps.{name}"), mistakes);
            (name, limits)
        };
        let apps = apps.into_iter().map(app).collect();
        Caps {
            device: device.check(path, mistakes),
            per_app: per_app.check(&format!("{path}.per_app"), mistakes),
            apps,
        }
    }
}

impl RawLimits {
    fn check(self, path: &str, mistakes: &mut Vec<Mistake>) -> Limits {
        let mut cap = |name: &str, usd: Option<f64>| {
            let usd = usd?;
            if !(0.0..=CAP_MAX).contains(&usd) {
                let message = format!("must be US dollars, 0 to {CAP_MAX}");
                mistakes.push(Mistake { path: format!("{path}.{name}"), message });
            }
            Some(Usd::at_least(usd))
        };
        Limits {
            hour: cap("usd_per_hour", self.usd_per_hour),
            day: cap("usd_per_day", self.usd_per_day),
            month: cap("usd_per_month", self.usd_per_month),
        }
    }
}
