//! The stages of a roll-out as a state machine: reports, presence and times in, effects out.
//!
//! The target of an update is inside its signed bytes, so that a stage can't have a target of its own.
//! What a device checks is the target and not the topic: a stage offers the same bytes on the topics of
//! its devices, the last one on the topic of the target. The topics of devices are cleared at the end,
//! however it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::choice::{ranked, share};
use super::devices::{DeviceReport, Devices};
use super::summary::{NO_ANSWER, NOT_BEGUN, NOT_OFFERED, OFFLINE, Summary, name_of};
use super::update::{UpdateMark, concerns, is_over};
use crate::fleet::target::UpdateTarget;
use crate::fleet::update::UpdateState;
use crate::time::Time;

/// How an update is rolled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The share of the devices that each stage reaches, in percent, ascending; of 100 the target's own
    /// topic is used.
    pub percents: Vec<u8>,
    /// The devices that may fail; with one more the roll-out stops. None: it goes on to its end.
    pub max_failures: Option<usize>,
    /// The time after which the devices of a stage that have not ended count as failed.
    pub time: Duration,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutEffect {
    /// Publish the update on the topic of this device.
    Offer(String),
    /// Publish the update on the topic of its target.
    OfferAll,
    /// Remove the update from the topic of this device.
    Withdraw(String),
    /// Remove the update from the topic of its target.
    WithdrawAll,
}

/// How a roll-out has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All stages are through; some devices may have failed.
    Through,
    /// Too many devices have failed.
    Stopped,
    /// Somebody has interrupted it.
    Interrupted,
    /// The broker has not taken a message.
    NotPublished,
}

/// What a device of the present stage, or of one before, has made of the update.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Member {
    state: UpdateState,
    /// It did not end in time.
    is_late: bool,
    /// When it was offered the update.
    since: Time,
    /// The time until it was kept; none if it was kept before.
    took: Option<Duration>,
}

impl Member {
    fn is_open(&self) -> bool {
        !is_over(self.state) && !self.is_late
    }

    fn is_failed(&self) -> bool {
        match self.state {
            UpdateState::Kept => false,
            UpdateState::RolledBack | UpdateState::Refused => true,
            UpdateState::Idle
            | UpdateState::Verified
            | UpdateState::Staged
            | UpdateState::Trial => self.is_late,
        }
    }
}

/// A roll-out.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// The devices of the broker.
    pub devices: Devices,
    target: UpdateTarget,
    mark: UpdateMark,
    plan: Plan,
    /// The stage, counted from 0.
    stage: usize,
    until: Time,
    members: BTreeMap<String, Member>,
    open: usize,
    failed: usize,
    /// Devices whose own topics have the update.
    carried: BTreeSet<String>,
    is_at_target: bool,
    ending: Option<Ending>,
}

impl Rollout {
    /// The roll-out of an update to the devices that have reported.
    pub fn new(target: UpdateTarget, mark: UpdateMark, plan: Plan, devices: Devices) -> Rollout {
        Rollout {
            devices,
            target,
            mark,
            plan,
            stage: 0,
            until: Time::default(),
            members: BTreeMap::new(),
            open: 0,
            failed: 0,
            carried: BTreeSet::new(),
            is_at_target: false,
            ending: None,
        }
    }

    /// Begins the first stage.
    pub fn begin(&mut self, now: Time) -> Vec<RolloutEffect> {
        if self.is_staged() {
            // an earlier push was interrupted before it could clear them
            let begun =
                self.concerned().filter(|(_, report)| self.state_on(report) != UpdateState::Idle);
            self.carried = begun.map(|(name, _)| name.to_owned()).collect();
        }
        let mut effects = Vec::new();
        self.begin_stage(now, &mut effects);
        self.go_on(now, &mut effects);
        effects
    }

    /// Something of this device has changed.
    pub fn heard(&mut self, name: &str, now: Time) -> Vec<RolloutEffect> {
        let mut effects = Vec::new();
        if self.ending.is_none() {
            if self.is_at_target {
                self.join(name, now);
            }
            self.update(name, now);
            self.go_on(now, &mut effects);
        }
        effects
    }

