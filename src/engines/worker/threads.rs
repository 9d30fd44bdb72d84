//! How many threads evaluate a step.

/// Gain of twice the threads, in tokens a second, below which they are not used: they heat the device and take
/// time from other programs.
const GAIN_MIN: f64 = 1.15;

/// Threads by the kind of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Threads {
    /// For a step of one token, which is bound by the memory's speed; 0 if they are to be measured.
    pub(crate) one: u32,
    /// For all other steps.
    pub(crate) many: u32,
}

impl Threads {
    /// One thread for all steps.
    pub(super) const SINGLE: Threads = Threads { one: 1, many: 1 };

    /// The numbers of threads to measure a step of one token with, in rising order.
    pub(super) fn candidates(self) -> impl Iterator<Item = u32> {
        let most = self.many.max(1);
        let doubled = std::iter::successors(Some(1), |threads: &u32| threads.checked_mul(2));
        doubled.take_while(move |threads| *threads < most).chain([most])
    }
}

/// The number of threads of a step of one token, by the measured durations of those so far, in rising order of the
/// threads; and whether more may be better.
pub(super) fn best(steps_ms: &[(u32, f64)]) -> (u32, bool) {
    let mut best = None;
    for &(threads, ms) in steps_ms {
        let is_better = best.is_none_or(|(of, best): (u32, f64)| {
            best / ms >= GAIN_MIN.powf((f64::from(threads) / f64::from(of)).log2())
        });
        if !is_better {
            return (best.map_or(1, |(threads, _)| threads), false);
        }
        best = Some((threads, ms));
    }
    (best.map_or(1, |(threads, _)| threads), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_doubled_up_to_all() {
        let all = |many| Threads { one: 0, many }.candidates().collect::<Vec<_>>();
        assert_eq!(all(0), [1]);
        assert_eq!(all(1), [1]);
        assert_eq!(all(2), [1, 2]);
        assert_eq!(all(4), [1, 2, 4]);
        assert_eq!(all(6), [1, 2, 4, 6]);
    }

    #[test]
    fn threads_that_gain_little_are_not_used() {
        assert_eq!(best(&[(1, 20.0)]), (1, true));
        assert_eq!(best(&[(1, 20.0), (2, 12.0)]), (2, true));
        assert_eq!(best(&[(1, 20.0), (2, 18.0)]), (1, false));
        assert_eq!(best(&[(1, 20.0), (2, 12.0), (4, 11.0)]), (2, false));
        // half of a doubling needs less
        assert_eq!(best(&[(1, 20.0), (2, 12.0), (4, 8.0), (6, 7.2)]), (6, true));
    }
}
