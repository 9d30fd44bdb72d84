//! The last measurements of something, and their quantiles.

use heapless::{Deque, Vec as Bounded};

/// The last `N` measurements, in order of time and of size.
#[derive(Debug, Default)]
pub(super) struct Window<const N: usize> {
    ring: Deque<f64, N>,
    sorted: Bounded<f64, N>,
}

impl<const N: usize> Window<N> {
    /// Takes one in; the oldest falls out. What is no number is not taken.
    pub(super) fn push(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
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

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The value that this share of the measurements does not exceed.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        nearest_rank(&self.sorted, share)
    }

    /// The measurements above a value, in order of size.
    pub(super) fn above(&self, value: f64) -> &[f64] {
        &self.sorted[self.sorted.partition_point(|v| *v <= value)..]
    }
}

/// The value that this share of sorted ones does not exceed.
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
