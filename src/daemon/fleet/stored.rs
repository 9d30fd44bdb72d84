//! The state of signed configurations on disk, as a service finds it when it starts.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Config;
use crate::config::source::RemoteConfig;
use crate::fleet::check;
use crate::fleet::digest::Digest;
use crate::fleet::trust::Trust;
use crate::fleet::update::UpdateState;
use crate::store::slots::{ConfigSlot, DiskFolder, FOLDER, HistoryLine, Slots};
use crate::store::trust_file;

/// The state on disk, and the configuration that counts.
pub(in crate::daemon) struct StoredUpdates {
    pub(super) trust_file: PathBuf,
    pub(super) trust: Arc<Trust>,
    pub(super) slots: Slots<DiskFolder>,
}

impl StoredUpdates {
    /// Opens the state of a device with a trust policy; none without one, or if it can't be used, which is
    /// in the log.
    pub(in crate::daemon) fn open(config: &Config) -> Option<StoredUpdates> {
        let trust_file = config.trust.clone()?;
        let Some(state) = &config.state else {
            tracing::error!("remote configurations need a state folder; set PILOTLIGHT_STATE");
            return None;
        };
        let trust = match trust_file::read(&trust_file) {
            Ok(trust) => Arc::new(trust),
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!("remote configurations are refused: {mistake}");
                }
                return None;
            }
        };
        match DiskFolder::to_write(&state.join(FOLDER)).and_then(Slots::open) {
            Ok(slots) => {
                for damage in &slots.damages {
                    tracing::warn!("{damage}");
                }
                Some(StoredUpdates { trust_file, trust, slots })
            }
            Err(error) => {
                tracing::error!(%error, "the state of remote configurations can't be used");
                None
            }
        }
    }

    /// The fleet of the device.
    pub(in crate::daemon) fn fleet(&self) -> Option<&str> {
        self.trust.fleet.as_deref()
    }

    /// The remote configuration that counts; none if a program that it names has changed, which is in the
    /// log.
    pub(in crate::daemon) fn live(&self) -> Option<RemoteConfig> {
        let slot = self.slots.live().remote()?;
        let checked = trust_file::check_programs(&check::commands_of(&slot.config, &self.trust));
        if let Err(error) = checked {
            let version = slot.version;
            tracing::error!(version, %error, "the signed update is not used, the local file is");
            return None;
        }
        Some(remote_of(slot, &self.trust))
    }
}

/// The remote configuration of a slot, by this policy.
pub(super) fn remote_of(slot: &ConfigSlot, trust: &Arc<Trust>) -> RemoteConfig {
    let (version, text) = (slot.version, slot.config.clone());
    RemoteConfig { version, text, trust: Arc::clone(trust) }
}

/// The version, the digest and the reason of the last update, if it was rolled back: after its trial, or by
/// the operator, whose line of the history names the configuration that counts again.
pub(super) fn rolled_back_last(
    slots: &Slots<DiskFolder>,
) -> Option<(u64, Option<Digest>, Option<String>)> {
    let (last, before) = slots.history().split_last()?;
    if last.state != UpdateState::RolledBack.name() {
        return None;
    }
    let is_by_operator = last.update == slots.live().remote().map(|slot| slot.update);
    let kept = |line: &&HistoryLine| line.state == UpdateState::Kept.name();
    let line = if is_by_operator { before.iter().rev().find(kept)? } else { last };
    Some((line.version, line.update, last.reason.clone()))
}
