//! Whole numbers as JSON Schema has them: `16.0` is one.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

/// The largest number below which each whole number has a floating-point value of its own.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads an optional whole number, of at least 0.
///
/// # Errors
/// That the value is no whole number, or too large for its type.
pub fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    deserializer.deserialize_option(WholeVisitor(PhantomData))
}

/// The whole number that a floating-point number is, if it is one of at least 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::float_cmp,
    reason = "it is a whole number, of which each has a value of its own"
)]
pub fn whole_of(number: f64) -> Option<u64> {
    let has_no_fraction = number.trunc() == number;
    let is_exact = (0.0..EXACT_MAX).contains(&number);
    (has_no_fraction && is_exact).then_some(number as u64)
}

struct WholeVisitor<T>(PhantomData<T>);

impl<'de, T: TryFrom<u64>> Visitor<'de> for WholeVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = 8 * size_of::<T>();
        write!(f, "a whole number of at least 0 with at most {bits} bits")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let small = T::try_from(number).ok();
        small.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        match whole_of(number) {
            Some(number) => self.visit_u64(number),
            None => Err(E::invalid_value(Unexpected::Float(number), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Small {
        #[serde(default, deserialize_with = "whole")]
        n: Option<u8>,
    }

    fn read(text: &str) -> Result<Option<u8>, String> {
        serde_json::from_str::<Small>(text).map(|small| small.n).map_err(|e| e.to_string())
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
        for (text, expected) in [
            (r#"{"n": 16}"#, Some(16)),
            (r#"{"n": 16.0}"#, Some(16)),
            (r#"{"n": 1.6e1}"#, Some(16)),
            (r#"{"n": -0.0}"#, Some(0)),
            (r#"{"n": null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_numbers_are_refused() {
        for text in
            [r#"{"n": 16.5}"#, r#"{"n": 256}"#, r#"{"n": -1}"#, r#"{"n": 1e300}"#, r#"{"n": "16"}"#]
        {
            let error = read(text).unwrap_err();
            assert!(error.contains("a whole number of at least 0"), "{text}: {error}");
        }
        assert_eq!(whole_of(f64::NAN), None);
    }
}
