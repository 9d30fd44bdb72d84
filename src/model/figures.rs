//! Figures that a backend states of its answer: one that cannot be true is replaced by its bound.
//!
//! A backend may be a neighbour device or a provider and may state anything. Its figures reach the
//! client, the learned rates and the record. The ledger charges at most what was reserved for a call.

use std::time::Duration;

use super::generate::{Fault, Usage};
use crate::limits::{FIGURE_SLACK, KEY_BYTES_MAX, REASON_BYTES_MAX, RETRY_AFTER_MAX};
use crate::money::Price;
use crate::request::refusal::{Refusal, one_line};

/// The bounds of the figures of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FigureBounds {
    /// Most tokens that the prompt has with any tokenizer.
    pub prompt_tokens: u32,
    /// Most tokens that the answer may have.
    pub completion_tokens: u32,
    /// Milliseconds from the start of the attempt to its end.
    pub ms: f64,
    /// The configured price of the server.
    pub price: Price,
}

/// Whether the figures of an answer can be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Credibility {
    /// They are within their bounds, or little beyond them: a gateway may add text of its own to a
    /// prompt, and a provider may count tokens that it does not send.
    #[default]
    Plausible,
    /// One of them is negative, not finite, or beyond twice its bound and [`FIGURE_SLACK`].
    Implausible,
}

/// The figures of an answer that were replaced, by their names in [`Usage`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FigureCheck {
    /// Empty if all were plausible.
    pub replaced: Vec<&'static str>,
}

impl FigureCheck {
    /// Replaces the implausible figures of `usage` by their bounds.
    ///
    /// The cost is that of the tokens at the configured price. A server without a price states what its
    /// own service has paid: it is repeated to the client, and never charged.
    pub fn of(usage: &mut Usage, bounds: &FigureBounds) -> FigureCheck {
        let mut check = FigureCheck::default();
        check.count("prompt_tokens", &mut usage.prompt_tokens, bounds.prompt_tokens);
        check.count("completion_tokens", &mut usage.completion_tokens, bounds.completion_tokens);
        let prompt = usage.prompt_tokens;
        check.count("cached_tokens", &mut usage.cached_tokens, prompt);
        let completion = usage.completion_tokens;
        check.count("forced_tokens", &mut usage.forced_tokens, completion);
        usage.forced_tokens = usage.forced_tokens.min(completion);
        check.real("prefill_ms", &mut usage.prefill_ms, bounds.ms);
        check.real("decode_ms", &mut usage.decode_ms, bounds.ms);
        usage.cached_tokens = usage.cached_tokens.min(prompt);
        let price = if bounds.price.is_free() { Price::highest() } else { bounds.price };
        let most = price.of(beyond(bounds.prompt_tokens), beyond(bounds.completion_tokens));
        if !(0.0..=most.dollars()).contains(&usage.cost_usd) {
            check.note("cost_usd");
            usage.cost_usd = 0.0;
        }
        if !bounds.price.is_free() {
            usage.cost_usd = bounds.price.of(prompt, usage.completion_tokens).dollars();
        }
        for token in &mut usage.logprobs {
            let of_token = std::iter::once(&mut token.token.logprob);
            let others = token.top_logprobs.iter_mut().map(|other| &mut other.logprob);
            for logprob in of_token.chain(token.allowed_logprob.as_mut()).chain(others) {
                *logprob = logprob.clamp(f32::MIN, 0.0);
            }
        }
        if let Some(label) = &mut usage.classification {
            let shares = label.scores.values_mut().chain(std::iter::once(&mut label.confidence));
            for share in shares.filter(|share| !(0.0..=1.0).contains(*share)) {
                *share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
                check.note("confidence");
            }
        }
        usage.model = one_line(&usage.model, KEY_BYTES_MAX);
        check
    }

    fn count(&mut self, name: &'static str, stated: &mut u32, most: u32) {
        if *stated > beyond(most) {
            self.note(name);
            *stated = most;
        }
    }

    fn real(&mut self, name: &'static str, stated: &mut f64, most: f64) {
        if !(0.0..=2.0 * most + f64::from(FIGURE_SLACK)).contains(stated) {
            self.note(name);
            *stated = if *stated > most { most } else { 0.0 };
        }
    }

    fn note(&mut self, name: &'static str) {
        if self.replaced.last() != Some(&name) {
            self.replaced.push(name);
        }
    }

    /// Whether the figures could be true.
    pub fn credibility(&self) -> Credibility {
        if self.replaced.is_empty() { Credibility::Plausible } else { Credibility::Implausible }
    }
}

/// The largest plausible figure with this bound.
fn beyond(most: u32) -> u32 {
    most.saturating_mul(2).saturating_add(FIGURE_SLACK)
}

