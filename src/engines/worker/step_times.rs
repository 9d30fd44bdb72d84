//! Duration of a step by the tokens that it reads and the answers that it continues, as measured at start.

use crate::model::batch::{BatchRates, READ_SHARE};

/// Durations in milliseconds; those of a running engine are proportional to them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepTimes {
    /// A token of a prompt.
    pub(super) read_ms: f64,
    /// A token of one answer alone.
    pub(super) write_ms: f64,
    pub(super) batch: BatchRates,
}

impl Default for StepTimes {
    fn default() -> StepTimes {
        StepTimes { read_ms: 1.0, write_ms: 1.0, batch: BatchRates::default() }
    }
}

impl StepTimes {
    /// Duration of a step that reads `read` tokens of prompts and continues `write` answers.
    pub(super) fn step_ms(&self, read: usize, write: usize) -> f64 {
        let slow = |answers: u32| if answers == 0 { 0.0 } else { self.batch.slowdown(answers) };
        f64::from(count(read)) * self.read_ms + self.write_ms * slow(count(write))
    }

    /// Tokens of prompts that a step reads beside so many answers: [`READ_SHARE`] of its time, or a part of that, 0 to
    /// 1; at least one.
    pub(super) fn tokens_beside(&self, write: usize, part: f64) -> usize {
        self.tokens_in(part * READ_SHARE / (1.0 - READ_SHARE) * self.step_ms(0, write))
    }

    /// Most tokens of a prompt that is read at once beside so many answers.
    pub(super) fn tokens_at_once(&self, write: usize) -> usize {
        self.tokens_in(self.batch.read_at_once_ms(count(write)))
    }

    /// Tokens of prompts that are read in so many milliseconds; at least one.
    fn tokens_in(&self, ms: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and limited by the decoder's batch"
        )]
        let tokens = (ms / self.read_ms).round() as usize;
        tokens.max(1)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_its_share_of_a_step() {
        let batch = BatchRates::of_steps(&[(1, 20.0), (2, 24.0), (4, 40.0)]);
        let times = StepTimes { read_ms: 2.0, write_ms: 20.0, batch };
        assert!((times.step_ms(5, 0) - 10.0).abs() < 1e-9);
        assert!((times.step_ms(5, 4) - 50.0).abs() < 1e-9);
        // half of the time for the answers, which is a third of the whole
        assert_eq!(times.tokens_beside(1, 1.0), 5);
        assert_eq!(times.tokens_beside(4, 1.0), 10);
        assert_eq!(times.tokens_beside(4, 0.5), 5);
        assert_eq!(times.tokens_at_once(1), 40);
        let slow = StepTimes { read_ms: 500.0, ..times };
        assert_eq!(slow.tokens_beside(4, 1.0), 1);
    }
}
