//! Sampler: draws the next token from the logits, for every engine.

use crate::model::context::InferenceSettings;
use crate::request::job::Sampling;

/// Window of the repeat penalty, tokens: the default of llama.cpp.
const PENALTY_WINDOW: usize = 64;

/// The sampling state of one request.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    repeat_penalty: f32,
    recent: Vec<u32>,
    random: fastrand::Rng,
    /// Kept between tokens to avoid an allocation for each.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// The sampling parameters of a request, with the model's defaults. Without a seed the result is
    /// random, unless it must be the same each time.
    pub fn new(asked: &Sampling, defaults: &InferenceSettings) -> Sampler {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a setting is within 0 to 1000"
        )]
        let top_k = asked.top_k.unwrap_or(defaults.top_k.default as u32) as usize;
        let seed = asked.seed.or(asked.deterministic.then_some(0));
        Sampler {
            temperature: asked.temperature.unwrap_or(defaults.temperature.default),
            top_p: asked.top_p.unwrap_or(defaults.top_p.default),
            top_k,
            min_p: asked.min_p.unwrap_or(defaults.min_p.default),
            repeat_penalty: asked.repeat_penalty.unwrap_or(defaults.repeat_penalty.default),
            recent: Vec::with_capacity(PENALTY_WINDOW),
            random: seed
                .map_or_else(fastrand::Rng::new, |seed| fastrand::Rng::with_seed(seed.into())),
            candidates: Vec::new(),
        }
    }

    /// Samples the next token among the `allowed` ones; `None` if no allowed token has a finite logit.
    ///
    /// Tokens that are not allowed are removed before top k, min p and top p.
    pub fn sample(&mut self, logits: &mut [f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        self.penalise(logits);
        let token = if self.temperature <= 0.0 {
            argmax(logits, allowed)
        } else {
            self.draw(logits, allowed)
        }?;
        self.note(token);
        Some(token)
    }

    /// Notes a token of the answer, for the repeat penalty.
    pub fn note(&mut self, token: u32) {
        if self.recent.len() == PENALTY_WINDOW {
            self.recent.remove(0);
        }
        self.recent.push(token);
    }

    /// Repeat penalty: Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    #[expect(clippy::float_cmp, reason = "exactly 1 disables the penalty")]
    fn penalise(&self, logits: &mut [f32]) {
        if self.repeat_penalty == 1.0 {
            return;
        }
        let mut recent = self.recent.clone();
        recent.sort_unstable();
        recent.dedup();
        for token in recent {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / self.repeat_penalty
                } else {
                    *logit * self.repeat_penalty
                };
            }
        }
    }

    /// Top k, softmax with temperature, min p, top p, then a random draw.
    fn draw(&mut self, logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
        let all = logits.iter().enumerate().filter(|(_, logit)| logit.is_finite());
        self.candidates.clear();
        self.candidates
            .extend(all.map(|(id, &logit)| (index(id), logit)).filter(|&(id, _)| allowed(id)));
        let candidates = &mut self.candidates;
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k, by_logit);
            candidates.truncate(self.top_k);
        }
        let most = candidates.iter().map(|c| c.1).max_by(f32::total_cmp)?;
        for (_, logit) in candidates.iter_mut() {
            *logit = ((*logit - most) / self.temperature).exp();
        }
        // the likeliest token has weight 1
        candidates.retain(|c| c.1 >= self.min_p);
        candidates.sort_unstable_by(by_logit);
        let total: f32 = candidates.iter().map(|c| c.1).sum();
        let mut left = self.top_p * total;
        let nucleus = candidates.iter().position(|c| {
            left -= c.1;
            left <= 0.0
        });
        candidates.truncate(nucleus.map_or(candidates.len(), |at| at + 1));
        let total: f32 = candidates.iter().map(|c| c.1).sum();
        let mut point = self.random.f32() * total;
        let drawn = candidates.iter().find(|c| {
            point -= c.1;
            point < 0.0
        });
        drawn.or(candidates.last()).map(|c| c.0)
    }
}

fn argmax(logits: &[f32], allowed: impl Fn(u32) -> bool) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        let better = best.is_none_or(|(_, most)| logit > most);
        if better && logit.is_finite() && allowed(index(id)) {
            best = Some((index(id), logit));
        }
    }
    best.map(|(id, _)| id)
}

