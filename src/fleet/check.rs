//! The checks of an update in their order: size, signature, form, target, version, time, replay; then the
//! meaning of its configuration. Nothing is parsed before its signature is verified.

use std::collections::BTreeSet;

use serde_json::Value;

use super::authority::Authority;
use super::boundary;
use super::digest::Digest;
use super::envelope::Envelope;
use super::local::LocalConfig;
use super::merge;
use super::moment::Moment;
use super::places;
use super::refusal::UpdateRefusal;
use super::signature::{Received, Signed};
use super::target::UpdateTarget;
use super::trust::{AllowedCommand, Trust};
use crate::catalog::catalog::Catalog;
use crate::catalog::secret;
use crate::limits::CONFIG_BYTES_MAX;
use crate::limits::fleet::{ISSUED_AHEAD_MAX, SIGNATURE_BYTES_MAX, UPDATE_BYTES_MAX};

/// What a device knows when an update arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The name of the device.
    pub device: String,
    /// The group of the device.
    pub group: Option<String>,
    /// The time of the clock.
    pub clock: Moment,
    /// The latest time that was seen, which is on disk.
    pub watermark: Moment,
    /// The version floor.
    pub floor: VersionFloor,
    /// The updates that were received before.
    pub known: BTreeSet<Digest>,
    /// The digest of the configuration that runs.
    pub running: Digest,
    /// The version on trial.
    pub on_trial: Option<u64>,
}

/// The version that an update must exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionFloor {
    /// The highest version that was kept; 0 before the first one.
    Known(u64),
    /// The file has gone, though updates were kept. Nothing is accepted until the operator has set it
    /// again.
    Missing {
        /// The highest version of which there is still a trace.
        known: u64,
    },
}

impl Memory {
    /// The time of the device: a clock that was set back does not make old updates valid again.
    pub fn time(&self) -> Moment {
        self.clock.max(self.watermark)
    }
}

/// An update whose signature and envelope are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its content.
    pub envelope: Envelope,
    /// What its signer may change.
    pub authority: Authority,
    /// The digest of its bytes.
    pub digest: Digest,
    /// The trusted comment, which is no authority.
    pub comment: String,
    /// The time of the check.
    pub time: Moment,
}

/// The configuration of an update, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedConfig {
    /// The text that the update has.
    pub text: String,
    /// The text of the configuration that the device would run: that of the update with the local parts.
    pub effective: String,
    /// Its catalog.
    pub catalog: Catalog,
}

/// The commands of the trust policy that the text of a remote configuration names.
pub fn commands_of(text: &str, trust: &Trust) -> Vec<AllowedCommand> {
    let remote: Value = serde_json::from_str(text).unwrap_or_default();
    let servers = remote["mcpServers"].as_object().into_iter().flatten();
    let named = servers.filter_map(|(_, server)| server["command"].as_str());
    named.filter_map(|name| trust.commands.get(name).cloned()).collect()
}

/// Checks an update against the trust policy and the memory of the device.
///
/// # Errors
/// The first check that fails. Nothing has changed then.
pub fn check(
    received: &Received<'_>,
    trust: &Trust,
    memory: &Memory,
) -> Result<Verified, UpdateRefusal> {
    for (part, most) in
        [(received.update, UPDATE_BYTES_MAX), (received.signature, SIGNATURE_BYTES_MAX)]
    {
        if part.len() > most {
            return Err(UpdateRefusal::TooLarge { bytes: part.len(), most });
        }
    }
    let signed = Signed::parse(received.signature)?;
    let known = trust.key(signed.id());
    let (name, key) = known.ok_or_else(|| UpdateRefusal::UnknownKey(signed.id().to_string()))?;
    if !signed.is_of(&key.key, received.update) {
        return Err(UpdateRefusal::WrongSignature(name.to_owned()));
    }
    let envelope = Envelope::read(received.update)?;
    let authority = Authority::of(name, key, &envelope)?;
    let digest = Digest::of(received.update);
    check_target(&envelope, trust, memory)?;
    check_version(&envelope, memory)?;
    check_time(&envelope, memory)?;
    if memory.known.contains(&digest) {
        return Err(UpdateRefusal::Replayed(digest));
    }
    if let Some(replaces) = envelope.replaces.filter(|replaces| *replaces != memory.running) {
        return Err(UpdateRefusal::WrongBase { replaces, running: memory.running });
    }
    if let Some(version) = memory.on_trial {
        return Err(UpdateRefusal::Busy { version });
    }
    let comment = signed.comment().to_owned();
    Ok(Verified { envelope, authority, digest, comment, time: memory.time() })
}

