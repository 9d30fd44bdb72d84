//! Which weights of a model are the best for this machine.

use serde::Serialize;

use super::ModelSpeeds;

/// Share of the time by which other weights must be faster than the original, or than those that lose less: less is
/// the noise of a measurement.
const GAIN_MIN: f64 = 0.03;

/// Measured weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredWeights {
    /// Their format.
    pub weights: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of memory: weights, key-value cache and work space.
    pub memory_bytes: u64,
    /// Mean divergence of the predictions from those of the original, in nats; none if it was not measured, because
    /// they need too much memory.
    pub divergence: Option<f64>,
    /// Seconds of a request, as [`ModelSpeeds::request_s`].
    pub request_s: Option<f64>,
    /// The speeds.
    pub speeds: Option<ModelSpeeds>,
}

/// What the weights must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightsLimits {
    /// Most mean divergence, in nats.
    pub divergence_max: f64,
    /// Most memory, in bytes.
    pub memory_max: u64,
}

impl MeasuredWeights {
    /// Why they may not be chosen; none if they may.
    pub fn excluded(&self, limits: WeightsLimits) -> Option<String> {
        if self.memory_bytes > limits.memory_max {
            let (needed, most) = (self.memory_bytes >> 20, limits.memory_max >> 20);
            return Some(format!("needs {needed} MiB of memory, of at most {most}"));
        }
        match self.divergence {
            Some(divergence) if divergence > limits.divergence_max => {
                Some(format!("loses more than {}", limits.divergence_max))
            }
            None => Some("was not measured".to_owned()),
            Some(_) => None,
        }
    }
}

/// The place of the best weights: the fastest of those that may be chosen, and of those that are nearly as fast the
/// first; the original comes first. None if none may be chosen.
pub fn choose(all: &[MeasuredWeights], limits: WeightsLimits) -> Option<usize> {
    let times = || {
        all.iter().enumerate().filter_map(|(at, one)| {
            let time = one.request_s.filter(|_| one.excluded(limits).is_none())?;
            Some((at, time))
        })
    };
    let best = times().map(|(_, time)| time).reduce(f64::min)?;
    times().find(|(_, time)| *time <= best * (1.0 + GAIN_MIN)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: WeightsLimits = WeightsLimits { divergence_max: 0.05, memory_max: 1 << 30 };

    fn weights(name: &str, request_s: f64, divergence: f64) -> MeasuredWeights {
        MeasuredWeights {
            weights: name.to_owned(),
            file_bytes: 100 << 20,
            memory_bytes: 300 << 20,
            divergence: Some(divergence),
            request_s: Some(request_s),
            speeds: None,
        }
    }

    #[test]
    fn the_fastest_within_the_limits_is_chosen() {
        let original = weights("Q4_1", 2.0, 0.0);
        let eight = weights("Q8_0", 1.5, 0.001);
        let four = weights("Q4_0", 1.0, 0.2);
        let all = [original, eight, four];
        assert_eq!(choose(&all, LIMITS), Some(1));
        assert_eq!(choose(&all, WeightsLimits { divergence_max: 0.5, ..LIMITS }), Some(2));
        assert_eq!(choose(&all, WeightsLimits { divergence_max: 0.0, ..LIMITS }), Some(0));
        assert!(all[2].excluded(LIMITS).unwrap().contains("loses more than 0.05"));
    }

    #[test]
    fn noise_does_not_replace_the_original() {
        let all = [weights("Q8_0", 1.0, 0.0), weights("Q4_0", 0.98, 0.01)];
        assert_eq!(choose(&all, LIMITS), Some(0));
    }

    #[test]
    fn weights_without_room_are_excluded() {
        let large = MeasuredWeights {
            memory_bytes: 2 << 30,
            divergence: None,
            request_s: None,
            ..weights("F16", 0.1, 0.0)
        };
        assert_eq!(large.excluded(LIMITS).unwrap(), "needs 2048 MiB of memory, of at most 1024");
        assert_eq!(choose(&[large.clone(), weights("Q8_0", 1.0, 0.0)], LIMITS), Some(1));
        assert_eq!(choose(&[large], LIMITS), None);
    }
}
