//! Several answers at once, with the times of their pieces.

use std::time::Instant;

use futures::future::try_join_all;
use serde_json::Value;

use crate::clock::now;
use crate::limits::benchmark::BENCHMARK_REQUEST_MAX;
use crate::model::generate::{Fault, Generate, Usage};
use crate::model::out::channel;
use crate::request::job::{Job, Mode, Sampling};

/// One answer as its reader saw it.
#[derive(Debug, Clone)]
pub(super) struct TimedAnswer {
    started: Instant,
    /// When each piece with text came; one at least.
    pieces: Vec<Instant>,
    pub(super) usage: Usage,
}

impl TimedAnswer {
    /// Milliseconds until the first piece.
    pub(super) fn first_ms(&self) -> f64 {
        self.pieces[0].duration_since(self.started).as_secs_f64() * 1e3
    }

    /// Tokens of a piece, on average.
    fn piece_tokens(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "pieces of one answer")]
        let pieces = self.pieces.len() as f64;
        f64::from(self.usage.completion_tokens) / pieces
    }

    /// Prompt tokens a second.
    pub(super) fn prefill(&self) -> f64 {
        let read = self.usage.prompt_tokens.saturating_sub(self.usage.cached_tokens);
        f64::from(read) / self.usage.prefill_ms.max(f64::MIN_POSITIVE) * 1e3
    }
}

/// Lets a model answer all these prompts at once. Each has a cache group of its own.
pub(super) async fn answers(
    model: &dyn Generate,
    prompts: &[String],
    tokens: u32,
) -> Result<Vec<TimedAnswer>, Fault> {
    try_join_all(prompts.iter().map(|prompt| answer(model, prompt, tokens))).await
}

async fn answer(model: &dyn Generate, prompt: &str, tokens: u32) -> Result<TimedAnswer, Fault> {
    let sampling = Sampling {
        max_tokens: Some(tokens),
        temperature: Some(0.0),
        seed: Some(0),
        ..Sampling::default()
    };
    let job = Job {
        mode: Mode::LocalOnly,
        cache_group: prompt.to_owned(),
        sampling,
        ..Job::plain(prompt, BENCHMARK_REQUEST_MAX)
    };
    let (out, mut chunks) = channel();
    let started = now();
    let read = async {
        let mut pieces = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            if !chunk.text.is_empty() {
                pieces.push(now());
            }
        }
        pieces
    };
    let (usage, pieces) = tokio::join!(model.generate(&job, out), read);
    let usage = usage?;
    if pieces.is_empty() {
        let text = Value::from(prompt);
        return Err(Fault::ProtocolError(format!("the model has answered {text} with nothing")));
    }
    Ok(TimedAnswer { started, pieces, usage })
}

/// Tokens a second of all answers together while each of them is written: from the first piece of the last one until
/// one of them ends. If they are written one after the other, from the first piece of all to the last. None without
/// any time between pieces.
pub(super) fn tokens_per_s(answers: &[TimedAnswer]) -> Option<f64> {
    let firsts = || answers.iter().map(|answer| answer.pieces[0]);
    let lasts = || answers.iter().filter_map(|answer| answer.pieces.last().copied());
    let together = (firsts().max()?, lasts().min()?);
    let (from, to) =
        if together.0 < together.1 { together } else { (firsts().min()?, lasts().max()?) };
    let time = to.checked_duration_since(from).filter(|time| !time.is_zero())?;
    let written = |answer: &TimedAnswer| {
        let within = answer.pieces.iter().filter(|piece| **piece > from && **piece <= to).count();
        #[expect(clippy::cast_precision_loss, reason = "pieces of one answer")]
        let within = within as f64;
        within * answer.piece_tokens()
    };
    Some(answers.iter().map(written).sum::<f64>() / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An answer whose pieces, of `tokens` each, come after so many milliseconds.
    fn timed(start: Instant, after: &[u64], tokens: u32) -> TimedAnswer {
        let pieces: Vec<_> = after.iter().map(|ms| start + Duration::from_millis(*ms)).collect();
        let completion_tokens = tokens * u32::try_from(pieces.len()).unwrap();
        let usage = Usage { completion_tokens, ..Usage::one_piece("m") };
        TimedAnswer { started: start, pieces, usage }
    }

    #[test]
    fn the_rate_is_that_of_the_time_in_which_all_are_written() {
        let start = now();
        let alone = timed(start, &[100, 200, 300, 400], 1);
        assert!((alone.first_ms() - 100.0).abs() < 1e-9);
        assert!((tokens_per_s(std::slice::from_ref(&alone)).unwrap() - 10.0).abs() < 1e-9);
        // from 200 to 400: three pieces of the other, two of this one
        let other = timed(start, &[200, 300, 350, 400, 900], 2);
        assert!((tokens_per_s(&[alone, other]).unwrap() - 8.0 / 0.2).abs() < 1e-9);
    }

    #[test]
    fn answers_after_each_other_have_the_rate_of_the_whole_time() {
        let start = now();
        let (one, other) = (timed(start, &[10, 20], 1), timed(start, &[30, 40], 1));
        assert!((tokens_per_s(&[one, other]).unwrap() - 3.0 / 0.03).abs() < 1e-9);
        assert_eq!(tokens_per_s(&[timed(start, &[10], 1)]), None);
        assert_eq!(tokens_per_s(&[]), None);
    }

    #[test]
    fn prefill_does_not_count_what_was_cached() {
        let mut answer = timed(now(), &[10], 1);
        answer.usage =
            Usage { prompt_tokens: 110, cached_tokens: 10, prefill_ms: 500.0, ..answer.usage };
        assert!((answer.prefill() - 200.0).abs() < 1e-9);
    }
}
