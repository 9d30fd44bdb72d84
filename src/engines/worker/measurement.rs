//! The measurement at start: the rates of an engine, its threads, and how many answers it decodes at once.
//!
//! It takes half of a start. The decoder may keep the result for the next start, which compares a few steps with it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::queue::PAUSED;
use super::step_times::StepTimes;
use super::threads::{self, Threads};
use super::{Decoder, PrefixScope, StepPart};
use crate::clock::now;
use crate::model::batch::BatchRates;
use crate::model::generate::Fault;

/// Tokens that the measurement at start evaluates.
struct Probe {
    warm_up: usize,
    prefill: usize,
    decode: usize,
    /// Of each answer of a batch; the first may also allocate.
    batch: usize,
    /// Of one answer, to be compared with an earlier measurement; the first may also allocate.
    again: usize,
}

const PROBE_TOKENS: Probe = Probe { warm_up: 8, prefill: 64, decode: 8, batch: 3, again: 4 };
/// Longest warm-up after which more is measured, for each thread of the engine. The warm-up has one thread.
const PROBE_SLOW: Duration = Duration::from_secs(1);
/// Most threads for which the warm-up may take longer.
const PROBE_THREADS_MAX: u32 = 4;
/// Steps after which a measurement ends that shows no gain.
const PROBE_STEPS_MIN: usize = 2;
/// Shortest duration of a step, ms.
const STEP_MS_MIN: f64 = 1e-3;
/// How many times as long as with one thread a step takes with several where they wait for each other. On an idle
/// machine it takes no longer.
const BUSY: f64 = 1.1;
/// Answers at once that are measured, beside one alone.
const PROBE_WIDTHS: [u32; 3] = [2, 4, 8];
/// Widths in a row without a gain after which no wider one is measured.
const PROBE_WIDTHS_IN_VAIN: u32 = 2;
/// Gain of a wider batch, in tokens a second, below which it is not used: each answer of it is slower.
const GAIN_MIN: f64 = 1.15;

/// How many times as long as before, or the reverse, a step may take for an earlier measurement to hold.
const SAME: f64 = 1.3;

/// The result of a measurement. Durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measurement {
    /// A token of a prompt.
    read_ms: f64,
    /// A step that continues so many answers, in rising order of them, the first of one answer.
    steps_ms: Vec<(u32, f64)>,
    /// Threads of a step that continues one answer.
    threads: u32,
}

impl Measurement {
    #[cfg(test)]
    pub(crate) fn of(read_ms: f64, steps_ms: Vec<(u32, f64)>, threads: u32) -> Measurement {
        Measurement { read_ms, steps_ms, threads }
    }

    /// Whether it can be one of an engine with so many slots, which was given so many threads: it may come from a
    /// damaged file.
    fn is_plausible(&self, slots: u32, threads: u32) -> bool {
        let is_duration = |ms: f64| ms.is_finite() && ms >= STEP_MS_MIN;
        is_duration(self.read_ms)
            && self.steps_ms.iter().all(|&(answers, ms)| answers <= slots && is_duration(ms))
            && !BatchRates::of_steps(&self.steps_ms).is_empty()
            && (1..=threads).contains(&self.threads)
    }
}

