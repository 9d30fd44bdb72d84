//! Points in time of signed files: whole seconds in UTC, in one spelling of RFC 3339.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

/// A point in time: seconds since 1970-01-01, 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(pub u64);

/// The last second of the year 9999, the last one that RFC 3339 can write.
const LAST: u64 = 253_402_300_799;

impl Moment {
    /// The time from `earlier` to this point; zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// This point and a time after it.
    #[must_use]
    pub fn after(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time.as_secs()).min(LAST))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0.min(LAST)).unwrap_or_default();
        let date = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        f.write_str(&date.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

impl TryFrom<String> for Moment {
    type Error = String;

    fn try_from(text: String) -> Result<Moment, String> {
        let date = DateTime::parse_from_rfc3339(&text).ok();
        let seconds = date.and_then(|date| u64::try_from(date.timestamp()).ok());
        // one spelling: no offset, no fraction, no lower case, no leap second
        let moment = seconds.map(Moment).filter(|moment| moment.to_string() == text);
        moment.ok_or_else(|| {
            "must be a time of RFC 3339 in UTC and whole seconds, such as 2026-11-27T02:00:00Z"
                .to_owned()
        })
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> String {
        moment.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_one_spelling() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-27T02:00:00Z", 1_795_744_800),
            ("2024-02-29T23:59:59Z", 1_709_251_199),
            ("9999-12-31T23:59:59Z", LAST),
        ] {
            assert_eq!(Moment::try_from(text.to_owned()), Ok(Moment(seconds)), "{text}");
            assert_eq!(Moment(seconds).to_string(), text);
        }
        for wrong in [
            "",
            "2026-11-27",
            "2026-11-27T02:00:00",
            "2026-11-27T02:00:00z",
            "2026-11-27t02:00:00Z",
            "2026-11-27 02:00:00Z",
            "2026-11-27T02:00:00.0Z",
            "2026-11-27T02:00:00+00:00",
            "2026-11-27T04:00:00+02:00",
            "2026-11-27T02:00:60Z",
            "2026-02-29T02:00:00Z",
            "2026-11-27T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "+12026-11-27T02:00:00Z",
            " 2026-11-27T02:00:00Z",
            "1795744800",
        ] {
            assert!(Moment::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert_eq!(Moment(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }
}
