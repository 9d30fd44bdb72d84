//! Bounds of the trial of a changed configuration.

use std::time::Duration;

/// Cases of one golden set. At one second for each on a Raspberry Pi 5 a full set takes 17 minutes.
pub const GOLDEN_CASES_MAX: usize = 1000;
/// Cases that are answered at a time: the engine's slots are filled, and requests of applications are
/// more urgent. Those of a task with labels are answered one after the other: a prompt that is read in
/// other batches has slightly other scores.
pub const GOLDEN_AT_ONCE: usize = 4;
/// Longest time of one case.
pub const GOLDEN_CASE_MAX: Duration = Duration::from_secs(120);
/// Longest time in which a changed model must answer a short prompt.
pub const PROBE_ANSWER_MAX: Duration = Duration::from_secs(60);
/// Tokens of that answer.
pub const PROBE_TOKENS: u32 = 8;