/// A vocabulary is far smaller than 2^32.
fn index(id: usize) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(asked: &Sampling) -> Sampler {
        Sampler::new(asked, &InferenceSettings::default())
    }

    fn draws(asked: &Sampling, logits: &[f32], allowed: fn(u32) -> bool) -> Vec<u32> {
        let mut sampler = sampler(asked);
        (0..2000).map(|_| sampler.sample(&mut logits.to_vec(), allowed).unwrap()).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn share(draws: &[u32], token: u32) -> f64 {
        draws.iter().filter(|&&t| t == token).count() as f64 / draws.len() as f64
    }

    #[test]
    fn greedy_sampling_takes_the_likeliest_allowed_token() {
        let mut s = sampler(&Sampling::default());
        assert_eq!(s.sample(&mut [1.0, 3.0, 2.0], |_| true), Some(1));
        assert_eq!(s.sample(&mut [1.0, 3.0, 2.0], |t| t != 1), Some(2));
        assert_eq!(s.sample(&mut [1.0, 3.0, 2.0], |_| false), None);
        assert_eq!(s.sample(&mut [f32::NAN, f32::NEG_INFINITY, -5.0], |_| true), Some(2));
        assert_eq!(s.sample(&mut [], |_| true), None);
    }

    #[test]
    fn a_seed_makes_samples_repeatable() {
        let asked = Sampling { temperature: Some(1.0), seed: Some(7), ..Sampling::default() };
        let logits = [0.1, 0.2, 0.3, 0.4];
        assert_eq!(draws(&asked, &logits, |_| true), draws(&asked, &logits, |_| true));
        let other = Sampling { seed: Some(8), ..asked.clone() };
        assert_ne!(draws(&asked, &logits, |_| true), draws(&other, &logits, |_| true));
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let asked = Sampling { temperature: Some(1.0), seed: Some(1), ..Sampling::default() };
        let drawn = draws(&asked, &[0.0, 1.0, 2.0], |_| true);
        for (token, expected) in [(0, 0.090), (1, 0.245), (2, 0.665)] {
            assert!((share(&drawn, token) - expected).abs() < 0.04, "{token}");
        }
        let hot = Sampling { temperature: Some(2.0), ..asked };
        assert!(share(&draws(&hot, &[0.0, 1.0, 2.0], |_| true), 2) < 0.56);
    }

    #[test]
    fn each_bound_removes_tokens() {
        let base = Sampling { temperature: Some(1.0), seed: Some(1), ..Sampling::default() };
        let logits = [0.0, 1.0, 2.0, 3.0];
        let only = |asked: Sampling, kept: &[u32]| {
            let drawn = draws(&asked, &logits, |_| true);
            for token in 0..4 {
                assert_eq!(drawn.contains(&token), kept.contains(&token), "{asked:?} {token}");
            }
        };
        only(base.clone(), &[0, 1, 2, 3]);
        only(Sampling { top_k: Some(2), ..base.clone() }, &[2, 3]);
        only(Sampling { top_k: Some(1), ..base.clone() }, &[3]);
        only(Sampling { min_p: Some(0.3), ..base.clone() }, &[2, 3]);
        only(Sampling { top_p: Some(0.5), ..base.clone() }, &[3]);
        only(Sampling { top_p: Some(0.7), ..base.clone() }, &[2, 3]);
        // tokens that are not allowed are removed before top k
        let drawn = draws(&Sampling { top_k: Some(1), ..base }, &logits, |t| t < 2);
        assert!(drawn.iter().all(|&t| t == 1));
    }

    #[test]
    fn the_repeat_penalty_makes_repeats_less_likely() {
        let mut s = sampler(&Sampling { repeat_penalty: Some(2.0), ..Sampling::default() });
        assert_eq!(s.sample(&mut [2.9, 3.0, -1.0], |_| true), Some(1));
        assert_eq!(s.sample(&mut [2.9, 3.0, -1.0], |_| true), Some(0));
        assert_eq!(s.sample(&mut [2.9, 3.0, -1.0], |t| t != 0), Some(1));
    }
}
