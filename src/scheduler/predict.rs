//! Predictor: the time of a job from measured rates, lengths of answers and cached prefixes.
//!
//! Each figure comes at four levels. With `n` tokens of prompt, of which `c` are cached, an answer
//! of `out` tokens, and the rates `Rp` (reading) and `Rd` (writing), a job takes
//! `(n − c) / Rp + d · out / Rd + (1 − d) · out / Rp`, where `d` is the share of the answer's tokens that a model
//! decodes: the format leaves no choice for the others, which are read. At each level all parts are taken at that
//! level.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::{JobSpec, TokenTimes, UNLISTED_APP};
use super::profile::BackendProfile;
use super::service::JobTime;
use super::window::{Window, nearest_rank};
use crate::decision::spread::Spread;
use crate::limits::{CLOUD_TIMES_KEPT, LENGTHS_KEPT, RATES_KEPT, TEMPLATES_MAX};

/// Answers of a template that are needed before their lengths are used.
const LENGTHS_ENOUGH: usize = 8;
/// What a chat template adds to a text, in bytes, before any was measured.
const TEMPLATE_BYTES: f64 = 64.0;
/// How much worse than the worst that was measured the worst may be.
const WORST_MARGIN: f64 = 1.2;
/// How much worse than the probe at start the worst may be, before anything else was measured.
const PROBE_MARGIN: f64 = 2.0;
/// Rates of a model that states none, in milliseconds a token: a slow board.
const READ_MS: f64 = 12.0;
const WRITE_MS: f64 = 80.0;
/// Tokens a byte before any was measured: usual, careful, and what no tokenizer exceeds.
const TOKENS_PER_BYTE: Spread = Spread { p20: 0.2, p50: 0.25, p95: 0.4, worst: 1.0 };
/// Time of a classification or an embedding before any was measured, in milliseconds.
const LABEL_MS: Spread = Spread { p20: 5.0, p50: 50.0, p95: 500.0, worst: 2000.0 };
/// Time to the first token of a remote backend, in tokens: half a second and more at some 80 tokens
/// a second.
const FIRST_TOKENS: f64 = 48.0;
/// Time of a remote answer before any was measured, in milliseconds.
const REMOTE_MS: Spread = Spread { p20: 500.0, p50: 1000.0, p95: 3000.0, worst: 10_000.0 };

/// The quantiles of a window, where more is worse; `first` if it is empty.
fn spread<const N: usize>(window: &Window<N>, first: Spread) -> Spread {
    let at = |share: f64| window.quantile(share);
    match (at(0.2), at(0.5), at(0.95), at(1.0)) {
        (Some(p20), Some(p50), Some(p95), Some(worst)) => {
            Spread { p20, p50, p95, worst: worst * WORST_MARGIN }
        }
        _ => first,
    }
}

/// Measured rates of one backend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rates {
    /// Milliseconds a token that is read.
    read: Window<RATES_KEPT>,
    /// Milliseconds a token that is written.
    write: Window<RATES_KEPT>,
    /// Tokens a byte of prompt, the template counted as [`TEMPLATE_BYTES`].
    density: Window<RATES_KEPT>,
    /// Milliseconds of whole answers.
    whole: Window<CLOUD_TIMES_KEPT>,
    /// Milliseconds a token of whole answers, the first one counted as [`FIRST_TOKENS`].
    each: Window<CLOUD_TIMES_KEPT>,
    /// The quantiles of the windows.
    #[serde(skip)]
    read_ms: Spread,
    #[serde(skip)]
    write_ms: Spread,
    #[serde(skip)]
    e2e_ms: Spread,
    #[serde(skip)]
    each_ms: Spread,
}

/// Load of a job on an engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Load {
    /// Tokens to be read.
    read: Spread,
    /// Tokens to be written.
    write: Spread,
    /// Of these, the share that is decoded, 0 to 1.
    decoded: Spread,
    /// Milliseconds besides.
    fixed: Spread,
}

impl Load {
    /// Tokens of the answer.
    pub(super) fn length(&self) -> Option<&Spread> {
        (self.write.worst > 0.0).then_some(&self.write)
    }

