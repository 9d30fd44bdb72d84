//! What a table of devices shows: how many are in each state, how long it took, who failed and why.

use std::collections::BTreeMap;

use serde::Serialize;

use super::devices::{DeviceReport, Devices};
use super::update::UpdateMark;
use crate::fleet::update::UpdateState;
use crate::limits::rollout::{NAMES_SHOWN_MAX, REASONS_SHOWN_MAX};

/// The counts of a set of devices.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Summary {
    /// The devices.
    pub devices: usize,
    /// How many are in each state.
    pub states: BTreeMap<&'static str, usize>,
    /// Devices by the version in force; 0 stands for a local file without one.
    pub versions: BTreeMap<u64, usize>,
    /// Half of those that have kept it did so within these seconds of the offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_p50: Option<f64>,
    /// The same for 99 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_p99: Option<f64>,
    /// Why devices have refused it or rolled it back, the most frequent reason first.
    pub reasons: Vec<EqualReasons>,
    /// Further reasons.
    #[serde(skip_serializing_if = "is_zero")]
    pub reasons_left_out: usize,
    /// Reports that could not be read.
    #[serde(skip_serializing_if = "is_zero_64")]
    pub bad_reports: u64,
    /// Messages of devices beyond the number that is watched.
    #[serde(skip_serializing_if = "is_zero_64")]
    pub left_out: u64,
}

/// The devices that give one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EqualReasons {
    /// `refused` or `rolled-back`.
    pub state: &'static str,
    /// The code of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The reason.
    pub reason: String,
    /// How many devices give it.
    pub devices: usize,
    /// The first of them.
    pub names: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero_64(number: &u64) -> bool {
    *number == 0
}

impl Summary {
    /// The summary of these devices, each with the name of its state.
    pub fn of<'d>(
        devices: &Devices,
        listed: impl Iterator<Item = (&'d str, &'d DeviceReport, &'static str)>,
        seconds: Vec<f64>,
    ) -> Summary {
        let mut summary = Summary {
            bad_reports: devices.bad_reports,
            left_out: devices.left_out,
            ..Summary::default()
        };
        let mut reasons: BTreeMap<ReasonKey<'d>, Vec<&'d str>> = BTreeMap::new();
        for (name, report, state) in listed {
            summary.devices += 1;
            *summary.states.entry(state).or_default() += 1;
            *summary.versions.entry(report.version).or_default() += 1;
            if is_failure(state) {
                let reason = report.reason.as_deref().unwrap_or_default();
                reasons.entry((state, report.code.as_deref(), reason)).or_default().push(name);
            }
        }
        let mut rows: Vec<_> = reasons.into_iter().collect();
        rows.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
        summary.reasons_left_out = rows.len().saturating_sub(REASONS_SHOWN_MAX);
        let row = |((state, code, reason), names): (ReasonKey<'d>, Vec<&'d str>)| EqualReasons {
            state,
            code: code.map(str::to_owned),
            reason: reason.to_owned(),
            devices: names.len(),
            names: names.into_iter().take(NAMES_SHOWN_MAX).map(str::to_owned).collect(),
        };
        summary.reasons = rows.into_iter().take(REASONS_SHOWN_MAX).map(row).collect();
        (summary.seconds_p50, summary.seconds_p99) = quantiles(seconds);
        summary
    }

    /// The summary of all devices: by what they reported last, or by what became of one version.
    pub fn of_all(devices: &Devices, mark: Option<&UpdateMark>) -> Summary {
        let listed = devices.reported().map(|(name, report)| {
            let state = mark.map_or(report.state, |mark| mark.state_on(report));
            let is_off = mark.is_some() && state == UpdateState::Idle && devices.is_offline(name);
            (name, report, if is_off { OFFLINE } else { name_of(state, mark.is_some()) })
        });
        Summary::of(devices, listed, Vec::new())
    }

    /// The number of devices in a state.
    pub fn count(&self, state: &str) -> usize {
        self.states.get(state).copied().unwrap_or_default()
    }

    /// Devices that have refused the update or rolled it back.
    pub fn failures(&self) -> usize {
        self.count(UpdateState::RolledBack.name()) + self.count(UpdateState::Refused.name())
    }

    /// Devices that have kept it.
    pub fn kept(&self) -> usize {
        self.count(UpdateState::Kept.name())
    }
}

/// State, code and reason.
type ReasonKey<'d> = (&'static str, Option<&'d str>, &'d str);

/// The name of the state of devices that are not there.
pub const OFFLINE: &str = "offline";
/// That of devices that have not begun.
pub const NOT_BEGUN: &str = "not-begun";
/// That of devices that did not end in time.
pub const NO_ANSWER: &str = "no-answer";
/// That of devices that were not offered the update.
pub const NOT_OFFERED: &str = "not-offered";

/// The name of a state, of one update or of what was offered last.
pub fn name_of(state: UpdateState, is_of_update: bool) -> &'static str {
    if is_of_update && state == UpdateState::Idle { NOT_BEGUN } else { state.name() }
}

fn is_failure(state: &str) -> bool {
    state == UpdateState::RolledBack.name() || state == UpdateState::Refused.name()
}

/// The median and the 99th percentile by nearest rank; none of an empty list.
fn quantiles(mut seconds: Vec<f64>) -> (Option<f64>, Option<f64>) {
    seconds.sort_unstable_by(f64::total_cmp);
    let of = |percent: usize| {
        let rank = (seconds.len() * percent).div_ceil(100).max(1);
        seconds.get(rank - 1).copied()
    };
    (of(50), of(99))
}
