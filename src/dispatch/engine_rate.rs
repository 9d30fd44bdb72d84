//! An engine's present token rate relative to its usual one: a sign of heat on boards without a sensor.

use crate::model::generate::Usage;

/// Fewest tokens of an answer from which a rate is measured.
const TOKENS_MIN: u32 = 8;
/// Weights of one answer in the usual rate, up and down: the usual rate follows the best rates at once
/// and falls slowly.
const UP: f64 = 0.2;
const DOWN: f64 = 0.002;
/// Weight of one answer in the present rate.
const PRESENT: f64 = 0.3;
/// Processor pressure, 0 to 1, from which a slow engine is no sign of heat: other programs explain it.
const CONTENDED: f32 = 0.2;

/// The rates of one engine, in tokens a second.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct EngineRate {
    usual: Option<f64>,
    present: f64,
}

impl EngineRate {
    /// Adds an answer that was written under this processor pressure, 0 to 1; returns the present rate relative
    /// to the usual one, if the answer is long enough.
    pub(super) fn beat(&mut self, usage: &Usage, processor: f32) -> Option<f64> {
        if processor >= CONTENDED {
            self.present = self.usual.unwrap_or(self.present);
            return Some(1.0);
        }
        let tokens = usage.completion_tokens.saturating_sub(usage.forced_tokens);
        if tokens < TOKENS_MIN || usage.decode_ms <= 0.0 {
            return None;
        }
        let rate = f64::from(tokens) / usage.decode_ms * 1e3;
        let Some(usual) = self.usual.as_mut() else {
            (self.usual, self.present) = (Some(rate), rate);
            return Some(1.0);
        };
        self.present += (rate - self.present) * PRESENT;
        *usual += (rate - *usual) * if rate > *usual { UP } else { DOWN };
        Some(self.present / *usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tokens: u32, ms: f64) -> Usage {
        Usage { completion_tokens: tokens, decode_ms: ms, ..Usage::one_piece("x") }
    }

    #[test]
    fn a_slower_engine_is_seen_and_a_short_answer_says_nothing() {
        let mut pulse = EngineRate::default();
        assert_eq!(pulse.beat(&answer(2, 1.0), 0.0), None);
        for _ in 0..20 {
            assert!(pulse.beat(&answer(50, 500.0), 0.1).unwrap() > 0.99);
        }
        for _ in 0..20 {
            pulse.beat(&answer(50, 1000.0), 0.1);
        }
        let share = pulse.beat(&answer(50, 1000.0), 0.1).unwrap();
        assert!((0.45..0.6).contains(&share), "{share}");
        // other programs explain a slow engine, and earlier slow answers are forgotten
        assert_eq!(pulse.beat(&answer(50, 2000.0), 0.9), Some(1.0));
        let share = pulse.beat(&answer(50, 500.0), 0.0).unwrap();
        assert!(share > 0.99, "{share}");
    }
}
