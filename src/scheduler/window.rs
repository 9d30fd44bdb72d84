//! A sliding window of measurements, with quantiles.

use heapless::{Deque, Vec as Bounded};
use serde::{Deserialize, Serialize};

use crate::limits::PREDICTION_MAX;

/// Largest measurement, in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "an hour")]
const VALUE_MAX: f64 = PREDICTION_MAX.as_millis() as f64;

/// The last `N` measurements, in order of time and of size. It is kept as a list in order of time,
/// to seven digits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<f32>", into = "Vec<f32>")]
pub(super) struct Window<const N: usize> {
    ring: Deque<f64, N>,
    sorted: Bounded<f64, N>,
}

impl<const N: usize> Window<N> {
    /// Adds a measurement and drops the oldest. Negative, infinite and NaN values are ignored.
    pub(super) fn push(&mut self, value: f64) {
        if !(0.0..=VALUE_MAX).contains(&value) {
            return;
        }
        if self.ring.is_full()
            && let Some(oldest) = self.ring.pop_front()
        {
            let at = self.sorted.partition_point(|v| *v < oldest);
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|v| *v < value);
        // there is room for one
        let _ = self.ring.push_back(value);
        let _ = self.sorted.insert(at, value);
    }

    /// Drops all measurements.
    pub(super) fn clear(&mut self) {
        self.ring.clear();
        self.sorted.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The quantile of the measurements for this share, by the nearest rank.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        nearest_rank(&self.sorted, share)
    }

    /// The measurements above a value, in order of size.
    pub(super) fn above(&self, value: f64) -> &[f64] {
        &self.sorted[self.sorted.partition_point(|v| *v <= value)..]
    }
}

impl<const N: usize> From<Vec<f32>> for Window<N> {
    fn from(values: Vec<f32>) -> Window<N> {
        let mut window = Window::default();
        for value in values {
            window.push(value.into());
        }
        window
    }
}

impl<const N: usize> From<Window<N>> for Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are more than was measured")]
    fn from(window: Window<N>) -> Vec<f32> {
        window.ring.iter().map(|value| *value as f32).collect()
    }
}

/// The quantile of sorted values for this share, by the nearest rank.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rank among few"
)]
pub(super) fn nearest_rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_the_oldest_and_ranks_the_rest() {
        let mut window: Window<4> = Window::default();
        assert_eq!(window.quantile(0.5), None);
        for value in [9.0, 1.0, f64::NAN, -1.0, f64::INFINITY, 3.0, 2.0, 4.0] {
            window.push(value);
        }
        // 9 fell out
        assert_eq!(window.len(), 4);
        assert_eq!(window.quantile(0.0), Some(1.0));
        assert_eq!(window.quantile(0.5), Some(2.0));
        assert_eq!(window.quantile(0.51), Some(3.0));
        assert_eq!(window.quantile(1.0), Some(4.0));
    }
}
