//! Money: what tokens cost and what may be spent, exact to a millionth of a millionth of a dollar.

pub mod account;

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Datelike};
use serde::{Deserialize, Serialize};

/// An amount of US dollars, counted in units of 10⁻¹² dollars. Sums stop at the largest amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(u64);

/// Units of a US dollar.
const UNITS: f64 = 1e12;

impl Usd {
    /// Nothing.
    pub const NONE: Usd = Usd(0);
    /// More than any call costs.
    pub const MOST: Usd = Usd(u64::MAX);

    /// The least amount that is not below these dollars; what is no amount is nothing.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both saturate")]
    pub fn at_least(dollars: f64) -> Usd {
        // the nearest unit first: 0.1 is a little more than a tenth as a binary fraction
        let units = dollars * UNITS;
        let near = units.round();
        Usd(if (near - units).abs() <= 1e-9 * units.abs() { near } else { units.ceil() } as u64)
    }

    /// The amount in dollars, for people.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / UNITS
    }

    /// Whether it is nothing.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }

    /// What is left without the other, nothing at least.
    #[must_use]
    pub fn minus(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} USD", self.dollars())
    }
}

/// What tokens cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    input: Usd,
    output: Usd,
}

/// Highest price that can be meant, in US dollars a million tokens.
const PRICE_MAX: f64 = 10_000.0;

impl Price {
    /// A price in US dollars a million tokens; none if it can't be meant.
    pub fn of_million(input: f64, output: f64) -> Option<Price> {
        let token = |usd: f64| (0.0..=PRICE_MAX).contains(&usd).then(|| Usd::at_least(usd / 1e6));
        Some(Price { input: token(input)?, output: token(output)? })
    }

    /// The cost of so many tokens.
    pub fn of(&self, input: u32, output: u32) -> Usd {
        let times = |usd: Usd, n: u32| Usd(usd.0.saturating_mul(u64::from(n)));
        times(self.input, input).plus(times(self.output, output))
    }

    /// Whether it costs nothing.
    pub fn is_free(&self) -> bool {
        self.input.is_none() && self.output.is_none()
    }
}

/// The spans that spending is counted for.
pub const SPANS: [Span; 3] = [Span::Hour, Span::Day, Span::Month];

/// A span of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// From minute 0 to 59.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first of a month.
    Month,
}

impl Span {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Span::Hour => "hour",
            Span::Day => "day",
            Span::Month => "month",
        }
    }
}

/// An hour of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Hour {
    /// Hours since 1970-01-01, 00:00 UTC.
    hour: u32,
    /// Months since January of the year 0.
    month: u32,
}

impl Hour {
    /// The hour of this second since 1970 in UTC.
    pub fn at(seconds: u64) -> Hour {
        let date = i64::try_from(seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0));
        let date = date.unwrap_or(DateTime::UNIX_EPOCH);
        let year = u32::try_from(date.year()).unwrap_or(0);
        let hour = u32::try_from(date.timestamp() / 3600).unwrap_or(u32::MAX);
        Hour { hour, month: year * 12 + date.month0() }
    }

    /// Which span of this kind it lies in.
    pub fn number(self, span: Span) -> u32 {
        match span {
            Span::Hour => self.hour,
            Span::Day => self.hour / 24,
            Span::Month => self.month,
        }
    }

    /// Hours until the span ends, a day at most.
    pub fn left_of(self, span: Span) -> u32 {
        match span {
            Span::Hour => 1,
            Span::Day | Span::Month => 24 - self.hour % 24,
        }
    }
}

/// The most that may be spent in a span; none has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// In an hour.
    pub hour: Option<Usd>,
    /// In a day.
    pub day: Option<Usd>,
    /// In a month.
    pub month: Option<Usd>,
}

impl Limits {
    /// The bound of this span.
    pub fn of(&self, span: Span) -> Option<Usd> {
        match span {
            Span::Hour => self.hour,
            Span::Day => self.day,
            Span::Month => self.month,
        }
    }

    /// Whether there is any bound.
    pub fn is_bound(&self) -> bool {
        SPANS.iter().any(|span| self.of(*span).is_some())
    }
}

/// All caps on spending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caps {
    /// For all applications together.
    pub device: Limits,
    /// For each application that has none of its own.
    pub per_app: Limits,
    /// For these applications.
    pub apps: BTreeMap<String, Limits>,
}

impl Caps {
    /// The caps of this application.
    pub fn of(&self, app: &str) -> &Limits {
        self.apps.get(app).unwrap_or(&self.per_app)
    }

    /// Whether there is any.
    pub fn is_bound(&self) -> bool {
        let mut all = self.apps.values().chain([&self.device, &self.per_app]);
        all.any(Limits::is_bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        assert_eq!(Usd::at_least(0.1), Usd(100_000_000_000));
        assert_eq!(Usd::at_least(0.1).plus(Usd::at_least(0.2)), Usd::at_least(0.3));
        assert_eq!(Usd::at_least(f64::NAN), Usd::NONE);
        assert_eq!(Usd::at_least(-1.0), Usd::NONE);
        assert_eq!(Usd::at_least(1e300), Usd::MOST);
        assert_eq!(Usd::MOST.plus(Usd(1)), Usd::MOST);
        let price = Price::of_million(0.15, 0.6).unwrap();
        assert_eq!(price.of(1_000_000, 0), Usd::at_least(0.15));
        assert_eq!(price.of(3, 2), Usd(3 * 150_000 + 2 * 600_000));
        assert_eq!(Price::of_million(-1.0, 0.0), None);
        assert_eq!(Price::of_million(0.0, f64::INFINITY), None);
    }

    #[test]
    fn hours_lie_in_days_and_months() {
        let check = |seconds: u64, day: u32, month: u32, left: u32| {
            let hour = Hour::at(seconds);
            assert_eq!(hour.number(Span::Day), day, "{seconds}");
            assert_eq!(hour.number(Span::Month), month, "{seconds}");
            assert_eq!(hour.left_of(Span::Day), left, "{seconds}");
        };
        check(0, 0, 1970 * 12, 24);
        check(86_399, 0, 1970 * 12, 1);
        check(86_400, 1, 1970 * 12, 24);
        // 2024-02-29 23:59:59 and the second after
        check(1_709_251_199, 19_782, 2024 * 12 + 1, 1);
        check(1_709_251_200, 19_783, 2024 * 12 + 2, 24);
        assert!(Hour::at(u64::MAX).number(Span::Hour) < u32::MAX);
    }
}
