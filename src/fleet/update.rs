//! The way of an update as a state machine: an event and the time in, effects out. It reads no clock and
//! no file; whoever drives it carries out the effects and reports how they ended.
//!
//! ```text
//! Idle ── verified ── staged ── trial ── kept
//!             │                   └───── rolled-back
//!             └── refused
//! ```
//!
//! `Idle` is any state in which nothing is in progress: the last update may have been kept, rolled back
//! or refused. Before a trial its number of tries is lowered on disk, so that a configuration with which
//! the service crashes is tried [`TRIES_MAX`](crate::limits::fleet::TRIES_MAX) times at most.

mod events;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::events::{ConfigPlace, GoldenResult, UpdateEffect, UpdateEvent, UpdateStep};
use super::refusal::UpdateRefusal;
use crate::limits::fleet::{PROBE_MAX, TRIAL_JOBS, TRIAL_MAX};
use crate::time::Time;

/// Why a configuration was rolled back that nothing has failed with.
pub const TAKEN_BACK: &str = "the operator has taken it back";

/// The state of the last update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateState {
    /// There was none.
    #[default]
    Idle,
    /// Its signature and envelope are accepted; its configuration is fetched or checked.
    Verified,
    /// Its configuration is accepted and on disk.
    Staged,
    /// It runs, and counts if it passes its trial.
    Trial,
    /// It counts.
    Kept,
    /// It ran and failed, or the operator has taken it back.
    RolledBack,
    /// It was never run.
    Refused,
}

impl UpdateState {
    /// Whether an update is being checked or tried.
    pub const fn is_in_progress(self) -> bool {
        match self {
            UpdateState::Verified | UpdateState::Staged | UpdateState::Trial => true,
            UpdateState::Idle
            | UpdateState::Kept
            | UpdateState::RolledBack
            | UpdateState::Refused => false,
        }
    }

    /// The name that is reported.
    pub const fn name(self) -> &'static str {
        match self {
            UpdateState::Idle => "idle",
            UpdateState::Verified => "verified",
            UpdateState::Staged => "staged",
            UpdateState::Trial => "trial",
            UpdateState::Kept => "kept",
            UpdateState::RolledBack => "rolled-back",
            UpdateState::Refused => "refused",
        }
    }
}

/// The reported state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpdateReport<'m> {
    /// The state.
    pub state: UpdateState,
    /// The version of the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The code of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Why it was refused or rolled back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'m str>,
}

/// The last part of a trial: requests of applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrialBounds {
    /// Good jobs after which the configuration is kept.
    pub good_jobs: u32,
    /// The time after which it is kept if there were fewer jobs and none was bad.
    pub time: Duration,
}

impl Default for TrialBounds {
    fn default() -> TrialBounds {
        TrialBounds { good_jobs: TRIAL_JOBS, time: TRIAL_MAX }
    }
}

/// The part of a trial that is running, and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrialPart {
    Switch { until: Time },
    Probe { until: Time },
    Golden { until: Time },
    Jobs { good: u32, until: Time },
    Keep,
}

/// The state machine.
#[derive(Debug, Clone, Default)]
pub struct UpdateMachine {
    state: UpdateState,
    version: Option<u64>,
    trial: Option<TrialPart>,
    code: Option<&'static str>,
    reason: Option<String>,
    /// Models are being downloaded.
    is_pulling: bool,
    bounds: TrialBounds,
}

impl UpdateMachine {
    /// Other bounds of trials from now on.
    pub fn set_bounds(&mut self, bounds: TrialBounds) {
        self.bounds = bounds;
    }