    /// A load with a fixed time, whatever the rates.
    pub(super) fn fixed(fixed: Spread) -> Load {
        Load { fixed, ..Load::default() }
    }
}

impl Rates {
    /// Rates that a model states of itself, before anything was measured.
    pub(super) fn stated(profile: &BackendProfile) -> Rates {
        let mut rates = Rates::default();
        rates.restate(profile);
        rates
    }

    /// Rates of a backend whose answers take this long.
    pub(super) fn answering_in(profile: &BackendProfile, e2e_ms: Spread) -> Rates {
        Rates { e2e_ms, ..Rates::stated(profile) }
    }

    /// Takes the rates that an engine has measured of itself at its start. Measured answers count
    /// more, unless the two differ by more than [`PROBE_MARGIN`]: then the engine runs at another
    /// speed than before, and they are dropped.
    pub(super) fn started(&mut self, profile: &BackendProfile) {
        let far = |window: &Window<RATES_KEPT>, stated: Option<f64>| {
            let ratio = window.quantile(0.5).zip(stated).map(|(seen, stated)| seen / stated);
            ratio.is_some_and(|ratio| !(1.0 / PROBE_MARGIN..=PROBE_MARGIN).contains(&ratio))
        };
        if far(&self.read, profile.read_ms) || far(&self.write, profile.write_ms) {
            self.read.clear();
            self.write.clear();
        }
        self.restate(profile);
    }

    fn restate(&mut self, profile: &BackendProfile) {
        self.e2e_ms = spread(&self.whole, REMOTE_MS);
        self.each_ms = spread(&self.each, REMOTE_MS);
        self.read_ms = spread(&self.read, probed(profile.read_ms, READ_MS));
        self.write_ms = spread(&self.write, probed(profile.write_ms, WRITE_MS));
    }

    /// The worst of [`Rates::time`] alone.
    pub(super) fn worst_ms(&self, load: &Load) -> JobTime<f64> {
        JobTime {
            read: load.read.worst * self.read_ms.worst + load.fixed.worst,
            write: load.write.worst * self.token_ms(load).worst,
        }
    }

    /// How long this takes at full speed.
    pub(super) fn time(&self, load: &Load) -> JobTime {
        let reading = load.read.with(&self.read_ms, |n, ms| n * ms);
        JobTime {
            read: reading.with(&load.fixed, |a, b| a + b),
            write: load.write.with(&self.token_ms(load), |n, ms| n * ms),
        }
    }

    /// Mean time of a token of the answer at full speed, in milliseconds. One that is forced takes no longer than
    /// another.
    fn token_ms(&self, load: &Load) -> Spread {
        let decoded = load.decoded.with(&self.write_ms, |share, ms| share * ms);
        let forced_ms = self.read_ms.with(&self.write_ms, f64::min);
        let forced = load.decoded.with(&forced_ms, |share, ms| (1.0 - share) * ms);
        decoded.with(&forced, |a, b| a + b)
    }

    /// Median time for the prompt of a job at full speed, in milliseconds.
    pub(super) fn reading_ms(&self, load: &Load) -> f64 {
        load.read.p50 * self.read_ms.p50 + load.fixed.p50
    }

    /// Tokens that a job has written after `served` milliseconds of the engine at full speed.
    fn written(&self, load: &Load, served: f64) -> f64 {
        ((served - self.reading_ms(load)) / self.token_ms(load).p50.max(1e-6)).max(0.0)
    }

    /// Predicted length of its whole answer, in tokens.
    pub(super) fn length(
        &self,
        predictor: &Predictor,
        spec: &JobSpec,
        load: &Load,
        served: f64,
    ) -> Option<Spread> {
        let written = self.written(load, served);
        let length = load.length()?;
        Some(if written > 0.0 {
            predictor.rest(spec, load, written).map(|rest| rest + written)
        } else {
            *length
        })
    }

