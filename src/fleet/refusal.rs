//! Refusals of updates: each has a stable code for programs and a message with the remedy for people.

use std::fmt;

use super::digest::Digest;
use super::moment::Moment;
use super::target::UpdateTarget;
use crate::catalog::mistake::Mistake;

const NO_POLICY: &str = "the trust policy of this device can't be used";

/// Why an update is refused. Nothing of the device has changed then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateRefusal {
    /// More bytes than an update may have.
    TooLarge {
        /// The bytes that there are.
        bytes: usize,
        /// The most that there may be.
        most: usize,
    },
    /// The trust policy can't be used.
    NoPolicy(Vec<Mistake>),
    /// The signature file has not the format of minisign.
    MalformedSignature(String),
    /// The signature is one of the old kind, which is not over a digest.
    LegacySignature,
    /// The trust policy has no key of this identifier.
    UnknownKey(String),
    /// The signature is not that of the key over these bytes.
    WrongSignature(String),
    /// The signed bytes are no update.
    Malformed(String),
    /// The key may not sign for this kind of target, this long, or this change.
    NotAuthorised {
        /// The key's name in the trust policy.
        key: String,
        /// What it may not.
        what: String,
    },
    /// The update is for other devices.
    WrongTarget {
        /// The target of the update.
        target: UpdateTarget,
        /// The name of this device of the same kind; none if it has none.
        own: Option<String>,
    },
    /// The version is not higher than the device's floor.
    OldVersion {
        /// The version of the update.
        version: u64,
        /// The highest version that was kept.
        floor: u64,
    },
    /// The file with the version floor has gone.
    FloorMissing {
        /// The highest version of which the device still knows.
        known: u64,
    },
    /// The update has expired.
    Expired {
        /// The time of expiry.
        expires: Moment,
        /// The time of the device.
        time: Moment,
    },
    /// The update was issued in the device's future.
    NotYetValid {
        /// The time of issue.
        issued: Moment,
        /// The time of the device.
        time: Moment,
    },
    /// The update was received before.
    Replayed(Digest),
    /// The update replaces another configuration than that which runs.
    WrongBase {
        /// The configuration that it replaces.
        replaces: Digest,
        /// The configuration that runs.
        running: Digest,
    },
    /// The configuration was not what the update promises.
    WrongContent(String),
    /// The configuration in the update has mistakes.
    BadConfig(Vec<Mistake>),
    /// The configuration does what a remote one may not do.
    Forbidden(Vec<Mistake>),
    /// Another update is on trial.
    Busy {
        /// The version that is on trial.
        version: u64,
    },
}

/// The checks in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckStep {
    /// The size of the file.
    Size,
    /// The signature, by a key of the trust policy.
    Signature,
    /// The form of the signed bytes.
    Form,
    /// What the key may sign.
    Authority,
    /// The devices that it is for.
    Target,
    /// The version floor.
    Version,
    /// The time of issue and expiry.
    Time,
    /// The updates that are known.
    Replay,
    /// The configuration that it replaces, and that none is on trial.
    Base,
    /// The configuration itself.
    Meaning,
}

impl CheckStep {
    /// All checks with their names.
    pub const ALL: [(CheckStep, &'static str); 10] = [
        (CheckStep::Size, "size"),
        (CheckStep::Signature, "signature"),
        (CheckStep::Form, "form"),
        (CheckStep::Authority, "authority of the key"),
        (CheckStep::Target, "target"),
        (CheckStep::Version, "version"),
        (CheckStep::Time, "time"),
        (CheckStep::Replay, "not seen before"),
        (CheckStep::Base, "base"),
        (CheckStep::Meaning, "configuration"),
    ];
}

impl UpdateRefusal {
    /// The code, which stays the same in all versions of this program.
    pub fn code(&self) -> &'static str {
        match self {
            UpdateRefusal::TooLarge { .. } => "too-large",
            UpdateRefusal::NoPolicy(_) => "no-policy",
            UpdateRefusal::MalformedSignature(_) => "malformed-signature",
            UpdateRefusal::LegacySignature => "legacy-signature",
            UpdateRefusal::UnknownKey(_) => "unknown-key",
            UpdateRefusal::WrongSignature(_) => "wrong-signature",
            UpdateRefusal::Malformed(_) => "malformed",
            UpdateRefusal::NotAuthorised { .. } => "not-authorised",
            UpdateRefusal::WrongTarget { .. } => "wrong-target",
            UpdateRefusal::OldVersion { .. } => "old-version",
            UpdateRefusal::FloorMissing { .. } => "floor-missing",
            UpdateRefusal::Expired { .. } => "expired",
            UpdateRefusal::NotYetValid { .. } => "not-yet-valid",
            UpdateRefusal::Replayed(_) => "replayed",
            UpdateRefusal::WrongBase { .. } => "wrong-base",
            UpdateRefusal::WrongContent(_) => "wrong-content",
            UpdateRefusal::BadConfig(_) => "bad-config",
            UpdateRefusal::Forbidden(_) => "forbidden-config",
            UpdateRefusal::Busy { .. } => "busy",
        }
    }

