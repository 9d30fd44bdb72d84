//! Targets of updates: a device, a group or a fleet, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::name::is_name;

/// The devices that an update is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateTarget {
    /// One device.
    Device(TargetName),
    /// The devices of a group.
    Group(TargetName),
    /// The devices whose trust policy names this fleet.
    Fleet(TargetName),
}

/// The kinds of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// One device.
    Device,
    /// A group.
    Group,
    /// A fleet.
    Fleet,
}

/// The name of a device, group or fleet: `[A-Za-z0-9_-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(String);

impl UpdateTarget {
    /// The kind.
    pub fn kind(&self) -> TargetKind {
        match self {
            UpdateTarget::Device(_) => TargetKind::Device,
            UpdateTarget::Group(_) => TargetKind::Group,
            UpdateTarget::Fleet(_) => TargetKind::Fleet,
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        match self {
            UpdateTarget::Device(name) | UpdateTarget::Group(name) | UpdateTarget::Fleet(name) => {
                &name.0
            }
        }
    }
}

impl fmt::Display for UpdateTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind().name(), self.name())
    }
}

impl TargetKind {
    /// The name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            TargetKind::Device => "device",
            TargetKind::Group => "group",
            TargetKind::Fleet => "fleet",
        }
    }
}

impl TryFrom<String> for TargetName {
    type Error = String;

    fn try_from(text: String) -> Result<TargetName, String> {
        if is_name(&text) {
            Ok(TargetName(text))
        } else {
            Err("must be [A-Za-z0-9_-]{1,64}".to_owned())
        }
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> String {
        name.0
    }
}
