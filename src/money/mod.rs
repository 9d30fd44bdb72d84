//! Money: prices of tokens and spending caps, exact to 10⁻¹² US dollars.

pub mod account;

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Datelike};
use serde::{Deserialize, Serialize};

/// An amount of US dollars in units of 10⁻¹² dollars. Sums saturate at [`Usd::MOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(u64);

/// Units of a US dollar.
const UNITS: f64 = 1e12;

impl Usd {
    /// Zero.
    pub const NONE: Usd = Usd(0);
    /// The largest amount: more than any call costs.
    pub const MOST: Usd = Usd(u64::MAX);

    /// The smallest amount that is not less than these dollars; zero for a negative number or NaN.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both saturate")]
    pub fn at_least(dollars: f64) -> Usd {
        // rounded to the nearest unit first: as a binary fraction 0.1 is slightly more than a tenth
        let units = dollars * UNITS;
        let near = units.round();
        Usd(if (near - units).abs() <= 1e-9 * units.abs() { near } else { units.ceil() } as u64)
    }

    /// The amount in dollars, rounded to a binary fraction.
    #[expect(clippy::cast_precision_loss, reason = "for display and statistics")]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / UNITS
    }

    /// Whether the amount is zero.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }

    /// The difference, zero at least.
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

/// The price of one input token and one output token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    input: Usd,
    output: Usd,
}

/// The highest valid price, in US dollars per million tokens. A higher one is taken for a typing
/// mistake.
pub const PRICE_MAX: f64 = 10_000.0;

impl Price {
    /// No charge.
    pub const FREE: Price = Price { input: Usd::NONE, output: Usd::NONE };

    /// The highest valid price: no answer of a server without a configured price has cost more.
    pub fn highest() -> Price {
        Price::of_million(PRICE_MAX, PRICE_MAX).unwrap_or(Price::FREE)
    }

    /// A price in US dollars per million tokens; none outside 0 to 10,000.
    pub fn of_million(input: f64, output: f64) -> Option<Price> {
        let token = |usd: f64| (0.0..=PRICE_MAX).contains(&usd).then(|| Usd::at_least(usd / 1e6));
        Some(Price { input: token(input)?, output: token(output)? })
    }

    /// The cost of a number of input and output tokens.
    pub fn of(&self, input: u32, output: u32) -> Usd {
        let times = |usd: Usd, n: u32| Usd(usd.0.saturating_mul(u64::from(n)));
        times(self.input, input).plus(times(self.output, output))
    }

    /// Whether all tokens are free of charge.
    pub fn is_free(&self) -> bool {
        self.input.is_none() && self.output.is_none()
    }
}

/// The spans that have spending caps.
pub const SPANS: [Span; 3] = [Span::Hour, Span::Day, Span::Month];

/// A calendar span, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Span {
    /// A calendar hour.
    Hour,
    /// A calendar day.
    Day,
    /// A calendar month.
    Month,
}

impl Span {
    /// The name in messages, status and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Span::Hour => "hour",
            Span::Day => "day",
            Span::Month => "month",
        }
    }
}

/// A calendar hour, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Hour {
    /// Hours since 1970-01-01, 00:00 UTC.
    hour: u32,
    /// Months since January of the year 0.
    month: u32,
}

impl Hour {
    /// The hour of this number of seconds since 1970-01-01, 00:00 UTC.
    pub fn at(seconds: u64) -> Hour {
        let date = i64::try_from(seconds).ok().and_then(|s| DateTime::from_timestamp(s, 0));
        let date = date.unwrap_or(DateTime::UNIX_EPOCH);
        let year = u32::try_from(date.year()).unwrap_or(0);
        let hour = u32::try_from(date.timestamp() / 3600).unwrap_or(u32::MAX);
        Hour { hour, month: year * 12 + date.month0() }
    }

    /// The hours from `earlier` to this one; zero if `earlier` is later.
    pub fn hours_after(self, earlier: Hour) -> u32 {
        self.hour.saturating_sub(earlier.hour)
    }

    /// The number of the span of this kind that contains the hour.
    pub fn number(self, span: Span) -> u32 {
        match span {
            Span::Hour => self.hour,
            Span::Day => self.hour / 24,
            Span::Month => self.month,
        }
    }

    /// The hours until the span ends; for a month, until the day ends.
    pub fn left_of(self, span: Span) -> u32 {
        match span {
            Span::Hour => 1,
            Span::Day | Span::Month => 24 - self.hour % 24,
        }
    }
}

/// The spending caps of one spender by span; none is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// The cap of an hour.
    pub hour: Option<Usd>,
    /// The cap of a day.
    pub day: Option<Usd>,
    /// The cap of a month.
    pub month: Option<Usd>,
}

impl Limits {
    /// The cap of this span.
    pub fn of(&self, span: Span) -> Option<Usd> {
        match span {
            Span::Hour => self.hour,
            Span::Day => self.day,
            Span::Month => self.month,
        }
    }

    /// Whether any span has a cap.
    pub fn is_bound(&self) -> bool {
        SPANS.iter().any(|span| self.of(*span).is_some())
    }
}

/// All caps on spending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caps {
    /// The caps on all applications together.
    pub device: Limits,
    /// The caps of each application that is not in `apps`.
    pub per_app: Limits,
    /// The caps of single applications by name.
    pub apps: BTreeMap<String, Limits>,
}

impl Caps {
    /// The caps of this application.
    pub fn of(&self, app: &str) -> &Limits {
        self.apps.get(app).unwrap_or(&self.per_app)
    }

    /// Whether there is any cap.
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
        // 2024-02-29 23:59:59 and the next second
        check(1_709_251_199, 19_782, 2024 * 12 + 1, 1);
        check(1_709_251_200, 19_783, 2024 * 12 + 2, 24);
        assert!(Hour::at(u64::MAX).number(Span::Hour) < u32::MAX);
    }
}