    /// Remaining time of a job after `served` milliseconds of the engine at full speed.
    pub(super) fn rest(
        &self,
        predictor: &Predictor,
        spec: &JobSpec,
        load: &Load,
        served: f64,
    ) -> JobTime {
        let reading = load.read.with(&self.read_ms, |n, ms| n * ms).with(&load.fixed, |a, b| a + b);
        let unread = reading.map(|ms| (ms - served).max(0.0));
        if load.write.worst <= 0.0 {
            return JobTime { read: unread, write: Spread::default() };
        }
        let written = self.written(load, served);
        let writing = if written > 0.0 { predictor.rest(spec, load, written) } else { load.write };
        JobTime { read: unread, write: writing.with(&self.token_ms(load), |n, ms| n * ms) }
    }

    /// Time of a whole answer of that length, in milliseconds, network included.
    pub(super) fn e2e_ms(&self, tokens: Option<&Spread>) -> Spread {
        match tokens {
            Some(tokens) if self.each.len() >= LENGTHS_ENOUGH => {
                self.each_ms.with(tokens, |ms, tokens| ms * (tokens + FIRST_TOKENS))
            }
            Some(_) | None => self.e2e_ms,
        }
    }

    /// Median time of an answer, in milliseconds, if any was measured.
    pub(super) fn usual_ms(&self) -> Option<f64> {
        self.whole.quantile(0.5)
    }

    /// Learns from an answer that took `ms` from start to end.
    pub(super) fn learn(
        &mut self,
        spec: &JobSpec,
        spent: Option<&TokenTimes>,
        ms: f64,
        profile: &BackendProfile,
    ) {
        self.whole.push(ms);
        let Some(spent) = spent else { return self.restate(profile) };
        if spent.completion_tokens > 0 {
            self.each.push(ms / (f64::from(spent.completion_tokens) + FIRST_TOKENS));
        }
        let read = spent.prompt_tokens.saturating_sub(spent.cached_tokens);
        let read = read.saturating_add(spent.forced_tokens);
        if read > 0 && spent.prefill_ms > 0.0 && !spec.is_word {
            self.read.push(spent.prefill_ms / f64::from(read));
        }
        let decoded = spent.completion_tokens.saturating_sub(spent.forced_tokens);
        if decoded > 0 && spent.decode_ms > 0.0 {
            self.write.push(spent.decode_ms / f64::from(decoded));
        }
        if spent.prompt_tokens > 0 && !spec.is_word {
            self.density.push(f64::from(spent.prompt_tokens) / bytes_of(spec));
        }
        self.restate(profile);
    }
}

fn probed(stated: Option<f64>, unknown: f64) -> Spread {
    let ms = stated.unwrap_or(unknown);
    Spread { p20: ms, p50: ms, p95: ms * WORST_MARGIN, worst: ms * PROBE_MARGIN }
}

/// Length of an answer of which only the maximum is known. The low quantile is small on purpose: a
/// job that is offloaded for a guess adds no measurement.
fn unknown_length(most: f64) -> Spread {
    Spread { p20: (most / 8.0).max(1.0), p50: (most / 2.0).max(1.0), p95: most, worst: most }
}

#[expect(clippy::cast_precision_loss, reason = "bounded by the largest prompt")]
fn bytes_of(spec: &JobSpec) -> f64 {
    spec.bytes as f64 + TEMPLATE_BYTES
}

/// Measurements of the answers of one task, or of one application's free prompts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct TemplateStats {
    lengths: Window<LENGTHS_KEPT>,
    cached: Window<RATES_KEPT>,
    /// Of the tokens of a local answer, the share that was decoded.
    decoded: Window<RATES_KEPT>,
    words: Window<RATES_KEPT>,
    used: u64,
}

/// Measurements of all answers, by template.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Predictor {
    templates: BTreeMap<String, TemplateStats>,
    clock: u64,
}

impl Predictor {
    /// The same within its bounds: it may come from a file.
    pub(super) fn checked(mut self) -> Predictor {
        while self.templates.len() > TEMPLATES_MAX {
            self.templates.pop_first();
        }
        let last = self.templates.values().map(|template| template.used).max();
        self.clock = self.clock.max(last.unwrap_or(0)).min(u64::MAX / 2);
        self
    }

