//! Bounds of measuring a model.

use std::time::Duration;

/// Rounds of a measurement, besides one that warms up: medians of three are within some percent on an idle board.
pub const BENCHMARK_ROUNDS: usize = 3;
/// Most rounds that a command may ask for.
pub const BENCHMARK_ROUNDS_MAX: usize = 100;
/// Tokens of the long prompt, and most of the context that it takes: one half.
pub const BENCHMARK_PROMPT_TOKENS: u32 = 512;
/// Tokens of an answer, and most of the context that it takes: one eighth.
pub const BENCHMARK_ANSWER_TOKENS: u32 = 64;
/// Longest time of one request: 512 tokens on a Raspberry Pi 3 take minutes.
pub const BENCHMARK_REQUEST_MAX: Duration = Duration::from_secs(1800);
/// Answers at once that are measured, as far as the model has slots.
pub const BENCHMARK_AT_ONCE: [u32; 5] = [1, 2, 4, 8, 16];
/// Fewest tokens of an answer from which a rate is computed.
pub const BENCHMARK_ANSWER_TOKENS_MIN: u32 = 8;
/// Interval in which a sensor of electric power is read.
pub const POWER_INTERVAL: Duration = Duration::from_millis(100);
/// Memory that is read to measure its speed, in bytes: several times the largest cache of a board's processor.
pub const BANDWIDTH_BYTES_MAX: u64 = 256 << 20;
/// Times that it is read; the fastest counts.
pub const BANDWIDTH_ROUNDS: usize = 5;
/// Longest text with which two sets of weights are compared, in bytes.
pub const LOSS_TEXT_BYTES_MAX: u64 = 1 << 20;
/// Memory of the predictions for that text, in bytes: 4 for each token of the text and of the vocabulary.
pub const LOSS_BYTES_MAX: u64 = 192 << 20;
/// Most tokens of that text that are compared; the error of the mean divergence is then about 3 %.
pub const LOSS_TOKENS_MAX: u64 = 1024;
