//! The update that is pushed: whom it concerns, and what a device says that became of it.

use super::devices::DeviceReport;
use crate::fleet::digest::Digest;
use crate::fleet::envelope::{Envelope, UpdateConfig};
use crate::fleet::target::UpdateTarget;
use crate::fleet::update::UpdateState;

/// What identifies an update in the reports of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateMark {
    /// Its version.
    pub version: u64,
    /// The digests of its signed bytes and of its configuration; none if only the version is known.
    pub digests: Option<(Digest, Digest)>,
}

impl UpdateMark {
    /// That of the update with these bytes.
    pub fn of(envelope: &Envelope, bytes: &[u8]) -> UpdateMark {
        let config = match &envelope.config {
            UpdateConfig::Inline(text) => Digest::of(text.as_bytes()),
            UpdateConfig::Url(remote) => remote.sha256.0,
        };
        let digests = Some((Digest::of(bytes), config));
        UpdateMark { version: envelope.version.into(), digests }
    }

    /// Whether the device runs the configuration of this update.
    fn is_in_force(&self, report: &DeviceReport) -> bool {
        report.is_update
            && report.version == self.version
            && self.digests.is_none_or(|(_, config)| report.digest == Some(config))
    }

    /// Whether the last update that the device was offered is this one. Only whoever knows neither digest
    /// goes by the version.
    fn is_offered(&self, report: &DeviceReport) -> bool {
        match (self.digests, report.offered_digest) {
            (Some((update, _)), Some(offered)) => update == offered,
            (_, _) => report.offered == Some(self.version),
        }
    }

    /// What became of this update on the device; [`UpdateState::Idle`] if it has not begun.
    pub fn state_on(&self, report: &DeviceReport) -> UpdateState {
        let is_offered = self.is_offered(report);
        let is_in_force = self.is_in_force(report);
        match report.state {
            UpdateState::Verified | UpdateState::Staged | UpdateState::Trial if is_offered => {
                report.state
            }
            // what is in force and not on trial was kept, whatever was offered since
            UpdateState::Idle
            | UpdateState::Verified
            | UpdateState::Staged
            | UpdateState::Trial
            | UpdateState::Kept
            | UpdateState::RolledBack
            | UpdateState::Refused
                if is_in_force =>
            {
                UpdateState::Kept
            }
            UpdateState::RolledBack | UpdateState::Refused if is_offered => report.state,
            UpdateState::Kept if is_offered && report.code.is_some() => UpdateState::Refused,
            UpdateState::Idle
            | UpdateState::Verified
            | UpdateState::Staged
            | UpdateState::Trial
            | UpdateState::Kept
            | UpdateState::RolledBack
            | UpdateState::Refused => UpdateState::Idle,
        }
    }

    /// Whether the device has kept a higher version, or another configuration of this one: it refuses
    /// this update.
    pub fn is_outdated_on(&self, report: &DeviceReport) -> bool {
        report.is_update && report.version >= self.version && !self.is_in_force(report)
    }
}

/// Whether this device is one of the target.
pub fn concerns(target: &UpdateTarget, name: &str, report: &DeviceReport) -> bool {
    let own = match target {
        UpdateTarget::Device(_) => Some(name),
        UpdateTarget::Group(_) => report.group.as_deref(),
        UpdateTarget::Fleet(_) => report.fleet.as_deref(),
    };
    own == Some(target.name())
}

/// The topic of the updates of a target.
pub fn topic_of(prefix: &str, target: &UpdateTarget) -> String {
    match target {
        UpdateTarget::Device(_) => device_topic(prefix, target.name()),
        UpdateTarget::Group(_) => format!("{prefix}/group/{}/config/desired", target.name()),
        UpdateTarget::Fleet(_) => format!("{prefix}/fleet/{}/config/desired", target.name()),
    }
}

/// The topic of the updates of one device.
pub fn device_topic(prefix: &str, name: &str) -> String {
    format!("{prefix}/{name}/config/desired")
}

/// Whether the update is over on a device in this state.
pub fn is_over(state: UpdateState) -> bool {
    state != UpdateState::Idle && !state.is_in_progress()
}
