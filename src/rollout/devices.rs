//! The devices of a broker by their retained reports and their presence.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::fleet::digest::Digest;
use crate::fleet::reason::shortened;
use crate::fleet::update::UpdateState;
use crate::limits::rollout::{REPORT_BYTES_MAX, REPORT_WORD_BYTES_MAX, WATCHED_DEVICES_MAX};
use crate::request::name::is_name;
use crate::status::{ConfigOrigin, ConfigStatus};

/// What is remembered of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// What became of what was offered last.
    pub state: UpdateState,
    /// A signed update is in force, not the local file.
    pub is_update: bool,
    /// The version in force.
    pub version: u64,
    /// The digest of the configuration in force.
    pub digest: Option<Digest>,
    /// The fleet of the device.
    pub fleet: Option<String>,
    /// The group of the device.
    pub group: Option<String>,
    /// The version of the update that was offered last.
    pub offered: Option<u64>,
    /// The digest of its signed bytes.
    pub offered_digest: Option<Digest>,
    /// The code of a refusal.
    pub code: Option<String>,
    /// Why something was refused or rolled back.
    pub reason: Option<String>,
}

impl DeviceReport {
    fn of(status: ConfigStatus) -> DeviceReport {
        let word = |text: Option<String>| text.filter(|text| text.len() <= REPORT_WORD_BYTES_MAX);
        let reason = status.reason.or_else(|| status.mistakes.into_iter().next());
        let digest = |text: String| Digest::try_from(text).ok();
        DeviceReport {
            state: status.state,
            is_update: status.source == ConfigOrigin::Update,
            version: status.version,
            digest: digest(status.digest),
            fleet: word(status.fleet),
            group: word(status.group),
            offered: status.offered,
            offered_digest: status.offered_digest.and_then(digest),
            code: word(status.code),
            reason: reason.map(|reason| shortened(&reason).to_owned()),
        }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct KnownDevice {
    report: Option<DeviceReport>,
    is_offline: bool,
}

/// The devices of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    known: BTreeMap<String, KnownDevice>,
    /// Reports that could not be read.
    pub bad_reports: u64,
    /// Messages of devices beyond [`WATCHED_DEVICES_MAX`].
    pub left_out: u64,
}

/// The presence of a device, as far as it matters here.
#[derive(Deserialize)]
struct PresenceMessage {
    state: String,
}

impl Devices {
    /// Takes the report of a device, or the length of one that was not read. Returns whether it is
    /// another one than before.
    ///
    /// A report that is too large, no JSON or from a topic without a valid name of a device is counted;
    /// what is known of the device stays.
    pub fn report(&mut self, name: &str, payload: Result<&[u8], usize>) -> bool {
        let bytes = payload.ok().filter(|bytes| bytes.len() <= REPORT_BYTES_MAX && is_name(name));
        let Some(bytes) = bytes else {
            self.bad_reports += 1;
            return false;
        };
        // a retained message that was removed
        let report = if bytes.is_empty() {
            None
        } else {
            match serde_json::from_slice(bytes) {
                Ok(status) => Some(DeviceReport::of(status)),
                Err(_) => {
                    self.bad_reports += 1;
                    return false;
                }
            }
        };
        let Some(device) = self.device(name) else { return false };
        let is_new = device.report != report;
        device.report = report;
        is_new
    }

    /// Takes the presence of a device. Returns whether it has changed.
    pub fn presence(&mut self, name: &str, payload: Result<&[u8], usize>) -> bool {
        let bytes = payload.ok().filter(|bytes| bytes.len() <= REPORT_BYTES_MAX && is_name(name));
        let Some(bytes) = bytes else { return false };
        let Ok(presence) = serde_json::from_slice::<PresenceMessage>(bytes) else { return false };
        let is_offline = presence.state == "offline";
        let Some(device) = self.device(name) else { return false };
        std::mem::replace(&mut device.is_offline, is_offline) != is_offline
    }

    fn device(&mut self, name: &str) -> Option<&mut KnownDevice> {
        if !self.known.contains_key(name) && self.known.len() >= WATCHED_DEVICES_MAX {
            self.left_out += 1;
            return None;
        }
        Some(self.known.entry(name.to_owned()).or_default())
    }

    /// The last report of a device.
    pub fn report_of(&self, name: &str) -> Option<&DeviceReport> {
        self.known.get(name)?.report.as_ref()
    }

    /// Whether the device has said that it is not there. One without presence counts as there.
    pub fn is_offline(&self, name: &str) -> bool {
        self.known.get(name).is_some_and(|device| device.is_offline)
    }

    /// The devices that have reported.
    pub fn reported(&self) -> impl Iterator<Item = (&str, &DeviceReport)> {
        self.known.iter().filter_map(|(name, one)| Some((name.as_str(), one.report.as_ref()?)))
    }
}