    /// Takes an event and returns what has to be done, in this order. An event that does not fit the
    /// state has no effect.
    pub fn handle(&mut self, event: UpdateEvent, now: Time) -> Vec<UpdateEffect> {
        match (self.state, event) {
            (UpdateState::Idle, UpdateEvent::Found { version, tries_left }) => {
                self.found(version, tries_left)
            }
            (state, UpdateEvent::Verified { version, place })
                if self.is_idle() || state == UpdateState::Verified =>
            {
                let end = self.ends_pull();
                self.enter(UpdateState::Verified, Some(version));
                let next = match place {
                    ConfigPlace::Inline => UpdateEffect::Check,
                    ConfigPlace::Remote => UpdateEffect::Fetch,
                };
                end.into_iter().chain([UpdateEffect::Report, next]).collect()
            }
            (state, UpdateEvent::Refused { version, refusal })
                // another message does not end what is in progress
                if self.is_idle()
                    || (state == UpdateState::Verified && version == self.version) =>
            {
                self.refused(version, &refusal)
            }
            (UpdateState::Verified, UpdateEvent::Accepted) => {
                self.is_pulling = true;
                vec![UpdateEffect::Pull]
            }
            (UpdateState::Staged, UpdateEvent::TryBegun { .. }) => {
                self.enter(UpdateState::Trial, self.version);
                self.trial = Some(TrialPart::Switch { until: now + PROBE_MAX });
                vec![UpdateEffect::Report, UpdateEffect::Switch]
            }
            (_, UpdateEvent::Done(step, Ok(()))) => self.done(step, now),
            (_, UpdateEvent::Done(step, Err(why))) => self.failed(step, why),
            (UpdateState::Trial, UpdateEvent::Golden(results)) => self.golden(&results, now),
            (UpdateState::Trial, UpdateEvent::GoodJob) => self.good_job(),
            (UpdateState::Trial, UpdateEvent::Failed(why)) => self.drop_trial(why),
            (UpdateState::Trial, UpdateEvent::Tick) => self.tick(now),
            (_, UpdateEvent::RollBack { steps_down }) if self.is_idle() => {
                vec![UpdateEffect::RollBack { steps_down }]
            }
            (UpdateState::Trial | UpdateState::Staged, UpdateEvent::RollBack { .. }) => {
                self.drop_trial(TAKEN_BACK.to_owned())
            }
            (UpdateState::Verified, UpdateEvent::RollBack { .. }) => {
                let end = self.ends_pull();
                self.enter(UpdateState::RolledBack, self.version);
                self.reason = Some(TAKEN_BACK.to_owned());
                end.into_iter().chain([UpdateEffect::Report]).collect()
            }
            (_, _) => Vec::new(),
        }
    }

    /// The time at which [`UpdateEvent::Tick`] is due.
    pub fn wake_at(&self) -> Option<Time> {
        match self.trial? {
            TrialPart::Switch { until }
            | TrialPart::Probe { until }
            | TrialPart::Golden { until }
            | TrialPart::Jobs { until, .. } => Some(until),
            TrialPart::Keep => None,
        }
    }

    /// Takes up what became of the last update before a restart of the service: it was rolled back.
    pub fn restore(&mut self, version: u64, reason: Option<String>) {
        self.enter(UpdateState::RolledBack, Some(version));
        self.reason = reason;
    }