fn check_target(envelope: &Envelope, trust: &Trust, memory: &Memory) -> Result<(), UpdateRefusal> {
    let own = match envelope.target {
        UpdateTarget::Device(_) => Some(&memory.device),
        UpdateTarget::Group(_) => memory.group.as_ref(),
        UpdateTarget::Fleet(_) => trust.fleet.as_ref(),
    };
    if own.is_some_and(|own| own == envelope.target.name()) {
        return Ok(());
    }
    Err(UpdateRefusal::WrongTarget { target: envelope.target.clone(), own: own.cloned() })
}

fn check_version(envelope: &Envelope, memory: &Memory) -> Result<(), UpdateRefusal> {
    let version = envelope.version.into();
    match memory.floor {
        VersionFloor::Missing { known } => Err(UpdateRefusal::FloorMissing { known }),
        VersionFloor::Known(floor) if version <= floor => {
            Err(UpdateRefusal::OldVersion { version, floor })
        }
        VersionFloor::Known(_) => Ok(()),
    }
}

fn check_time(envelope: &Envelope, memory: &Memory) -> Result<(), UpdateRefusal> {
    let time = memory.time();
    if envelope.expires <= time {
        return Err(UpdateRefusal::Expired { expires: envelope.expires, time });
    }
    if envelope.issued > time.after(ISSUED_AHEAD_MAX) {
        return Err(UpdateRefusal::NotYetValid { issued: envelope.issued, time });
    }
    Ok(())
}

/// Checks the configuration of an update whose envelope is accepted: its form, what it changes against
/// what its key may change, what no remote configuration may do, and the whole that would run.
///
/// # Errors
/// The first of these checks that fails, with all mistakes that it found.
pub fn meaning(
    verified: &Verified,
    text: &str,
    trust: &Trust,
    local: LocalConfig<'_>,
) -> Result<CheckedConfig, UpdateRefusal> {
    let most = usize::try_from(CONFIG_BYTES_MAX).unwrap_or(usize::MAX);
    if text.len() > most {
        return Err(UpdateRefusal::TooLarge { bytes: text.len(), most });
    }
    let remote = boundary::parse(text).map_err(UpdateRefusal::BadConfig)?;
    let mistakes = boundary::check_parts(&remote);
    if !mistakes.is_empty() {
        return Err(UpdateRefusal::Forbidden(mistakes));
    }
    verified.authority.permits(&merge::changes(local.running, &remote))?;
    let effective = merge::effective(local.file, &remote, trust);
    let (catalog, mut mistakes) = places::read(&effective, local.variables, local.catalog, trust);
    // the parts of a catalog with mistakes are not compared: they are not what is written
    let effective_catalog = mistakes.is_empty().then_some(&catalog);
    let forbidden = boundary::check(local, effective_catalog, &remote, trust);
    if !forbidden.is_empty() {
        return Err(UpdateRefusal::Forbidden(forbidden));
    }
    if !mistakes.is_empty() {
        // they are reported to the manager, who has another text
        for mistake in &mut mistakes {
            mistake.place = None;
        }
        let file: Option<Value> = serde_json::from_str(&effective).ok();
        secret::conceal(&mut mistakes, file.as_ref(), local.variables);
        return Err(UpdateRefusal::BadConfig(mistakes));
    }
    Ok(CheckedConfig { text: text.to_owned(), effective, catalog })
}
