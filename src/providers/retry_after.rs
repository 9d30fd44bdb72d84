//! The time after which a provider wants to be asked again, from the headers of its response.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::limits::RETRY_AFTER_MAX;

/// Headers of some providers, in milliseconds. They are more exact than `Retry-After`, which comes
/// beside them.
const IN_MILLISECONDS: [&str; 2] = ["retry-after-ms", "x-ms-retry-after-ms"];

/// The wait that the headers state, at most [`RETRY_AFTER_MAX`]: milliseconds, or `Retry-After` (RFC
/// 9110, 10.2.3), seconds or an HTTP date. Seconds may have a fraction, which the RFC lacks.
///
/// `None` for a date that has passed, and for a value that is no time.
pub(super) fn retry_after(headers: &HeaderMap, time: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let exact = IN_MILLISECONDS.iter().find_map(|name| wait_of(text(name)?, 1e-3));
    exact.or_else(|| {
        let value = text(RETRY_AFTER.as_str())?;
        wait_of(value, 1.0).or_else(|| {
            let date = httpdate::parse_http_date(value.trim()).ok()?;
            Some(date.duration_since(time).ok()?.min(RETRY_AFTER_MAX))
        })
    })
}

/// The time of a number in this unit, in seconds; `None` for what is no finite number from 0.
fn wait_of(value: &str, unit_s: f64) -> Option<Duration> {
    let seconds = value.trim().parse::<f64>().ok().filter(|number| number.is_finite())? * unit_s;
    Duration::try_from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The date of the examples in RFC 9110.
    const DATE: &str = "Fri, 31 Dec 1999 23:59:59 GMT";

    fn check(headers: &[(&'static str, &str)], expected_ms: Option<u64>) {
        let time = httpdate::parse_http_date(DATE).unwrap() - Duration::from_secs(90);
        let map = headers.iter().map(|(name, value)| {
            (reqwest::header::HeaderName::from_static(name), value.parse().unwrap())
        });
        let wait = retry_after(&map.collect(), time);
        assert_eq!(wait, expected_ms.map(Duration::from_millis), "{headers:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let most = Some(RETRY_AFTER_MAX.as_secs() * 1000);
        for (value, expected_ms) in [
            ("120", Some(120_000)),
            (" 0 ", Some(0)),
            ("1.5", Some(1500)),
            ("0.25", Some(250)),
            (DATE, Some(90_000)),
            ("18446744073709551615", most),
            ("1e300", most),
            ("Thu, 31 Dec 2099 23:59:59 GMT", most),
            ("Thu, 31 Dec 1998 23:59:59 GMT", None),
            ("-1", None),
            ("-0.5", None),
            ("NaN", None),
            ("inf", None),
            ("1e999", None),
            ("soon", None),
            ("", None),
        ] {
            check(&[("retry-after", value)], expected_ms);
        }
        check(&[], None);
    }

    #[test]
    fn milliseconds_are_taken_before_seconds() {
        check(&[("retry-after", "2"), ("retry-after-ms", "1250")], Some(1250));
        check(&[("retry-after", "2"), ("x-ms-retry-after-ms", "300")], Some(300));
        check(&[("retry-after", "2"), ("retry-after-ms", "-1")], Some(2000));
        check(&[("retry-after-ms", "NaN"), ("x-ms-retry-after-ms", "7")], Some(7));
        check(&[("retry-after-ms", "soon")], None);
        check(&[("retry-after-ms", "1e12")], Some(RETRY_AFTER_MAX.as_secs() * 1000));
    }
}