    /// Load of a job on a backend.
    pub(super) fn load(&self, spec: &JobSpec, profile: &BackendProfile, rates: &Rates) -> Load {
        let template = self.templates.get(&spec.template);
        if spec.is_word {
            let known = template.map_or(LABEL_MS, |template| spread(&template.words, LABEL_MS));
            return Load::fixed(known);
        }
        let context = f64::from(profile.context_tokens);
        let tokens = spread(&rates.density, TOKENS_PER_BYTE).map(|d| d * bytes_of(spec));
        let tokens = tokens.capped(context);
        let most = f64::from(spec.max_tokens.unwrap_or(profile.max_tokens)).min(context).max(1.0);
        let write = match template {
            Some(t) if t.lengths.len() >= LENGTHS_ENOUGH => {
                let seen = spread(&t.lengths, Spread::all(most));
                Spread { worst: most, ..seen.map(|n| n.clamp(1.0, most)) }
            }
            Some(_) | None => unknown_length(most),
        };
        let shared = |share: f64| {
            template.and_then(|t| t.cached.quantile(share)).unwrap_or(0.0).clamp(0.0, 1.0)
        };
        // the more is cached, the better: the levels run the other way
        let read = Spread {
            p20: tokens.p20 * (1.0 - shared(0.8)),
            p50: tokens.p50 * (1.0 - shared(0.5)),
            p95: tokens.p95 * (1.0 - shared(0.05)),
            worst: tokens.worst,
        };
        let decoded = template.map_or(Spread::all(1.0), |t| spread(&t.decoded, Spread::all(1.0)));
        let decoded = Spread { worst: 1.0, ..decoded };
        Load { read, write, decoded, fixed: Spread::default() }
    }

    /// Tokens left of an answer that has had `written`: the quantiles of the answers that were
    /// longer. One that is longer than all measured ones is taken to go on for a quarter of its
    /// length by the median, and up to its maximum by the 95 % quantile.
    pub(super) fn rest(&self, spec: &JobSpec, load: &Load, written: f64) -> Spread {
        let most = (load.write.worst - written).max(1.0);
        let template = self.templates.get(&spec.template);
        let Some(known) = template.filter(|t| t.lengths.len() >= LENGTHS_ENOUGH) else {
            return unknown_length(most);
        };
        let longer = known.lengths.above(written);
        let left = |share: f64, beyond: f64| {
            let length = nearest_rank(longer, share).map(|length| length - written);
            length.unwrap_or(beyond).clamp(1.0, most)
        };
        let quarter = written / 4.0;
        Spread {
            p20: left(0.2, quarter / 4.0),
            p50: left(0.5, quarter),
            p95: left(0.95, most),
            worst: most,
        }
    }

    /// Learns from an answer. A remote one counts for the length only.
    pub(super) fn learn(&mut self, spec: &JobSpec, spent: &TokenTimes, is_local: bool) {
        let template = self.template(spec);
        if spec.is_word {
            if !is_local {
                return;
            }
            template.words.push(spent.prefill_ms + spent.decode_ms);
            return;
        }
        if spent.completion_tokens > 0 {
            template.lengths.push(f64::from(spent.completion_tokens));
        }
        if is_local && spent.completion_tokens > 0 {
            let forced = f64::from(spent.forced_tokens) / f64::from(spent.completion_tokens);
            template.decoded.push((1.0 - forced).clamp(0.0, 1.0));
        }
        if is_local && spent.prompt_tokens > 0 {
            let share = f64::from(spent.cached_tokens) / f64::from(spent.prompt_tokens);
            template.cached.push(share);
        }
    }

