//! Calibration of the cascade: the log-probability threshold above which answers of the device are
//! accepted, such that few accepted answers are wrong, with a stated confidence.
//!
//! The thresholds are fixed before the samples are evaluated, and tested from the strictest to the
//! loosest. Each test is a one-sided exact binomial bound on the share of wrong answers among the
//! accepted ones (C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated
//! in the case of the binomial", Biometrika 26, 1934). Testing ends at the first bound above the aim.
//! In a fixed sequence each test may use the whole error probability (A. N. Angelopoulos et al.,
//! "Learn then Test", 2021): with the stated confidence, the resulting threshold keeps the share of
//! wrong answers for prompts of the samples' distribution. The sequence begins at the first threshold
//! that accepts so many answers that two wrong ones would not end it; that condition does not depend
//! on which answers are right.

use crate::limits::CALIBRATION_LINES_MAX;

/// The number of wrong answers that the first threshold of the sequence may accept.
const WRONG_AT_FIRST: usize = 2;
/// The strictest and the loosest threshold, as mean log-probability per token.
const ENDS: [f64; 2] = [-0.001, -10.0];
/// The number of thresholds, both ends included.
const STEPS: u32 = 64;
/// The number of bisection steps of a bound: its error is at most 2^-50.
const HALVINGS: u32 = 50;

/// One answer of the device, labelled as right or wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledAnswer {
    /// The mean log-probability of its tokens; none if the answer is never accepted, because it was
    /// truncated or has the wrong format.
    pub score: Option<f32>,
    /// Whether the answer is right.
    pub right: bool,
}

/// The aim of a calibration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// The largest share of wrong answers among the accepted ones, above 0 and below 1.
    pub wrong_max: f64,
    /// The confidence in that share, above 0 and below 1.
    pub confidence: f64,
}

/// The test of one threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The threshold.
    pub threshold: f32,
    /// The number of accepted answers.
    pub kept: usize,
    /// The number of wrong answers among them.
    pub wrong: usize,
    /// The upper confidence bound on the share of wrong answers among the accepted ones.
    pub bound: f64,
}

/// The result of a calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibratedThreshold {
    /// The tested thresholds, the strictest first; all but the last meet the aim.
    pub tried: Vec<Row>,
    /// The loosest threshold that meets the aim; none if the strictest does not.
    pub best: Option<Row>,
}

/// The error of too few samples for any bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFew {
    /// The number of answers that could be accepted.
    pub usable: usize,
    /// The least number that is needed.
    pub least: usize,
}

/// Tests the thresholds on labelled answers.
///
/// # Errors
/// [`TooFew`] if even the loosest threshold accepts too few answers.
pub fn calibrate(samples: &[LabelledAnswer], aim: Aim) -> Result<CalibratedThreshold, TooFew> {
    let least = least(aim);
    let usable = samples.iter().filter(|sample| sample.score.is_some()).count();
    let mut tried = Vec::new();
    let mut best = None;
    for threshold in thresholds() {
        let keeps = |sample: &&LabelledAnswer| sample.score.is_some_and(|score| score >= threshold);
        let (mut kept, mut wrong) = (0, 0);
        for sample in samples.iter().filter(keeps) {
            kept += 1;
            wrong += usize::from(!sample.right);
        }
        if kept < least {
            continue;
        }
        let row = Row { threshold, kept, wrong, bound: upper(wrong, kept, aim.confidence) };
        tried.push(row);
        if row.bound > aim.wrong_max {
            break;
        }
        best = Some(row);
    }
    if tried.is_empty() {
        Err(TooFew { usable, least })
    } else {
        Ok(CalibratedThreshold { tried, best })
    }
}

/// The thresholds in geometric progression, the strictest first, rounded to four decimal places.
fn thresholds() -> impl Iterator<Item = f32> {
    let ratio = (ENDS[1] / ENDS[0]).powf(1.0 / f64::from(STEPS - 1));
    (0..STEPS).map(move |step| {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to four decimal places")]
        let threshold = (ENDS[0] * ratio.powf(f64::from(step)) * 1e4).round() as f32 / 1e4;
        threshold
    })
}

/// The least number of accepted answers of which two may be wrong; one more than
/// [`CALIBRATION_LINES_MAX`] if no number of samples is enough.
pub fn least(aim: Aim) -> usize {
    let is_enough = |n: &usize| upper(WRONG_AT_FIRST, *n, aim.confidence) <= aim.wrong_max;
    (WRONG_AT_FIRST + 1..=CALIBRATION_LINES_MAX)
        .find(is_enough)
        .unwrap_or(CALIBRATION_LINES_MAX + 1)
}

