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
    /// Why they could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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
    /// Weights of which only the size of their file is known.
    pub fn unmeasured(weights: &str, file_bytes: u64) -> MeasuredWeights {
        MeasuredWeights {
            weights: weights.to_owned(),
            file_bytes,
            memory_bytes: file_bytes,
            divergence: None,
            request_s: None,
            speeds: None,
            problem: None,
        }
    }

    /// Why they may not be chosen; none if they may.
    pub fn excluded(&self, limits: WeightsLimits) -> Option<String> {
        if self.memory_bytes > limits.memory_max {
            let (needed, most) = (self.memory_bytes >> 20, limits.memory_max >> 20);
            return Some(format!("needs {needed} MiB of memory, of at most {most}"));
        }
        if let Some(problem) = &self.problem {
            return Some(problem.clone());
        }
        match self.divergence {
            Some(divergence) if divergence <= limits.divergence_max => None,
            // what is no number is too much
            Some(_) => Some(format!("loses more than {}", limits.divergence_max)),
            None => Some("was not measured".to_owned()),
        }
    }
}

/// The place of the best weights: the fastest of those that may be chosen, and of those that are nearly as fast the
/// first; the original comes first. None if none may be chosen.
pub fn choose(all: &[MeasuredWeights], limits: WeightsLimits) -> Option<usize> {
    near_best(all, limits).first().copied()
}

/// The places of the weights that may be chosen and are nearly as fast as the fastest of these. No other one can become
/// the best when more are measured.
pub fn near_best(all: &[MeasuredWeights], limits: WeightsLimits) -> Vec<usize> {
    let times = || {
        all.iter().enumerate().filter_map(|(at, one)| {
            let time = one.request_s.filter(|_| one.excluded(limits).is_none())?;
            Some((at, time))
        })
    };
    let Some(best) = times().map(|(_, time)| time).reduce(f64::min) else { return Vec::new() };
    let near = times().filter(|(_, time)| *time <= best * (1.0 + GAIN_MIN));
    near.map(|(at, _)| at).collect()
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
            problem: None,
        }
    }

    #[test]
    fn what_is_near_the_best_may_become_it() {
        let mut all =
            vec![weights("Q4_1", 1.0, 0.0), weights("Q8_0", 0.9, 0.0), weights("Q6_K", 0.88, 0.0)];
        assert_eq!((choose(&all, LIMITS), near_best(&all, LIMITS)), (Some(1), vec![1, 2]));
        all.push(weights("Q4_K_M", 0.86, 0.0));
        assert_eq!((choose(&all, LIMITS), near_best(&all, LIMITS)), (Some(2), vec![2, 3]));
    }

    #[test]
    fn weights_without_a_number_or_with_a_problem_are_excluded() {
        let broken = MeasuredWeights {
            problem: Some("ended early".to_owned()),
            ..weights("Q4_0", 0.1, 0.0)
        };
        let all = [weights("Q8_0", 1.0, 0.0), weights("Q6_K", 0.2, f64::NAN), broken];
        assert_eq!(choose(&all, LIMITS), Some(0));
        assert_eq!(all[2].excluded(LIMITS).unwrap(), "ended early");
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
