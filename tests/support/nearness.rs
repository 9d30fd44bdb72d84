//! How near the readings of two models are.

use pilotlight::engines::worker::PromptProgress;

/// How near two readings of one text are.
#[derive(Debug)]
pub struct Nearness {
    /// Share of the tokens after which both take the same one for the likeliest.
    pub same_first: f64,
    /// Mean Kullback-Leibler divergence of the second from the first, in nats.
    pub divergence: f64,
    /// The perplexity of the second, over that of the first.
    pub perplexity: f64,
}

/// Compares two readings of one text.
pub fn nearness(one: &PromptProgress, other: &PromptProgress) -> Nearness {
    assert_eq!(one.tokens, other.tokens, "the tokenizers differ");
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    let rows = one.expected.iter().zip(&other.expected);
    let same = rows.clone().filter(|(a, b)| best(a) == best(b)).count();
    let divergence = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a).exp() * f64::from(a - b)).sum()
    };
    let count = one.expected.len() as f64;
    let surprise = |reading: &PromptProgress| -> f64 {
        let next = reading.tokens[1..].iter().zip(&reading.expected);
        -next.map(|(token, row)| f64::from(row[*token as usize])).sum::<f64>() / (count - 1.0)
    };
    Nearness {
        same_first: same as f64 / count,
        divergence: rows.map(|(a, b)| divergence(a, b)).sum::<f64>() / count,
        perplexity: (surprise(other) - surprise(one)).exp(),
    }
}
