//! The trend of a reading: the Theil–Sen estimator, the median of the slopes between all pairs of
//! readings of the last seconds.
//!
//! The estimator is robust: a single wrong reading hardly moves it (P. K. Sen, "Estimates of the
//! regression coefficient based on Kendall's tau", Journal of the American Statistical Association
//! 63, 1968).

use heapless::{Deque, Vec as Bounded};

use crate::time::Time;

/// The readings that are kept.
const KEPT: usize = 20;
/// The age of the oldest reading, in seconds. A gap of more than a quarter of it discards all
/// readings before the gap.
const SPAN_S: f64 = 20.0;
/// The fewest readings of a trend.
const ENOUGH: usize = 5;
const PAIRS: usize = KEPT * (KEPT - 1) / 2;

/// The last readings of one sensor.
#[derive(Debug, Default)]
pub struct Trend {
    readings: Deque<(Time, f64), KEPT>,
}

impl Trend {
    /// Adds a reading. A clock that went back or jumped discards the readings before it.
    pub fn push(&mut self, now: Time, value: f64) {
        if let Some((last, _)) = self.readings.back()
            && (*last >= now || now.since(*last).as_secs_f64() > SPAN_S / 4.0)
        {
            self.readings.clear();
        }
        let is_old = |(at, _): &(Time, f64)| now.since(*at).as_secs_f64() > SPAN_S;
        while self.readings.is_full() || self.readings.front().is_some_and(is_old) {
            self.readings.pop_front();
        }
        let _ = self.readings.push_back((now, value));
    }

    /// Discards all readings.
    pub fn clear(&mut self) {
        self.readings.clear();
    }

    /// The change per second; 0 with fewer than five readings.
    pub fn slope(&self) -> f64 {
        if self.readings.len() < ENOUGH {
            return 0.0;
        }
        let mut slopes: Bounded<f64, PAIRS> = Bounded::new();
        for (n, (early, low)) in self.readings.iter().enumerate() {
            for (late, high) in self.readings.iter().skip(n + 1) {
                let seconds = late.since(*early).as_secs_f64();
                let _ = slopes.push((high - low) / seconds.max(1e-6));
            }
        }
        slopes.sort_unstable_by(f64::total_cmp);
        slopes[slopes.len() / 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Trend {
        let mut trend = Trend::default();
        for (second, value) in (0..).zip(values) {
            trend.push(Time(second * 1_000_000), *value);
        }
        trend
    }

    #[test]
    fn a_single_wrong_reading_hardly_moves_the_slope() {
        let mut values: Vec<f64> = (0..20).map(|n| 50.0 + 0.5 * f64::from(n)).collect();
        assert!((of(&values).slope() - 0.5).abs() < 1e-9);
        values[10] = 900.0;
        assert!((of(&values).slope() - 0.5).abs() < 0.05);
    }

    #[test]
    fn only_readings_of_the_last_seconds_count() {
        let mut values = vec![20.0; 40];
        values.extend((0..25).map(|n| 20.0 + f64::from(n)));
        assert!((of(&values).slope() - 1.0).abs() < 1e-9);
        assert!(of(&values).readings.len() <= KEPT);
        assert!(of(&[1.0, 2.0, 3.0, 4.0]).slope().abs() < 1e-9, "too few");
    }
}
