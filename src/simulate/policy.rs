//! Offload policies of a simulated day: the scheduler, or one of the simple rules that are common.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::request::job::{JobId, Mode};
use crate::scheduler::decision::{Decision, Pressure, Reason, Route};
use crate::scheduler::{BackendProfile, Effect, Event, JobSpec, Scheduler, Verdict};
use crate::time::Time;

/// The name of this device's engine in every simulation.
pub const HERE: &str = "device";
/// The name of the remote model in every simulation.
pub const AWAY: &str = "cloud";

/// An offload policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// No job is offloaded.
    Never,
    /// Every job is offloaded that may be.
    Always,
    /// Jobs that the engine refuses are offloaded: it holds this many at most.
    OnError(usize),
    /// Jobs that arrive while this many are in the engine are offloaded.
    InFlight(usize),
    /// Jobs that arrive while this many wait are offloaded.
    QueueLength(usize),
    /// Jobs that would be late, predicted at arrival by the mean of their kind, are offloaded; first
    /// come, first served.
    PredictAtArrival,
    /// The scheduler of this crate.
    Ours,
}

/// All policies that are compared.
pub const POLICIES: [Policy; 7] = [
    Policy::Never,
    Policy::Always,
    Policy::OnError(16),
    Policy::InFlight(2),
    Policy::QueueLength(4),
    Policy::PredictAtArrival,
    Policy::Ours,
];

impl Policy {
    /// Its name in tables.
    pub fn name(self) -> String {
        match self {
            Policy::Never => "never".to_owned(),
            Policy::Always => "always".to_owned(),
            Policy::OnError(most) => format!("on error (engine holds {most})"),
            Policy::InFlight(most) => format!("in flight ≥ {most}"),
            Policy::QueueLength(most) => format!("queue ≥ {most}"),
            Policy::PredictAtArrival => "predict at arrival".to_owned(),
            Policy::Ours => "ours".to_owned(),
        }
    }
}

/// A policy at work: handles events as the scheduler does.
pub(super) trait Decider {
    fn handle_event(&mut self, event: Event, now: Time) -> Vec<Effect>;
    fn wake_at(&self, now: Time) -> Option<Time>;
}

impl Decider for Scheduler {
    fn handle_event(&mut self, event: Event, now: Time) -> Vec<Effect> {
        Scheduler::handle_event(self, event, now)
    }

    fn wake_at(&self, now: Time) -> Option<Time> {
        Scheduler::wake_at(self, now)
    }
}

/// The decider of a policy over these two models.
pub(super) fn decider(policy: Policy, profiles: &[BackendProfile; 2]) -> Box<dyn Decider> {
    match policy {
        Policy::Ours => Box::new(Scheduler::new(profiles.to_vec())),
        Policy::Never
        | Policy::Always
        | Policy::OnError(_)
        | Policy::InFlight(_)
        | Policy::QueueLength(_)
        | Policy::PredictAtArrival => Box::new(SimplePolicy {
            policy,
            queue: VecDeque::new(),
            width: profiles[0].batch.width() as usize,
            here: Vec::new(),
            away: BTreeMap::new(),
            means: BTreeMap::new(),
        }),
    }
}

/// A rule at the arrival of each job; first come, first served.
struct SimplePolicy {
    policy: Policy,
    queue: VecDeque<JobSpec>,
    /// Most jobs in the engine at once.
    width: usize,
    here: Vec<(JobSpec, Time)>,
    away: BTreeMap<JobId, JobSpec>,
    /// Mean time in the engine of each kind of job, in milliseconds.
    means: BTreeMap<String, f64>,
}

impl SimplePolicy {
    fn is_offloaded(&self, spec: &JobSpec, now: Time) -> bool {
        if spec.mode == Mode::LocalOnly {
            return false;
        }
        let waiting = self.queue.len();
        let inside = waiting + self.here.len();
        match self.policy {
            Policy::Never | Policy::Ours => false,
            Policy::Always => true,
            Policy::OnError(most) | Policy::InFlight(most) => inside >= most,
            Policy::QueueLength(most) => waiting >= most,
            Policy::PredictAtArrival => {
                let mean = |t: &JobSpec| self.means.get(&t.template).copied().unwrap_or(0.0);
                let left = |(spec, started): &(JobSpec, Time)| {
                    (mean(spec) - now.since(*started).as_secs_f64() * 1e3).max(0.0)
                };
                let inside: f64 = self.here.iter().map(left).sum();
                let before = inside + self.queue.iter().map(mean).sum::<f64>();
                let width = f64::from(u32::try_from(self.width).unwrap_or(u32::MAX));
                before / width + mean(spec) > now.until(spec.due).as_secs_f64() * 1e3
            }
        }
    }