    /// The time may have come at which a stage is over.
    pub fn tick(&mut self, now: Time) -> Vec<RolloutEffect> {
        let mut effects = Vec::new();
        self.go_on(now, &mut effects);
        effects
    }

    /// Ends the roll-out before its end.
    pub fn end(&mut self, ending: Ending) -> Vec<RolloutEffect> {
        if self.ending.is_some() {
            return Vec::new();
        }
        self.ending = Some(ending);
        let withdrawn = std::mem::take(&mut self.carried).into_iter().map(RolloutEffect::Withdraw);
        let mut effects: Vec<RolloutEffect> = withdrawn.collect();
        if ending == Ending::Stopped && self.is_at_target {
            self.is_at_target = false;
            effects.push(RolloutEffect::WithdrawAll);
        }
        effects
    }

    /// When the present stage is over at the latest.
    pub fn until(&self) -> Time {
        self.until
    }

    /// How it has ended.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The number of the present stage, from 1, of all, and the share that it reaches.
    pub fn stage(&self) -> (usize, usize, u8) {
        (self.stage + 1, self.plan.percents.len(), self.percent())
    }

    /// The devices that may still fail.
    pub fn failures_left(&self) -> Option<usize> {
        self.plan.max_failures.map(|most| most.saturating_sub(self.failed))
    }

    /// The devices that the update concerns.
    pub fn concerned(&self) -> impl Iterator<Item = (&str, &DeviceReport)> {
        self.devices.reported().filter(|(name, report)| concerns(&self.target, name, report))
    }

    /// The concerned devices that would refuse it, because they have kept a higher version or another
    /// configuration of this one.
    pub fn outdated(&self) -> impl Iterator<Item = (&str, &DeviceReport)> {
        self.concerned().filter(|(_, report)| self.mark.is_outdated_on(report))
    }

    /// The devices whose end is waited for.
    pub fn awaited(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter(|(_, one)| one.is_open()).map(|(name, _)| name.as_str())
    }

    /// The state of a device as it is shown; none if the update does not concern it.
    pub fn state_of(&self, name: &str) -> Option<(&'static str, Option<Duration>)> {
        let report = self.devices.report_of(name)?;
        concerns(&self.target, name, report).then(|| self.shown(name, report))
    }

    fn shown(&self, name: &str, report: &DeviceReport) -> (&'static str, Option<Duration>) {
        let Some(member) = self.members.get(name) else {
            let state = self.state_on(report);
            let name = match state {
                UpdateState::Idle if self.devices.is_offline(name) => OFFLINE,
                UpdateState::Idle => NOT_OFFERED,
                UpdateState::Verified
                | UpdateState::Staged
                | UpdateState::Trial
                | UpdateState::Kept
                | UpdateState::RolledBack
                | UpdateState::Refused => name_of(state, true),
            };
            return (name, None);
        };
        let state = name_of(member.state, true);
        let is_late = member.is_late && !is_over(member.state);
        let has_begun = state != NOT_BEGUN;
        let is_off = !is_late && !has_begun && self.devices.is_offline(name);
        (
            if is_late {
                NO_ANSWER
            } else if is_off {
                OFFLINE
            } else {
                state
            },
            member.took,
        )
    }

    /// The present counts.
    pub fn summary(&self) -> Summary {
        let listed =
            self.concerned().map(|(name, report)| (name, report, self.shown(name, report).0));
        let took = self.members.values().filter_map(|member| member.took);
        Summary::of(&self.devices, listed, took.map(|took| took.as_secs_f64()).collect())
    }

    fn is_staged(&self) -> bool {
        self.plan.percents != [100]
    }

    fn percent(&self) -> u8 {
        self.plan.percents.get(self.stage).copied().unwrap_or(100)
    }

    fn state_on(&self, report: &DeviceReport) -> UpdateState {
        self.mark.state_on(report)
    }

