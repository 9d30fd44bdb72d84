//! `config diff`, `history`, `rollback` and `repair`: the configurations of this device.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use super::service;
use crate::catalog::file_text;
use crate::catalog::mistake::in_one_line;
use crate::cli::{DONE, WRONG, loaded};
use crate::clock;
use crate::config::Config;
use crate::fleet::digest::Digest;
use crate::fleet::envelope::{DOMAIN, Envelope, UpdateConfig};
use crate::fleet::moment::Moment;
use crate::fleet::signature::Received;
use crate::fleet::update::{TAKEN_BACK, UpdateReport, UpdateState};
use crate::fleet::{difference, merge};
use crate::limits::CONFIG_BYTES_MAX;
use crate::limits::fleet::SIGNED_BYTES_MAX;
use crate::store::slots::{DiskFolder, FOLDER, Slots};
use crate::store::{files, trust_file};

/// The folder of the fleet's state.
pub(super) fn folder(config: &Config) -> anyhow::Result<PathBuf> {
    let state = config.state.as_ref().context("there is no state folder; set PILOTLIGHT_STATE")?;
    Ok(state.join(FOLDER))
}

/// The state, to look at; damages are printed.
pub(super) fn slots(config: &Config) -> anyhow::Result<Slots<DiskFolder>> {
    let folder = folder(config)?;
    let slots = Slots::read(DiskFolder::to_read(&folder));
    let slots = slots.with_context(|| format!("{} can't be read", folder.display()))?;
    for damage in &slots.damages {
        print_error!("warning: {damage}");
    }
    Ok(slots)
}

fn slots_to_change(config: &Config) -> anyhow::Result<Slots<DiskFolder>> {
    let folder = folder(config)?;
    let slots = DiskFolder::to_write(&folder).and_then(Slots::open);
    slots.with_context(|| format!("{} can't be changed", folder.display()))
}

/// The time of the clock.
pub(super) fn now() -> Moment {
    Moment(clock::since_epoch().as_secs())
}

/// The text of this device's own `mcp.json`, with its content.
pub(super) fn local_file(config: &Config) -> anyhow::Result<(Value, Digest)> {
    let bytes = files::read(&config.path, CONFIG_BYTES_MAX)?;
    let text = file_text::decode(&bytes).map_err(anyhow::Error::msg)?;
    Ok((serde_json::from_str(text)?, Digest::of(&bytes)))
}

/// The configuration that this device runs: the remote one, else the local file.
pub(super) fn running(config: &Config, slots: &Slots<DiskFolder>) -> anyhow::Result<Value> {
    match slots.live().remote() {
        Some(slot) => Ok(serde_json::from_str(&slot.config)?),
        None => Ok(local_file(config)?.0),
    }
}

/// The configuration that this device runs, without secrets: the remote one with the local parts of the
/// file, or the file.
///
/// # Errors
/// If a file can't be read.
pub(in crate::cli) fn effective(config: &Config) -> anyhow::Result<Value> {
    let file = local_file(config)?.0;
    let effective = match slots(config)?.live().remote() {
        None => file,
        Some(slot) => {
            let trust = config.trust.as_ref().context("PILOTLIGHT_TRUST is not set")?;
            let trust = trust_file::read(trust)
                .map_err(|mistakes| anyhow::anyhow!(in_one_line(&mistakes)))?;
            let remote = serde_json::from_str(&slot.config)?;
            serde_json::from_str(&merge::effective(&file, &remote, &trust))?
        }
    };
    Ok(difference::without_secrets_in(&effective))
}

/// Prints the configuration that this device runs.
///
/// # Errors
/// If a file can't be read.
pub(super) fn show(path: Option<&Path>) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    print_line!("{:#}", effective(&config)?);
    Ok(DONE)
}

