//! Learned measurements of models and answers, to be kept over a restart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::predict::{Predictor, Rates};
use super::profile::BackendProfile;
use super::{BackendSlot, Scheduler};
use crate::limits::MODELS_LEARNED_MAX;

/// Rates by what they are measured of (see [`BackendProfile::measured`]), and the predictor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    models: BTreeMap<String, Rates>,
    answers: Predictor,
}

impl Learned {
    pub(super) fn put(&mut self, measured: &str, rates: Rates) {
        if self.models.len() >= MODELS_LEARNED_MAX && !self.models.contains_key(measured) {
            self.models.pop_first();
        }
        self.models.insert(measured.to_owned(), rates);
    }
}

impl Scheduler {
    /// A scheduler that goes on with what was learned before.
    pub fn resume(profiles: Vec<BackendProfile>, mut learned: Learned) -> Scheduler {
        let answers = std::mem::take(&mut learned.answers);
        Scheduler { predictor: answers.checked(), learned, ..Scheduler::new(profiles) }
    }

    /// All that was learned until now.
    pub fn learned(&self) -> Learned {
        let mut learned = self.learned.clone();
        learned.answers = self.predictor.clone();
        for backend in &self.backends {
            if let Some(measured) = &backend.profile.measured {
                learned.put(measured, backend.rates.clone());
            }
        }
        learned
    }

    /// Selects the rates of a model that has come up: those that were measured of it as it is now.
    pub(super) fn rates_of(&mut self, backend: usize, profile: &BackendProfile) {
        let BackendSlot { profile: before, rates, .. } = &mut self.backends[backend];
        if before.measured != profile.measured {
            let other = profile.measured.as_ref().and_then(|name| self.learned.models.get(name));
            let other = other.cloned().unwrap_or_else(|| Rates::stated(profile));
            let old = std::mem::replace(rates, other);
            if let Some(measured) = &before.measured {
                self.learned.put(measured, old);
            }
        }
        rates.started(profile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context::Locality;
    use crate::request::job::JobId;
    use crate::scheduler::tests::{profile, spec};
    use crate::scheduler::{Answered, Event, JobSpec, TokenTimes};
    use crate::time::Time;

    const JOBS: u64 = 10;

    fn at(clock: &str) -> BackendProfile {
        BackendProfile {
            measured: Some(format!("weights at {clock}")),
            ..profile("local", Locality::Device)
        }
    }

    /// Goes on with what was learned before.
    fn resumed(learned: Learned) -> Scheduler {
        Scheduler::resume(vec![BackendProfile::unknown("local", Locality::Device)], learned)
    }

    /// A scheduler whose engine has answered some jobs, five times slower than it had stated.
    fn taught(mut scheduler: Scheduler) -> Scheduler {
        scheduler.handle_event(Event::Up(at("full")), Time(0));
        for id in 1..=JOBS {
            let job = JobSpec { due: Time(u64::MAX), max_tokens: Some(50), ..spec(id) };
            scheduler.handle_event(Event::Arrived(job), Time(id * 1_000_000));
            let spent = TokenTimes {
                prompt_tokens: 20,
                completion_tokens: 4,
                prefill_ms: 20.0 * 1.8,
                decode_ms: 4.0 * 18.0,
                ..TokenTimes::default()
            };
            let outcome = Ok(Answered { spent: Some(spent), ..Answered::default() });
            scheduler.handle_event(
                Event::Ended { job: JobId(id), outcome },
                Time(id * 1_000_000 + 500_000),
            );
        }
        scheduler
    }

    /// When the next answer is expected.
    fn expected(mut scheduler: Scheduler, profile: BackendProfile) -> f64 {
        scheduler.handle_event(Event::Up(profile), Time(0));
        let job = JobSpec { due: Time(u64::MAX), max_tokens: Some(50), ..spec(99) };
        scheduler.handle_event(Event::Arrived(job), Time(1));
        let entry = &scheduler.running.get(JobId(99)).unwrap().entry;
        entry.predicted.unwrap().p95
    }

    #[test]
    fn a_restart_forgets_nothing() {
        let before = taught(resumed(Learned::default()));
        let text = serde_json::to_string(&before.learned()).unwrap();
        let after = resumed(serde_json::from_str(&text).unwrap());
        assert_eq!(after.learned().answers, before.learned().answers);
        let (known, unknown) =
            (expected(after, at("full")), expected(resumed(Learned::default()), at("full")));
        assert!((known - expected(before, at("full"))).abs() < 0.2, "{known}");
        assert!(known < unknown / 2.0, "{known} is not far below {unknown}");
    }

    #[test]
    fn another_clock_has_other_rates() {
        let slow = BackendProfile { write_ms: Some(200.0), ..at("low") };
        let learned = taught(resumed(Learned::default())).learned();
        let mut scheduler = resumed(learned);
        scheduler.handle_event(Event::Up(slow), Time(0));
        // 4 tokens are known of the answer, and 200 ms of each, with the margin of a probe
        let worst = scheduler.backends[0].rates.clone();
        assert_eq!(worst, Rates::stated(&BackendProfile { write_ms: Some(200.0), ..at("low") }));
        // and back again
        scheduler.handle_event(Event::Up(at("full")), Time(0));
        let known = taught(resumed(Learned::default()));
        assert_eq!(scheduler.backends[0].rates, known.backends[0].rates);
    }

    #[test]
    fn a_probe_that_is_far_off_is_believed() {
        let learned = taught(resumed(Learned::default())).learned();
        let mut scheduler = resumed(learned);
        let profile = BackendProfile { write_ms: Some(100.0), ..at("full") };
        scheduler.handle_event(Event::Up(profile.clone()), Time(0));
        let fresh = Rates::stated(&profile);
        let load = scheduler.predictor.load(&spec(1), &profile, &fresh);
        let (now, fresh) = (scheduler.backends[0].rates.worst_ms(&load), fresh.worst_ms(&load));
        assert!((now.read - fresh.read).abs() < 1e-6, "{now:?} is not {fresh:?}");
        assert!((now.write - fresh.write).abs() < 1e-6, "{now:?} is not {fresh:?}");
    }

    #[test]
    fn no_more_models_are_kept_than_may_be() {
        let mut learned = Learned::default();
        for n in 0..2 * MODELS_LEARNED_MAX {
            learned.put(&format!("model {n}"), Rates::default());
        }
        assert_eq!(learned.models.len(), MODELS_LEARNED_MAX);
    }
}