    /// What is reported.
    pub fn report(&self) -> UpdateReport<'_> {
        UpdateReport {
            state: self.state,
            version: self.version,
            code: self.code,
            reason: self.reason.as_deref(),
        }
    }

    /// Whether no update is in progress.
    pub fn is_idle(&self) -> bool {
        !self.state.is_in_progress()
    }

    /// The effect that ends the downloads, if there are some.
    fn ends_pull(&mut self) -> Option<UpdateEffect> {
        std::mem::take(&mut self.is_pulling).then_some(UpdateEffect::EndPull)
    }

    fn enter(&mut self, state: UpdateState, version: Option<u64>) {
        let bounds = self.bounds;
        *self = UpdateMachine { state, version, bounds, ..UpdateMachine::default() };
    }

    fn found(&mut self, version: u64, tries_left: u8) -> Vec<UpdateEffect> {
        self.enter(UpdateState::Staged, Some(version));
        if tries_left > 0 {
            return vec![UpdateEffect::Report, UpdateEffect::BeginTry];
        }
        let why = "the service ended during each of its trials".to_owned();
        self.enter(UpdateState::RolledBack, Some(version));
        self.reason = Some(why.clone());
        vec![UpdateEffect::Drop { why }, UpdateEffect::Report]
    }

    fn refused(&mut self, version: Option<u64>, refusal: &UpdateRefusal) -> Vec<UpdateEffect> {
        // a retained message is delivered at each connection: what it led to stays
        let is_known = match refusal {
            UpdateRefusal::Replayed(_) | UpdateRefusal::Busy { .. } => true,
            UpdateRefusal::OldVersion { version, floor } => version == floor,
            UpdateRefusal::TooLarge { .. }
            | UpdateRefusal::NoPolicy(_)
            | UpdateRefusal::MalformedSignature(_)
            | UpdateRefusal::LegacySignature
            | UpdateRefusal::UnknownKey(_)
            | UpdateRefusal::WrongSignature(_)
            | UpdateRefusal::Malformed(_)
            | UpdateRefusal::NotAuthorised { .. }
            | UpdateRefusal::WrongTarget { .. }
            | UpdateRefusal::FloorMissing { .. }
            | UpdateRefusal::Expired { .. }
            | UpdateRefusal::NotYetValid { .. }
            | UpdateRefusal::WrongBase { .. }
            | UpdateRefusal::WrongContent(_)
            | UpdateRefusal::BadConfig(_)
            | UpdateRefusal::Forbidden(_) => false,
        };
        if is_known && self.is_idle() {
            return Vec::new();
        }
        self.enter(UpdateState::Refused, version);
        self.code = Some(refusal.code());
        self.reason = Some(refusal.to_string());
        vec![UpdateEffect::Report]
    }

    fn done(&mut self, step: UpdateStep, now: Time) -> Vec<UpdateEffect> {
        match (self.state, step, self.trial) {
            (UpdateState::Verified, UpdateStep::Fetch, _) => vec![UpdateEffect::Check],
            (UpdateState::Verified, UpdateStep::Pull, _) if self.is_pulling => {
                self.is_pulling = false;
                vec![UpdateEffect::Stage]
            }
            (UpdateState::Verified, UpdateStep::Stage, _) => {
                self.enter(UpdateState::Staged, self.version);
                vec![UpdateEffect::Report, UpdateEffect::BeginTry]
            }
            (UpdateState::Trial, UpdateStep::Switch, Some(TrialPart::Switch { .. })) => {
                self.trial = Some(TrialPart::Probe { until: now + PROBE_MAX });
                vec![UpdateEffect::Probe]
            }
            (UpdateState::Trial, UpdateStep::Probe, Some(TrialPart::Probe { .. })) => {
                self.trial = Some(TrialPart::Golden { until: now + PROBE_MAX });
                vec![UpdateEffect::RunGolden]
            }
            (UpdateState::Trial, UpdateStep::Keep, Some(TrialPart::Keep)) => {
                self.enter(UpdateState::Kept, self.version);
                vec![UpdateEffect::Report]
            }
            (_, UpdateStep::RollBack, _) if self.is_idle() => {
                self.enter(UpdateState::RolledBack, self.version);
                self.reason = Some(TAKEN_BACK.to_owned());
                vec![UpdateEffect::Report]
            }
            (_, _, _) => Vec::new(),
        }
    }

    fn failed(&mut self, step: UpdateStep, why: String) -> Vec<UpdateEffect> {
        match (self.state, step) {
            (UpdateState::Verified, UpdateStep::Fetch | UpdateStep::Pull | UpdateStep::Stage) => {
                let code = if step == UpdateStep::Fetch {
                    "not-fetched"
                } else if step == UpdateStep::Pull {
                    "not-pulled"
                } else {
                    "not-stored"
                };
                self.enter(UpdateState::Refused, self.version);
                (self.code, self.reason) = (Some(code), Some(why));
                vec![UpdateEffect::Report]
            }
            (UpdateState::Staged, UpdateStep::BeginTry)
            | (UpdateState::Trial, UpdateStep::Switch | UpdateStep::Probe | UpdateStep::Keep) => {
                self.drop_trial(why)
            }
            (_, _) => Vec::new(),
        }
    }

    fn golden(&mut self, results: &[GoldenResult], now: Time) -> Vec<UpdateEffect> {
        if !matches!(self.trial, Some(TrialPart::Golden { .. })) {
            return Vec::new();
        }
        if let Some(GoldenResult { task, cases, before, after, .. }) =
            results.iter().find(|result| result.is_worse())
        {
            let why = format!(
                "task {task}: {after} of {cases} cases of its golden set right, {before} before"
            );
            return self.drop_trial(why);
        }
        self.trial = Some(TrialPart::Jobs { good: 0, until: now + self.bounds.time });
        vec![UpdateEffect::Adopt]
    }

    fn good_job(&mut self) -> Vec<UpdateEffect> {
        let Some(TrialPart::Jobs { good, .. }) = &mut self.trial else { return Vec::new() };
        *good += 1;
        if *good < self.bounds.good_jobs { Vec::new() } else { self.keep() }
    }

    fn tick(&mut self, now: Time) -> Vec<UpdateEffect> {
        if self.wake_at().is_none_or(|at| now < at) {
            return Vec::new();
        }
        let seconds = PROBE_MAX.as_secs();
        match self.trial {
            Some(TrialPart::Jobs { .. }) => self.keep(),
            Some(TrialPart::Switch { .. }) => {
                self.drop_trial(format!("it did not start within {seconds} s"))
            }
            Some(TrialPart::Probe { .. }) => {
                self.drop_trial(format!("its models did not answer within {seconds} s"))
            }
            Some(TrialPart::Golden { .. }) => {
                self.drop_trial(format!("its golden sets were not answered within {seconds} s"))
            }
            Some(TrialPart::Keep) | None => Vec::new(),
        }
    }

    fn keep(&mut self) -> Vec<UpdateEffect> {
        self.trial = Some(TrialPart::Keep);
        vec![UpdateEffect::Keep]
    }

    fn drop_trial(&mut self, why: String) -> Vec<UpdateEffect> {
        let was_running = self.state == UpdateState::Trial;
        self.enter(UpdateState::RolledBack, self.version);
        self.reason = Some(why.clone());
        let back = was_running.then_some(UpdateEffect::SwitchBack);
        let drop = [UpdateEffect::Drop { why }];
        drop.into_iter().chain(back).chain([UpdateEffect::Report]).collect()
    }
}