/// Compares the configuration in a file with the one that runs.
///
/// # Errors
/// If a file can't be read.
pub(super) fn diff(path: Option<&Path>, file: &Path, as_json: bool) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let running = running(&config, &slots(&config)?)?;
    let found = difference::between(&running, &config_in(file)?);
    if as_json {
        print_line!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(DONE);
    }
    if found.is_empty() {
        print_line!("no difference");
    }
    for one in &found {
        match (&one.old, &one.new) {
            (Some(old), Some(new)) if old == new => print_line!("~ {}: {new}, changed", one.path),
            (Some(old), Some(new)) => print_line!("~ {}: {old} -> {new}", one.path),
            (None, Some(new)) => print_line!("+ {}: {new}", one.path),
            (Some(old), None) => print_line!("- {}: {old}", one.path),
            (None, None) => {}
        }
    }
    Ok(DONE)
}

/// The configuration in an `update.signed`, an `update.json` or an `mcp.json`. No signature is verified.
fn config_in(file: &Path) -> anyhow::Result<Value> {
    let shown = file.display();
    let most = SIGNED_BYTES_MAX as u64;
    let bytes = files::read(file, most).with_context(|| format!("{shown} can't be read"))?;
    let signed = Received::of(&bytes).ok().filter(|_| bytes.starts_with(b"untrusted comment:"));
    let update = signed.map_or(&bytes[..], |signed| signed.update);
    let text = if update.starts_with(DOMAIN.as_bytes()) {
        match Envelope::read(update).map_err(|why| anyhow::anyhow!("{shown}: {why}"))?.config {
            UpdateConfig::Inline(text) => text,
            UpdateConfig::Url(remote) => {
                bail!("{shown} has its configuration at {}; compare that file", remote.url)
            }
        }
    } else {
        file_text::decode(update).map_err(|why| anyhow::anyhow!("{shown} {why}"))?.to_owned()
    };
    serde_json::from_str(&text).with_context(|| format!("{shown} has no mcp.json"))
}

/// Prints the history.
///
/// # Errors
/// If a file can't be read.
pub(super) fn history(path: Option<&Path>, as_json: bool) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let slots = slots(&config)?;
    for line in slots.history() {
        if as_json {
            print_line!("{}", serde_json::to_string(line)?);
            continue;
        }
        let by = line.key.as_ref().map_or_else(String::new, |key| format!(", signed by {key}"));
        let why = line.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
        let what = version(line.version);
        print_line!("{}  {what} {}{by}{why}", line.at, line.state);
    }
    if as_json {
        return Ok(DONE);
    }
    if let Some((slot, tries)) = slots.on_trial() {
        print_line!("on trial: version {}, {tries} tries left", slot.version);
    }
    print_line!("runs: {}", version(slots.live().version()));
    Ok(DONE)
}

fn version(number: u64) -> String {
    if number == 0 { "the local mcp.json".to_owned() } else { format!("version {number}") }
}

/// Returns to the configuration before the last one.
///
/// # Errors
/// If there is none, or a file can't be written.
pub(super) async fn roll_back(
    path: Option<&Path>,
    steps_down: bool,
    as_json: bool,
) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let folder = folder(&config)?;
    let unwritable = || format!("{} can't be changed", folder.display());
    let Some(files) = DiskFolder::try_to_write(&folder).with_context(unwritable)? else {
        return service::roll_back(path, &folder, steps_down, as_json).await;
    };
    let mut slots = Slots::open(files).with_context(unwritable)?;
    if slots.on_trial().is_some() {
        slots.drop_trial(TAKEN_BACK, now())?;
    } else {
        slots.roll_back(steps_down, now())?;
    }
    if as_json {
        let (state, reason) = (UpdateState::RolledBack, Some(TAKEN_BACK));
        let report = UpdateReport { state, version: None, code: None, reason };
        print_line!("{}", serde_json::to_string(&report)?);
    } else {
        print_line!("runs: {}", version(slots.live().version()));
    }
    Ok(DONE)
}

/// Sets the version floor again.
///
/// # Errors
/// If a file can't be written.
pub(super) fn repair(path: Option<&Path>, resets_time: bool) -> anyhow::Result<u8> {
    let Some(config) = loaded(path) else { return Ok(WRONG) };
    let folder = folder(&config)?;
    if fs::metadata(&folder).is_err() {
        bail!("{} does not exist: there is nothing to repair", folder.display());
    }
    let mut slots = slots_to_change(&config)?;
    let now = now();
    let floor = slots.repair(resets_time.then_some(now), now)?;
    print_line!("updates must have a higher version than {floor}");
    Ok(DONE)
}