/// The one-sided upper Clopper-Pearson bound on the share of wrong answers after `wrong` of `n`: the
/// share at which at most `wrong` of `n` have the probability `1 - confidence`.
pub fn upper(wrong: usize, n: usize, confidence: f64) -> f64 {
    if wrong >= n {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if at_most(wrong, n, middle) > 1.0 - confidence {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The binomial distribution function: the probability of at most `k` of `n` events that have the
/// probability `p` each, 0 < p < 1.
#[expect(clippy::cast_precision_loss, reason = "at most ten thousand samples")]
fn at_most(k: usize, n: usize, p: f64) -> f64 {
    let odds = (p / (1.0 - p)).ln();
    let mut term = n as f64 * (-p).ln_1p();
    let mut sum = term.exp();
    for i in 0..k {
        term += ((n - i) as f64 / (i + 1) as f64).ln() + odds;
        sum += term.exp();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const AIM: Aim = Aim { wrong_max: 0.1, confidence: 0.95 };

    fn sample(score: f32, right: bool) -> LabelledAnswer {
        LabelledAnswer { score: Some(score), right }
    }

    #[test]
    fn bounds_agree_with_closed_form_and_scipy() {
        // closed form for no wrong answer: 1 - 0.05^(1/n)
        for n in [10_u16, 29, 59, 299, 10_000] {
            let exact = 1.0 - 0.05_f64.powf(1.0 / f64::from(n));
            assert!((upper(0, n.into(), 0.95) - exact).abs() < 1e-9, "{n}");
        }
        // quantile of the beta distribution, scipy: beta.ppf(0.95, k + 1, n - k)
        for (wrong, n, bound) in [
            (1, 10, 0.394_163_3),
            (2, 61, 0.099_634_9),
            (5, 100, 0.102_253_4),
            (50, 100, 0.586_378_3),
            (99, 100, 0.999_487_2),
            (300, 5000, 0.065_817_6),
        ] {
            let found = upper(wrong, n, 0.95);
            assert!((found - bound).abs() < 5e-7, "{wrong} of {n}: {found}");
        }
        assert!((upper(7, 7, 0.95) - 1.0).abs() < f64::EPSILON);
        assert_eq!(least(AIM), 61);
    }

    #[test]
    fn too_few_samples_are_refused() {
        let mut samples = vec![sample(-0.1, true); 60];
        samples.extend([LabelledAnswer { score: None, right: false }; 100]);
        assert_eq!(calibrate(&samples, AIM), Err(TooFew { usable: 60, least: 61 }));
        assert_eq!(calibrate(&[], AIM), Err(TooFew { usable: 0, least: 61 }));
    }

    #[test]
    fn the_loosest_threshold_that_meets_the_aim_is_best() {
        let mut samples = vec![sample(-0.05, true); 100];
        samples.extend(vec![sample(-0.5, true); 90]);
        samples.extend(vec![sample(-0.5, false); 10]);
        samples.extend(vec![sample(-2.0, false); 50]);
        let found = calibrate(&samples, AIM).unwrap();
        let best = found.best.unwrap();
        assert_eq!((best.kept, best.wrong), (200, 10));
        assert!((-2.0..-0.5).contains(&best.threshold), "{best:?}");
        let last = found.tried.last().unwrap();
        assert_eq!((last.kept, last.wrong), (250, 60));
        assert!(last.bound > AIM.wrong_max);
    }

    #[test]
    fn no_threshold_is_best_after_the_first_that_fails() {
        // answers of high probability are wrong, many of lower probability are right
        let mut samples = vec![sample(-0.01, false); 10];
        samples.extend(vec![sample(-0.01, true); 60]);
        samples.extend(vec![sample(-1.0, true); 900]);
        let found = calibrate(&samples, AIM).unwrap();
        assert_eq!((found.best, found.tried.len()), (None, 1));
    }

    /// If no threshold meets the aim, one is found as often as the error probability allows and
    /// hardly less: the bound is exact, and each test of the sequence uses all of it.
    #[test]
    fn the_error_probability_is_kept() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut found = 0;
        for _ in 0..4000 {
            let answer = |_| sample(-2.0 * random.f32(), random.f64() >= 0.1);
            let samples: Vec<LabelledAnswer> = (0..150).map(answer).collect();
            found += u32::from(calibrate(&samples, AIM).unwrap().best.is_some());
        }
        assert!((100..=210).contains(&found), "{found} of 4000");
    }
}
