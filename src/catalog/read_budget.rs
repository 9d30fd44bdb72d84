//! The reader of prices and spending caps, in US dollars.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::mistake::Scope;
use crate::money::{Caps, Limits, PRICE_MAX, Price, Usd};
use crate::request::client::UNLISTED;
use crate::request::name::{APP_NAME_PATTERN, is_app_name};

/// The message for a name that no application can have.
pub(super) const APP_NAME: &str =
    "an application's name is one topic level: 1 to 64 bytes without / + # and control characters";
/// The highest spending cap, in US dollars.
const CAP_MAX: f64 = 1_000_000.0;

/// A price, in US dollars per million tokens.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Price")]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPrice {
    /// Of a token of the prompt.
    #[schemars(range(min = 0.0, max = PRICE_MAX))]
    input: f64,
    /// Of a token of the answer.
    #[schemars(range(min = 0.0, max = PRICE_MAX))]
    output: f64,
}

impl RawPrice {
    /// The price; zero together with a mistake if it is out of range.
    pub(super) fn check(self, scope: &mut Scope<'_>) -> Price {
        Price::of_million(self.input, self.output).unwrap_or_else(|| {
            scope.at("price").add("must be US dollars a million tokens, 0 to 10000");
            Price::default()
        })
    }
}

/// The spending caps by calendar hour, day and month.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Budget")]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBudget {
    /// The most that may be spent in a calendar hour in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_hour: Option<f64>,
    /// The most that may be spent in a calendar day in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_day: Option<f64>,
    /// The most that may be spent in a calendar month in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_month: Option<f64>,
    /// For each application that is not among `apps`, and for all that are not listed together.
    per_app: RawLimits,
    /// For single applications by name; `+` stands for all that are not listed.
    #[schemars(extend("propertyNames" = {"pattern": APP_NAME_PATTERN}))]
    apps: BTreeMap<String, RawLimits>,
}

/// Spending caps by calendar hour, day and month.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Limits")]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    /// The most that may be spent in a calendar hour in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_hour: Option<f64>,
    /// The most that may be spent in a calendar day in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_day: Option<f64>,
    /// The most that may be spent in a calendar month in UTC, in US dollars.
    #[schemars(range(min = 0.0, max = CAP_MAX))]
    usd_per_month: Option<f64>,
}

impl RawBudget {
    pub(super) fn check(self, scope: &mut Scope<'_>) -> Caps {
        let RawBudget { usd_per_hour, usd_per_day, usd_per_month, per_app, apps } = self;
        let device = RawLimits { usd_per_hour, usd_per_day, usd_per_month };
        for name in apps.keys().filter(|name| !is_app_name(name) && *name != UNLISTED) {
            scope.at("apps").at(name).add(APP_NAME);
        }
        let app = |(name, limits): (String, RawLimits)| {
            let limits = limits.check(&mut scope.at("apps").at(&name));
            (name, limits)
        };
        let apps = apps.into_iter().map(app).collect();
        Caps { device: device.check(scope), per_app: per_app.check(&mut scope.at("per_app")), apps }
    }
}

impl RawLimits {
    fn check(self, scope: &mut Scope<'_>) -> Limits {
        let mut cap = |name: &str, usd: Option<f64>| {
            let usd = usd?;
            if !(0.0..=CAP_MAX).contains(&usd) {
                scope.at(name).add(format!("must be US dollars, 0 to {CAP_MAX}"));
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