    fn next(&mut self, now: Time) -> Option<Effect> {
        if self.here.len() >= self.width {
            return None;
        }
        let spec = self.queue.pop_front()?;
        let (job, time_left, priority) = (spec.job, now.until(spec.due), spec.priority);
        self.here.push((spec, now));
        Some(Effect::Start { job, backend: HERE.into(), time_left, priority, hold: None })
    }
}

impl Decider for SimplePolicy {
    fn handle_event(&mut self, event: Event, now: Time) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Arrived(spec) if self.is_offloaded(&spec, now) => {
                let (job, time_left) = (spec.job, now.until(spec.due));
                let priority = spec.priority;
                self.away.insert(job, spec);
                effects.push(Effect::Start {
                    job,
                    backend: AWAY.into(),
                    time_left,
                    priority,
                    hold: None,
                });
            }
            Event::Arrived(spec) => self.queue.push_back(spec),
            Event::Ended { job, .. } => {
                if let Some(at) = self.here.iter().position(|(spec, _)| spec.job == job) {
                    let (spec, started) = self.here.remove(at);
                    let ms = now.since(started).as_secs_f64() * 1e3;
                    let mean = self.means.entry(spec.template).or_insert(ms);
                    *mean += (ms - *mean) / 16.0;
                    effects.push(settled(job, Verdict::Done, HERE));
                } else if self.away.remove(&job).is_some() {
                    effects.push(settled(job, Verdict::Done, AWAY));
                }
            }
            Event::Gone(_)
            | Event::Up(..)
            | Event::Down(_)
            | Event::Failed(..)
            | Event::Catalog(_)
            | Event::Revised { .. }
            | Event::Strained(_)
            | Event::Clock(_)
            | Event::Corrected(_)
            | Event::Tick
            | Event::Drain => {}
        }
        for (spec, _) in self.here.extract_if(.., |(spec, _)| spec.due <= now) {
            effects.push(Effect::Stop { job: spec.job });
            effects.push(settled(spec.job, Verdict::Expired, HERE));
        }
        // expired jobs are not served
        self.queue.retain(|spec| {
            let late = spec.due <= now;
            if late {
                effects.push(settled(spec.job, Verdict::Expired, HERE));
            }
            !late
        });
        let late: Vec<JobId> = self.away.values().filter(|t| t.due <= now).map(|t| t.job).collect();
        for job in late {
            self.away.remove(&job);
            effects.push(Effect::Stop { job });
            effects.push(settled(job, Verdict::Expired, AWAY));
        }
        // bounded by the width
        while let Some(start) = self.next(now) {
            effects.push(start);
        }
        effects
    }

    fn wake_at(&self, _now: Time) -> Option<Time> {
        let waiting = self.queue.iter().map(|spec| spec.due);
        let running = self.here.iter().map(|(spec, _)| spec.due);
        waiting.chain(running).chain(self.away.values().map(|spec| spec.due)).min()
    }
}

fn settled(job: JobId, verdict: Verdict, backend: &str) -> Effect {
    let decision = Decision {
        route: if backend == HERE { Route::Local } else { Route::Cloud },
        reason: Reason::Feasible,
        attempts: Vec::new(),
        predicted_ms: None,
        pressure: Pressure::default(),
        strategy: None,
        steps: Vec::new(),
        figures: None,
    };
    Effect::Settle { job, verdict, backend: Some(backend.into()), decision: Box::new(decision) }
}

/// Time of an answer of the remote model with so many tokens: most answers begin within a second,
/// one in twenty takes two or three times as long.
pub(super) fn remote_time(random: &mut fastrand::Rng, tokens: u32) -> Duration {
    let first = 0.6 * (0.5 * super::load::normal(random)).exp();
    Duration::from_secs_f64(first + f64::from(tokens) / 80.0)
}