    /// The measurements of such answers; the least recently used template is evicted, first of those of
    /// applications that are not listed, because their names can be invented.
    fn template(&mut self, spec: &JobSpec) -> &mut TemplateStats {
        self.clock += 1;
        if !self.templates.contains_key(&spec.template) && self.templates.len() >= TEMPLATES_MAX {
            let oldest = self
                .templates
                .iter()
                .min_by_key(|(name, t)| (!name.contains(UNLISTED_APP), t.used));
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.templates.remove(&oldest);
            }
        }
        let template = self.templates.entry(spec.template.clone()).or_default();
        template.used = self.clock;
        template
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context::Locality;
    use crate::scheduler::tests::{profile, spec};

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn time_is_prefill_and_decode() {
        let profile = BackendProfile {
            read_ms: Some(10.0),
            write_ms: Some(100.0),
            ..profile("a", Locality::Device)
        };
        let job = JobSpec { bytes: 936, max_tokens: Some(20), ..spec(1) };
        let mut predictor = Predictor::default();
        let mut rates = Rates::stated(&profile);
        let time = |predictor: &Predictor, rates: &Rates| {
            rates.time(&predictor.load(&job, &profile, rates)).whole()
        };
        // 1,000 bytes with the template, a quarter of a token each; half of what the answer may have
        close(time(&predictor, &rates).p50, 250.0 * 10.0 + 10.0 * 100.0);
        close(time(&predictor, &rates).worst, 1000.0 * 20.0 + 20.0 * 200.0);
        let spent = TokenTimes {
            prompt_tokens: 200,
            cached_tokens: 100,
            completion_tokens: 10,
            forced_tokens: 0,
            prefill_ms: 500.0,
            decode_ms: 500.0,
        };
        for _ in 0..LENGTHS_ENOUGH {
            predictor.learn(&job, &spent, true);
            rates.learn(&job, Some(&spent), 1000.0, &profile);
        }
        // half of 200 tokens at 5 ms, 10 tokens at 50 ms
        close(time(&predictor, &rates).p50, 500.0 + 500.0);
        // nothing cached, the longest answer
        close(time(&predictor, &rates).worst, 240.0 * 6.0 + 20.0 * 60.0);
        close(rates.e2e_ms(None).p95, 1000.0);
    }

    #[test]
    fn tokens_without_a_choice_take_the_time_of_reading() {
        let profile = BackendProfile {
            read_ms: Some(10.0),
            write_ms: Some(50.0),
            ..profile("a", Locality::Device)
        };
        let job = JobSpec { bytes: 936, max_tokens: Some(20), ..spec(1) };
        let (mut predictor, mut rates) = (Predictor::default(), Rates::stated(&profile));
        // 6 of 10 tokens in 10 ms each, as the 4 of the prompt, the others in 50
        let spent = TokenTimes {
            prompt_tokens: 4,
            completion_tokens: 10,
            forced_tokens: 6,
            prefill_ms: 100.0,
            decode_ms: 200.0,
            ..TokenTimes::default()
        };
        for _ in 0..LENGTHS_ENOUGH {
            predictor.learn(&job, &spent, true);
            rates.learn(&job, Some(&spent), 1000.0, &profile);
        }
        let load = predictor.load(&job, &profile, &rates);
        close(load.length().unwrap().p50, 10.0);
        close(rates.time(&load).write.p50, 4.0 * 50.0 + 6.0 * 10.0);
        // plain text, which has a choice for each token, and the prompt
        close(rates.write_ms.p50, 50.0);
        close(rates.read_ms.p50, 10.0);
        // all of the longest answer
        close(rates.time(&load).write.worst, 20.0 * 60.0);
        // half of its time is half of its tokens
        close(rates.written(&load, rates.reading_ms(&load) + 130.0), 5.0);
    }

    #[test]
    fn the_least_recently_used_template_is_evicted() {
        let mut predictor = Predictor::default();
        let spent = TokenTimes { completion_tokens: 5, ..TokenTimes::default() };
        for n in 0..=TEMPLATES_MAX {
            let job = JobSpec { template: format!("t{n}"), ..spec(1) };
            predictor.learn(&job, &spent, true);
        }
        assert_eq!(predictor.templates.len(), TEMPLATES_MAX);
        assert!(!predictor.templates.contains_key("t0"));
        // a name that is not listed evicts none that is
        for n in 0..2 * TEMPLATES_MAX {
            let invented = JobSpec { template: format!("text for {UNLISTED_APP}{n}"), ..spec(1) };
            predictor.learn(&invented, &spent, true);
        }
        let kept =
            predictor.templates.keys().filter(|name| name.starts_with('t') && name.len() < 6);
        assert_eq!(kept.count(), TEMPLATES_MAX - 1);
    }
}