impl<D: Decoder> Engine<D> {
    /// Measures prefill and decode rates on a few tokens, fewer on a slow machine, and how many answers are
    /// decoded best at once; takes an earlier measurement if it holds.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn measure_rates(&mut self) -> Result<(), Fault> {
        let token = self.context.tokenizer.vocab_size / 2;
        let given = self.decoder.threads().unwrap_or(Threads::SINGLE);
        let slots = self.context.runtime.slots;
        let most = given.one.max(given.many).max(1);
        let earlier = self.decoder.measured().filter(|known| known.is_plausible(slots, most));
        let measurement = match earlier {
            Some(earlier) if self.holds(&earlier, given, token)? => earlier,
            Some(_) | None => self.measure(given, token)?,
        };
        // beside a busy program it is that of a slower machine
        if !self.contention.is_high() {
            self.decoder.keep_measured(&measurement);
        }
        self.decoder.clear();
        self.adopt(&measurement, given);
        Ok(())
    }

    /// Whether a step of one answer takes as long as at an earlier start.
    fn holds(&mut self, earlier: &Measurement, given: Threads, token: u32) -> Result<bool, Fault> {
        self.set_threads(Threads { one: earlier.threads, ..given });
        let ms = self.time_batch(token, 1, PROBE_TOKENS.again, f64::INFINITY)?;
        let times = earlier.steps_ms.first().map_or(f64::INFINITY, |(_, before)| ms / before);
        Ok((1.0 / SAME..=SAME).contains(&times))
    }

    fn measure(&mut self, given: Threads, token: u32) -> Result<Measurement, Fault> {
        // the first batch also allocates working memory
        self.set_threads(Threads::SINGLE);
        let warm_up = self.time(&[token; PROBE_TOKENS.warm_up])?;
        let is_slow = warm_up > PROBE_SLOW * given.many.clamp(1, PROBE_THREADS_MAX);
        let (threads, one_ms) = self.measure_threads(given, token, is_slow)?;
        let read = if is_slow { PROBE_TOKENS.warm_up } else { PROBE_TOKENS.prefill };
        let read = read.min(self.length() / 2);
        let is_measured = is_slow && self.threads_set == Threads::SINGLE;
        let prefill_time = if is_measured { warm_up } else { self.time(&vec![token; read])? };
        let read_ms = (prefill_time.as_secs_f64() * 1e3 / to_f64(read)).max(STEP_MS_MIN);
        let mut steps_ms = vec![(1, one_ms)];
        let slots = self.context.runtime.slots;
        let mut in_vain = 0;
        for width in PROBE_WIDTHS.into_iter().filter(|n| *n <= slots) {
            let steps = if is_slow { 1 } else { PROBE_TOKENS.batch };
            steps_ms
                .push((width, self.time_batch(token, width, steps, f64::from(width) * one_ms)?));
            let gains = BatchRates::of_steps(&steps_ms).best_width(GAIN_MIN) == width;
            in_vain = if gains { 0 } else { in_vain + 1 };
            if is_slow || in_vain == PROBE_WIDTHS_IN_VAIN {
                break;
            }
        }
        Ok(Measurement { read_ms, steps_ms, threads })
    }

    /// Uses a measurement, and states it in the ModelContext.
    fn adopt(&mut self, measured: &Measurement, given: Threads) {
        let rates = BatchRates::of_steps(&measured.steps_ms);
        let width = rates.best_width(GAIN_MIN);
        self.width = width as usize;
        let write_ms = measured.steps_ms.first().map_or(1.0, |(_, ms)| *ms);
        self.times = StepTimes { read_ms: measured.read_ms, write_ms, batch: rates.clone() };
        let rate = |ms: f64| Some((1e4 / ms).round() / 10.0);
        let runtime = &mut self.context.runtime;
        if self.decoder.threads().is_some() {
            let one = measured.threads;
            self.threads = Threads { one, ..given };
            runtime.decode_threads = (one != given.many).then_some(one);
        }
        runtime.prefill_tokens_per_s = rate(self.times.read_ms);
        runtime.decode_tokens_per_s = rate(write_ms);
        runtime.batch = if width > 1 { rates.up_to(width) } else { BatchRates::default() };
        runtime.slots = runtime.slots.min(width + PAUSED);
    }

    /// Chooses the threads of a step for one answer; with them the duration of such a step, in milliseconds. Where
    /// several threads wait for each other beside other programs, all that follows is measured with one.
    fn measure_threads(
        &mut self,
        given: Threads,
        token: u32,
        is_slow: bool,
    ) -> Result<(u32, f64), Fault> {
        let steps = if is_slow { 1 } else { PROBE_TOKENS.decode };
        let alone_ms = self.time_batch(token, 1, steps, f64::INFINITY)?;
        let mut measured = vec![(1, alone_ms)];
        let more: Vec<u32> = match given.one {
            0 if is_slow => Vec::new(),
            0 => given.candidates().filter(|threads| *threads > 1).collect(),
            1 => Vec::new(),
            fixed => vec![fixed],
        };
        let mut is_busy = false;
        for one in more {
            self.set_threads(Threads { one, ..given });
            let ms = self.time_batch(token, 1, steps, alone_ms)?;
            is_busy = measured.len() == 1 && ms > BUSY * alone_ms;
            if is_busy {
                self.contention.begin(now());
                break;
            }
            measured.push((one, ms));
            if !threads::best(&measured).1 {
                break;
            }
        }
        let one = match given.one {
            // how many are of use is not known; all are used after a while
            0 if is_busy => given.many,
            0 => threads::best(&measured).0,
            fixed => fixed,
        };
        self.threads = Threads { one, ..given };
        self.use_threads(self.contention.is_high());
        let of_one = measured.iter().find(|(threads, _)| *threads == one);
        Ok((one, of_one.map_or(alone_ms, |(_, ms)| *ms)))
    }

    /// Duration of the prefill of these tokens, without cache.
    fn time(&mut self, tokens: &[u32]) -> Result<Duration, Fault> {
        self.decoder.clear();
        let (sequence, _) = self.decoder.reuse(tokens, &PrefixScope::default())?;
        let before = now();
        self.prefill(sequence, tokens, None)?;
        let time = before.elapsed();
        self.decoder.release(sequence);
        Ok(time)
    }

    /// Shortest duration of some steps with so many answers at once, in milliseconds: others were interrupted
    /// by other programs. Ends early if it stays above a limit.
    fn time_batch(
        &mut self,
        token: u32,
        width: u32,
        steps: usize,
        most_ms: f64,
    ) -> Result<f64, Fault> {
        let one = [token];
        let begun = (0..width).map(|_| self.decoder.reuse(&one, &PrefixScope::default()));
        let sequences = begun.collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<StepPart<'_>> =
            sequences.iter().map(|&(sequence, _)| StepPart { sequence, tokens: &one }).collect();
        let mut shortest = f64::INFINITY;
        for done in 0..steps {
            if done >= PROBE_STEPS_MIN && shortest > most_ms {
                break;
            }
            let before = now();
            self.decoder.eval(&parts)?;
            shortest = shortest.min(before.elapsed().as_secs_f64() * 1e3);
        }
        for (sequence, _) in sequences {
            self.decoder.release(sequence);
        }
        Ok(shortest.max(STEP_MS_MIN))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn to_f64(n: usize) -> f64 {
    n as f64
}
