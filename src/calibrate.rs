//! From which log-probability on an answer of the device is good enough, such that few of the answers
//! that are kept are wrong: with what confidence, is stated and not hoped for.
//!
//! The thresholds are fixed before anything is looked at. They are tried from the strictest to the
//! loosest, each by a one-sided exact binomial bound on the share of wrong answers among those that
//! it keeps (C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in
//! the case of the binomial", Biometrika 26, 1934), and the trying ends at the first whose bound is
//! above the aim. In a fixed sequence each test may use the whole error probability (A. N.
//! Angelopoulos et al., "Learn then Test", 2021): with the stated confidence the threshold that is
//! given keeps its promise for prompts such as the samples. The sequence begins where enough
//! answers are kept that [`SLIPS`] wrong ones do not end it; that looks at no answer's truth.

use crate::limits::CALIBRATION_LINES_MAX;

/// Wrong answers that the first threshold of the sequence may keep.
const SLIPS: usize = 2;
/// The strictest and the loosest threshold, mean log-probabilities of a token.
const ENDS: [f64; 2] = [-0.001, -10.0];
/// How many thresholds there are, the ends included.
const STEPS: u32 = 64;
/// How often the interval of a bound is halved: to 2^-50.
const HALVINGS: u32 = 50;

/// One answer of the device whose truth is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledAnswer {
    /// The mean log-probability of its tokens; none if it would not be kept in any case: cut off,
    /// or of the wrong shape.
    pub score: Option<f32>,
    /// It is right.
    pub right: bool,
}

/// What is to be promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// Largest share of wrong answers among those that are kept, above 0 and below 1.
    pub wrong_max: f64,
    /// How sure that must be, above 0 and below 1.
    pub confidence: f64,
}

/// What a threshold does with the samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// The threshold.
    pub threshold: f32,
    /// Answers that it keeps.
    pub kept: usize,
    /// Of these, wrong ones.
    pub wrong: usize,
    /// With the confidence of the aim, no more than this share of what it keeps is wrong.
    pub bound: f64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct CalibratedThreshold {
    /// Every threshold that was tried, the strictest first; all but the last keep the promise.
    pub tried: Vec<Row>,
    /// The loosest that keeps the promise; none if not even the strictest does.
    pub best: Option<Row>,
}

/// There are too few samples to promise anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFew {
    /// Answers that could be kept.
    pub usable: usize,
    /// How many there must be at least.
    pub least: usize,
}

/// Tries the thresholds.
///
/// # Errors
/// [`TooFew`] if not even the loosest threshold keeps enough answers.
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

/// The thresholds, the strictest first, each a fixed part looser than the one before.
fn thresholds() -> impl Iterator<Item = f32> {
    let ratio = (ENDS[1] / ENDS[0]).powf(1.0 / f64::from(STEPS - 1));
    (0..STEPS).map(move |step| {
        #[expect(clippy::cast_possible_truncation, reason = "four digits are kept")]
        let threshold = (ENDS[0] * ratio.powf(f64::from(step)) * 1e4).round() as f32 / 1e4;
        threshold
    })
}

/// The least number of answers of which [`SLIPS`] may be wrong; one more than samples may be if there
/// is none.
pub fn least(aim: Aim) -> usize {
    let is_enough = |n: &usize| upper(SLIPS, *n, aim.confidence) <= aim.wrong_max;
    (SLIPS + 1..=CALIBRATION_LINES_MAX).find(is_enough).unwrap_or(CALIBRATION_LINES_MAX + 1)
}

/// The one-sided upper Clopper-Pearson bound on a share of which `wrong` of `n` were seen: that share
/// at which as few would be seen with the probability that is left to error.
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

/// The probability of at most `k` of `n`, each with probability `p`, 0 < p < 1.
#[expect(clippy::cast_precision_loss, reason = "samples are counted in thousands")]
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
    fn bounds_are_those_of_the_tables() {
        // without a wrong one: 1 - 0.05^(1/n)
        for n in [10_u16, 29, 59, 299, 10_000] {
            let exact = 1.0 - 0.05_f64.powf(1.0 / f64::from(n));
            assert!((upper(0, n.into(), 0.95) - exact).abs() < 1e-9, "{n}");
        }
        // by the quantile of the beta distribution, scipy: beta.ppf(0.95, k + 1, n - k)
        for (wrong, n, bound) in [
            (1, 10, 0.394_163_3),
            (2, 61, 0.099_634_9),
            (5, 100, 0.102_253_4),
            (50, 100, 0.586_378_3),
            (99, 100, 0.999_487_2),
            (300, 5000, 0.065_817_6),
        ] {
            let told = upper(wrong, n, 0.95);
            assert!((told - bound).abs() < 5e-7, "{wrong} of {n}: {told}");
        }
        assert!((upper(7, 7, 0.95) - 1.0).abs() < f64::EPSILON);
        assert_eq!(least(AIM), 61);
    }

    #[test]
    fn too_few_are_refused() {
        let mut samples = vec![sample(-0.1, true); 60];
        samples.extend([LabelledAnswer { score: None, right: false }; 100]);
        assert_eq!(calibrate(&samples, AIM), Err(TooFew { usable: 60, least: 61 }));
        assert_eq!(calibrate(&[], AIM), Err(TooFew { usable: 0, least: 61 }));
    }

    #[test]
    fn the_loosest_that_keeps_the_promise_is_given() {
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
    fn nothing_is_given_after_the_first_that_fails() {
        // the sure ones are wrong, many later ones right
        let mut samples = vec![sample(-0.01, false); 10];
        samples.extend(vec![sample(-0.01, true); 60]);
        samples.extend(vec![sample(-1.0, true); 900]);
        let found = calibrate(&samples, AIM).unwrap();
        assert_eq!((found.best, found.tried.len()), (None, 1));
    }

    /// If no threshold can keep the promise, one is given no more often than the confidence allows,
    /// and nearly as often: the bound is exact, and each test of the sequence has all of it.
    #[test]
    fn the_promise_holds() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut given = 0;
        for _ in 0..4000 {
            let answer = |_| sample(-2.0 * random.f32(), random.f64() >= 0.1);
            let samples: Vec<LabelledAnswer> = (0..150).map(answer).collect();
            given += u32::from(calibrate(&samples, AIM).unwrap().best.is_some());
        }
        assert!((100..=210).contains(&given), "{given} of 4000");
    }
}
