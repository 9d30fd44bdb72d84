//! What the files of the fleet's state hold: configurations, the one on trial, known updates, history.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::fleet::check::Verified;
use crate::fleet::digest::Digest;
use crate::fleet::moment::Moment;
use crate::fleet::reason::shortened;
use crate::fleet::update::UpdateState;
use crate::limits::fleet::{HISTORY_MAX, REPLAYS_MAX};

/// The configuration that a device runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveConfig {
    /// The device's own `mcp.json` alone.
    Local {},
    /// A remote configuration on top of it.
    Remote(ConfigSlot),
}

/// A remote configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigSlot {
    /// Its version.
    pub version: u64,
    /// The digest of the update.
    pub update: Digest,
    /// The key that has signed it.
    pub key: String,
    /// The time at which the update expires.
    pub expires: Moment,
    /// The digest of the text.
    pub digest: Digest,
    /// The text of the remote `mcp.json`.
    pub config: String,
}

impl ConfigSlot {
    /// The configuration of an update.
    pub fn of(update: &Verified, config: String) -> ConfigSlot {
        ConfigSlot {
            version: update.envelope.version.into(),
            update: update.digest,
            key: update.authority.key.clone(),
            expires: update.envelope.expires,
            digest: Digest::of(config.as_bytes()),
            config,
        }
    }
}

impl LiveConfig {
    /// The remote configuration, if there is one.
    pub fn remote(&self) -> Option<&ConfigSlot> {
        match self {
            LiveConfig::Local {} => None,
            LiveConfig::Remote(slot) => Some(slot),
        }
    }

    /// Its version; 0 for the local file.
    pub fn version(&self) -> u64 {
        self.remote().map_or(0, |slot| slot.version)
    }

    /// Whether the text is that of which the digest was made.
    pub(super) fn is_intact(&self) -> bool {
        self.remote().is_none_or(|slot| Digest::of(slot.config.as_bytes()) == slot.digest)
    }
}

/// A configuration that does not count yet, or not any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StagedConfig {
    /// The configuration.
    pub goal: LiveConfig,
    /// The tries that it has left.
    pub tries_left: u8,
    /// What is being done with it. From `Keep` and `Drop` on there is no way back: what is missing of
    /// them is done at the next start.
    pub step: StagedStep,
}

/// See [`StagedConfig::step`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum StagedStep {
    /// It is tried.
    Trial,
    /// It becomes the configuration that counts.
    Keep(KeepRecord),
    /// It is dropped, for this reason.
    Drop(String),
}

/// What is written when a configuration counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeepRecord {
    /// The version floor afterwards.
    pub floor: u64,
    /// The line of the history.
    pub line: HistoryLine,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryLine {
    /// The time.
    pub at: Moment,
    /// The version; 0 for the local file.
    pub version: u64,
    /// The digest of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Digest>,
    /// The key that has signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What happened, in the words of the reported state.
    pub state: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The version floor afterwards.
    pub floor: u64,
}

impl HistoryLine {
    /// The line about a configuration.
    pub(super) fn of(
        config: &LiveConfig,
        state: UpdateState,
        reason: Option<&str>,
        at: Moment,
        floor: u64,
    ) -> HistoryLine {
        let remote = config.remote();
        HistoryLine {
            at,
            version: config.version(),
            update: remote.map(|slot| slot.update),
            key: remote.map(|slot| slot.key.clone()),
            state: state.name().to_owned(),
            reason: reason.map(|reason| shortened(reason).to_owned()),
            floor,
        }
    }
}

/// The last lines of the history.
pub(super) fn appended(lines: &[HistoryLine], line: HistoryLine) -> Vec<HistoryLine> {
    let skipped = (lines.len() + 1).saturating_sub(HISTORY_MAX);
    lines.iter().skip(skipped).cloned().chain([line]).collect()
}

/// The updates that were received and have not expired.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnownUpdates {
    /// No version up to this one is accepted, because updates of such versions were forgotten.
    pub(super) below: u64,
    updates: Vec<KnownUpdate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownUpdate {
    update: Digest,
    version: u64,
    expires: Moment,
}

impl KnownUpdates {
    /// The digests.
    pub(super) fn digests(&self) -> BTreeSet<Digest> {
        self.updates.iter().map(|known| known.update).collect()
    }

    /// The same with one more, and without those that have expired at this time.
    pub(super) fn with(&self, slot: &ConfigSlot, time: Moment) -> KnownUpdates {
        let mut all = self.clone();
        all.updates.retain(|known| known.expires > time && known.update != slot.update);
        let ConfigSlot { version, update, expires, .. } = *slot;
        all.updates.push(KnownUpdate { update, version, expires });
        // bounded: each turn removes one
        while all.updates.len() > REPLAYS_MAX {
            let lowest = all.updates.iter().map(|known| known.version).min().unwrap_or_default();
            all.updates.retain(|known| known.version > lowest);
            all.below = all.below.max(lowest);
        }
        all
    }
}