    /// Begins the present stage: new members are offered the update.
    fn begin_stage(&mut self, now: Time, effects: &mut Vec<RolloutEffect>) {
        self.until = now + self.plan.time;
        let chosen: Vec<String> = if self.percent() == 100 {
            self.concerned().map(|(name, _)| name.to_owned()).collect()
        } else {
            let is_candidate = |name: &str, report: &DeviceReport| {
                !self.devices.is_offline(name) || self.state_on(report) != UpdateState::Idle
            };
            let candidates = self.concerned().filter(|(name, report)| is_candidate(name, report));
            let mut order = ranked(self.mark.version, candidates.map(|(name, _)| name.to_owned()));
            order.truncate(share(order.len(), self.percent()));
            order
        };
        let joined: Vec<(String, UpdateState)> = chosen
            .into_iter()
            .filter_map(|name| self.join(&name, now).map(|state| (name, state)))
            .collect();
        // a push that goes on with one that has stopped
        if self.has_too_many_failures() {
            return;
        }
        if self.percent() == 100 {
            self.is_at_target = true;
            effects.push(RolloutEffect::OfferAll);
            return;
        }
        for (name, _) in joined.into_iter().filter(|(_, state)| *state == UpdateState::Idle) {
            self.carried.insert(name.clone());
            effects.push(RolloutEffect::Offer(name));
        }
    }

    fn has_too_many_failures(&self) -> bool {
        self.plan.max_failures.is_some_and(|most| self.failed > most)
    }

    /// Makes a device a member, unless it is one, does not belong to the target, or is not there. Returns
    /// the state of a new one.
    fn join(&mut self, name: &str, now: Time) -> Option<UpdateState> {
        let report = self.devices.report_of(name)?;
        let state = self.state_on(report);
        let is_there = !self.devices.is_offline(name) || state != UpdateState::Idle;
        if self.members.contains_key(name) || !is_there || !concerns(&self.target, name, report) {
            return None;
        }
        let member = Member { state, is_late: false, since: now, took: None };
        self.count(None, Some(&member));
        self.members.insert(name.to_owned(), member);
        Some(state)
    }

    /// Takes the reported state of a member.
    fn update(&mut self, name: &str, now: Time) {
        let Some(state) = self.devices.report_of(name).map(|report| self.state_on(report)) else {
            return;
        };
        let Some(before) = self.members.get(name).copied() else { return };
        if before.state == state {
            return;
        }
        let is_new = state == UpdateState::Kept && before.took.is_none();
        let took = if is_new { Some(now.since(before.since)) } else { before.took };
        let member = Member { state, took, ..before };
        self.count(Some(&before), Some(&member));
        self.members.insert(name.to_owned(), member);
    }

    fn count(&mut self, before: Option<&Member>, after: Option<&Member>) {
        let number =
            |member: Option<&Member>, is: fn(&Member) -> bool| usize::from(member.is_some_and(is));
        self.open = self.open + number(after, Member::is_open) - number(before, Member::is_open);
        self.failed =
            self.failed + number(after, Member::is_failed) - number(before, Member::is_failed);
    }

    /// Ends the stage if it is over, and begins the next ones.
    fn go_on(&mut self, now: Time, effects: &mut Vec<RolloutEffect>) {
        // bounded: each turn ends a stage
        while self.ending.is_none() {
            if now >= self.until && self.open > 0 {
                self.give_up();
            }
            if self.has_too_many_failures() {
                return effects.extend(self.end(Ending::Stopped));
            }
            if self.open > 0 {
                return;
            }
            if self.stage + 1 == self.plan.percents.len() {
                return effects.extend(self.end(Ending::Through));
            }
            self.stage += 1;
            self.begin_stage(now, effects);
        }
    }

    /// The devices that have not ended are late.
    fn give_up(&mut self) {
        let open: Vec<String> = self
            .members
            .iter()
            .filter(|(_, one)| one.is_open())
            .map(|(name, _)| name.clone())
            .collect();
        for name in open {
            if let Some(before) = self.members.get(&name).copied() {
                let member = Member { is_late: true, ..before };
                self.count(Some(&before), Some(&member));
                self.members.insert(name, member);
            }
        }
    }
}