impl Fault {
    /// The fault with its texts as one line of at most [`REASON_BYTES_MAX`], and its time to retry at most
    /// [`RETRY_AFTER_MAX`]: a remote server may have stated them.
    #[must_use]
    pub fn bounded(self) -> Fault {
        let line = |text: &str| one_line(text, REASON_BYTES_MAX);
        let least = |wait: Option<Duration>| wait.map(|wait| wait.min(RETRY_AFTER_MAX));
        match self {
            Fault::Cancelled => Fault::Cancelled,
            Fault::Rejected(Refusal { code, message, field, retry_after }) => {
                let field = field.map(|field| line(&field));
                let retry_after = least(retry_after);
                Fault::Rejected(Refusal {
                    field,
                    retry_after,
                    ..Refusal::new(code, line(&message))
                })
            }
            Fault::Unavailable { reason, retry_after } => {
                Fault::Unavailable { reason: line(&reason), retry_after: least(retry_after) }
            }
            Fault::Crashed(why) => Fault::Crashed(line(&why)),
            Fault::TimedOut(why) => Fault::TimedOut(line(&why)),
            Fault::ProtocolError(why) => Fault::ProtocolError(line(&why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Usd;
    use crate::request::labels::Classification;
    use crate::request::refusal::Code;

    const BOUNDS: FigureBounds =
        FigureBounds { prompt_tokens: 100, completion_tokens: 20, ms: 500.0, price: FREE };
    const FREE: Price = Price::FREE;

    fn checked(change: impl FnOnce(&mut Usage)) -> (Usage, FigureCheck) {
        let mut usage = Usage {
            prompt_tokens: 50,
            cached_tokens: 10,
            completion_tokens: 20,
            prefill_ms: 100.0,
            decode_ms: 300.0,
            cost_usd: 0.01,
            ..Usage::one_piece("m")
        };
        change(&mut usage);
        let check = FigureCheck::of(&mut usage, &BOUNDS);
        (usage, check)
    }

    #[test]
    fn figures_that_can_be_true_stay() {
        let (before, check) = checked(|_| {});
        assert_eq!(check, FigureCheck::default());
        assert_eq!((before.prompt_tokens, before.decode_ms), (50, 300.0));
        assert!((before.cost_usd - 0.01).abs() < 1e-12);
    }

    #[test]
    fn impossible_figures_are_replaced_and_named() {
        type Change = fn(&mut Usage);
        let cases: [(&str, Change); 11] = [
            ("prompt_tokens", |u| u.prompt_tokens = u32::MAX),
            ("completion_tokens", |u| u.completion_tokens = 1_000_000),
            ("cached_tokens", |u| u.cached_tokens = u32::MAX),
            ("prefill_ms", |u| u.prefill_ms = -1.0),
            ("prefill_ms", |u| u.prefill_ms = f64::NAN),
            ("decode_ms", |u| u.decode_ms = f64::INFINITY),
            ("decode_ms", |u| u.decode_ms = 1e308),
            ("cost_usd", |u| u.cost_usd = 1e9),
            ("cost_usd", |u| u.cost_usd = -0.5),
            ("cost_usd", |u| u.cost_usd = f64::NAN),
            ("confidence", |u| {
                let (label, scores) = ("a".to_owned(), std::collections::BTreeMap::new());
                u.classification = Some(Classification { label, confidence: f32::NAN, scores });
            }),
        ];
        for (name, change) in cases {
            let (usage, check) = checked(change);
            assert_eq!(check.replaced, [name]);
            assert_eq!(check.credibility(), Credibility::Implausible, "{name}");
            assert!(usage.prompt_tokens <= 100 && usage.cached_tokens <= 100, "{usage:?}");
            assert!(usage.completion_tokens <= 20, "{usage:?}");
            assert!((0.0..=500.0).contains(&usage.prefill_ms), "{usage:?}");
            assert!((0.0..=500.0).contains(&usage.decode_ms), "{usage:?}");
            assert!((0.0..=1.2).contains(&usage.cost_usd), "{usage:?}");
            let sure = usage.classification.map_or(0.0, |label| label.confidence);
            assert!((0.0..=1.0).contains(&sure));
        }
    }

    #[test]
    fn a_little_more_is_believed() {
        let (usage, check) = checked(|u| (u.prompt_tokens, u.completion_tokens) = (900, 25));
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (900, 25));
        assert_eq!(check.credibility(), Credibility::Plausible);
    }

    #[test]
    fn the_cost_is_that_of_the_configured_price() {
        let price = Price::of_million(1.0, 2.0).unwrap();
        for stated in [0.0, 1e9, f64::NAN, 1e-9] {
            let mut usage = Usage {
                prompt_tokens: 10,
                completion_tokens: u32::MAX,
                cost_usd: stated,
                ..Usage::one_piece("")
            };
            FigureCheck::of(&mut usage, &FigureBounds { price, ..BOUNDS });
            assert_eq!(Usd::at_least(usage.cost_usd), price.of(10, 20), "{stated}");
        }
    }

    #[test]
    fn stated_reasons_and_times_are_bounded() {
        let (long, year) = ("x\u{1b}[2J".repeat(10_000), Some(Duration::from_secs(31_536_000)));
        let refusal = Refusal::field(Code::Invalid, long.clone(), long.clone());
        for fault in [
            Fault::Rejected(Refusal { retry_after: year, ..refusal }),
            Fault::Unavailable { reason: long.clone(), retry_after: year },
            Fault::Crashed(long.clone()),
            Fault::TimedOut(long.clone()),
            Fault::ProtocolError(long),
        ] {
            let shown = format!("{:?}", fault.bounded());
            assert!(shown.len() < 3 * REASON_BYTES_MAX && !shown.contains("\\u{1b}"), "{shown}");
            assert!(!shown.contains("31536000"), "{shown}");
        }
    }
}