    /// The check that has failed.
    pub fn step(&self) -> CheckStep {
        match self {
            UpdateRefusal::TooLarge { .. } => CheckStep::Size,
            UpdateRefusal::NoPolicy(_)
            | UpdateRefusal::MalformedSignature(_)
            | UpdateRefusal::LegacySignature
            | UpdateRefusal::UnknownKey(_)
            | UpdateRefusal::WrongSignature(_) => CheckStep::Signature,
            UpdateRefusal::Malformed(_) => CheckStep::Form,
            UpdateRefusal::NotAuthorised { .. } => CheckStep::Authority,
            UpdateRefusal::WrongTarget { .. } => CheckStep::Target,
            UpdateRefusal::OldVersion { .. } | UpdateRefusal::FloorMissing { .. } => {
                CheckStep::Version
            }
            UpdateRefusal::Expired { .. } | UpdateRefusal::NotYetValid { .. } => CheckStep::Time,
            UpdateRefusal::Replayed(_) => CheckStep::Replay,
            UpdateRefusal::WrongBase { .. } | UpdateRefusal::Busy { .. } => CheckStep::Base,
            UpdateRefusal::WrongContent(_)
            | UpdateRefusal::BadConfig(_)
            | UpdateRefusal::Forbidden(_) => CheckStep::Meaning,
        }
    }

    /// All mistakes of the configuration, if that is why.
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            UpdateRefusal::NoPolicy(mistakes)
            | UpdateRefusal::BadConfig(mistakes)
            | UpdateRefusal::Forbidden(mistakes) => mistakes,
            UpdateRefusal::TooLarge { .. }
            | UpdateRefusal::MalformedSignature(_)
            | UpdateRefusal::LegacySignature
            | UpdateRefusal::UnknownKey(_)
            | UpdateRefusal::WrongSignature(_)
            | UpdateRefusal::Malformed(_)
            | UpdateRefusal::NotAuthorised { .. }
            | UpdateRefusal::WrongTarget { .. }
            | UpdateRefusal::OldVersion { .. }
            | UpdateRefusal::FloorMissing { .. }
            | UpdateRefusal::Expired { .. }
            | UpdateRefusal::NotYetValid { .. }
            | UpdateRefusal::Replayed(_)
            | UpdateRefusal::WrongBase { .. }
            | UpdateRefusal::WrongContent(_)
            | UpdateRefusal::Busy { .. } => &[],
        }
    }
}

impl fmt::Display for UpdateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UpdateRefusal::TooLarge { bytes, most } => write!(
                f,
                "{bytes} bytes, at most {most}; name a large configuration by url, sha256 and bytes"
            ),
            UpdateRefusal::NoPolicy(mistakes) => told(f, NO_POLICY, mistakes),
            UpdateRefusal::MalformedSignature(what) => {
                write!(f, "the signature {what}; sign with pilotlight config sign or minisign -S")
            }
            UpdateRefusal::LegacySignature => f.write_str(
                "the signature is of minisign's old kind, not over a digest; sign without -l, with \
                 minisign 0.8 or newer",
            ),
            UpdateRefusal::UnknownKey(id) => write!(
                f,
                "the key {id} is not in the trust policy of this device; sign with one of its keys, \
                 or add the key on the device"
            ),
            UpdateRefusal::WrongSignature(key) => write!(
                f,
                "the signature is not that of the key {key} over these bytes; send update.signed as \
                 pilotlight config sign has written it"
            ),
            UpdateRefusal::Malformed(what) => write!(f, "the signed bytes are no update: {what}"),
            UpdateRefusal::NotAuthorised { key, what } => write!(
                f,
                "the key {key} may not {what}; sign with another key, or change the trust policy on \
                 the device"
            ),
            UpdateRefusal::WrongTarget { target, own: Some(own) } => {
                write!(f, "is for the {target}, and this is the {} {own}", target.kind().name())
            }
            UpdateRefusal::WrongTarget { target, own: None } => {
                let kind = target.kind().name();
                write!(f, "is for the {target}, and this device belongs to no {kind}")
            }
            UpdateRefusal::OldVersion { version, floor } => write!(
                f,
                "version {version} is not higher than {floor}, which was kept before; sign with a \
                 higher version, or run pilotlight config rollback --allow-downgrade on the device"
            ),
            UpdateRefusal::FloorMissing { known } => write!(
                f,
                "the file fleet/floor in the state folder has gone, and with it the lowest version \
                 that may be accepted; run pilotlight config repair on the device, which sets it to \
                 {known}, the highest version that current and history have"
            ),
            UpdateRefusal::Expired { expires, time } => write!(
                f,
                "expired at {expires}, and the time of this device is {time}; sign it anew; if the \
                 device's clock was wrong once, run pilotlight config repair --reset-time on it"
            ),
            UpdateRefusal::NotYetValid { issued, time } => write!(
                f,
                "was issued at {issued}, and the time of this device is {time}; set the clocks of \
                 both machines (NTP)"
            ),
            UpdateRefusal::Replayed(digest) => write!(
                f,
                "the update {digest} was received before, and its result stands; to try the \
                 configuration again, sign it with a higher version"
            ),
            UpdateRefusal::WrongBase { replaces, running } => write!(
                f,
                "replaces {replaces}, and this device runs {running}; leave --replaces out, or start \
                 from the configuration that runs"
            ),
            UpdateRefusal::WrongContent(what) => f.write_str(what),
            UpdateRefusal::BadConfig(mistakes) => {
                told(f, "the configuration has mistakes", mistakes)
            }
            UpdateRefusal::Forbidden(mistakes) => {
                told(f, "a remote configuration may not do this", mistakes)
            }
            UpdateRefusal::Busy { version } => {
                write!(f, "version {version} is on trial; send the update again when it has ended")
            }
        }
    }
}

/// The number of mistakes and the first one.
fn told(f: &mut fmt::Formatter<'_>, what: &str, mistakes: &[Mistake]) -> fmt::Result {
    write!(f, "{what} ({})", mistakes.len())?;
    mistakes.first().map_or(Ok(()), |first| write!(f, ": {first}"))
}
