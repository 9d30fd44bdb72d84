//! The configurations of a managed device on disk: the one that counts, the one before, the one on trial,
//! the version floor, the latest time seen, the known updates and the history.
//!
//! Every change has one write that decides. Before it the old configuration counts, after it the new one
//! does, and [`Slots::open`] finishes what a power failure has interrupted. The version floor is raised
//! only when a configuration is kept, and an update that was staged once is never staged again.

mod disk;
mod records;

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::disk::{DiskFolder, StateFiles};
pub use self::records::{ConfigSlot, HistoryLine, LiveConfig};
use self::records::{KeepRecord, KnownUpdates, StagedConfig, StagedStep, appended};
use super::files::parse;
use crate::fleet::check::{Memory, VersionFloor};
use crate::fleet::digest::Digest;
use crate::fleet::moment::Moment;
use crate::fleet::update::UpdateState;
use crate::limits::fleet::TRIES_MAX;

/// The folder of these files in the state folder.
pub const FOLDER: &str = "fleet";
const CURRENT: &str = "current";
const PREVIOUS: &str = "previous";
const STAGED: &str = "staged";
const FLOOR: &str = "floor";
const WATERMARK: &str = "watermark";
const REPLAYS: &str = "replays";
const HISTORY: &str = "history";

/// The state of a managed device, and its files.
#[derive(Debug)]
pub struct Slots<F> {
    files: F,
    current: LiveConfig,
    previous: Option<LiveConfig>,
    staged: Option<StagedConfig>,
    floor: VersionFloor,
    watermark: Moment,
    known: KnownUpdates,
    history: Vec<HistoryLine>,
    /// What could not be read, with the remedy.
    pub damages: Vec<String>,
}

impl<F: StateFiles> Slots<F> {
    /// Reads the state and finishes what was interrupted.
    ///
    /// # Errors
    /// If a file can't be read or written. A file whose content is damaged is no error: see
    /// [`Slots::damages`].
    pub fn open(files: F) -> io::Result<Slots<F>> {
        let mut slots = Slots::read(files)?;
        slots.finish()?;
        Ok(slots)
    }

    /// Reads the state and writes nothing.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn read(files: F) -> io::Result<Slots<F>> {
        let mut damages = Vec::new();
        let current: Option<LiveConfig> = config(&files, CURRENT, &mut damages)?;
        let previous: Option<LiveConfig> = config(&files, PREVIOUS, &mut damages)?;
        let staged: Option<StagedConfig> = json(&files, STAGED, &mut damages)?;
        let staged = staged.filter(|staged| staged.goal.is_intact());
        let history = lines(&files, &mut damages)?;
        let last = history.last();
        // a damaged configuration is replaced by the one before it, at worst by the local file
        let is_damaged = current.is_none() && files.read(CURRENT)?.is_some();
        let before = previous.clone().filter(|_| is_damaged);
        let current = current.or(before).unwrap_or(LiveConfig::Local {});
        let written: Option<u64> = json(&files, FLOOR, &mut damages)?;
        let replays: Option<KnownUpdates> = json(&files, REPLAYS, &mut damages)?;
        let was_used = last.is_some() || staged.is_some() || current != LiveConfig::Local {};
        let kept = last.map_or(0, |line| line.floor).max(current.version());
        let decided = staged.as_ref().and_then(|staged| match &staged.step {
            StagedStep::Keep(record) => Some(record.floor),
            StagedStep::Trial | StagedStep::Drop(_) => None,
        });
        let floor = match (written, &replays) {
            (Some(floor), Some(_)) => VersionFloor::Known(decided.unwrap_or(floor.max(kept))),
            (None, _) if !was_used && files.read(FLOOR)?.is_none() => VersionFloor::Known(0),
            (written, _) => VersionFloor::Missing { known: written.unwrap_or_default().max(kept) },
        };
        let watermark: Option<Moment> = json(&files, WATERMARK, &mut damages)?;
        let watermark = watermark.unwrap_or_default().max(last.map_or(Moment(0), |line| line.at));
        let known = replays.unwrap_or_default();
        Ok(Slots { files, current, previous, staged, floor, watermark, known, history, damages })
    }

    /// The configuration that counts.
    pub fn live(&self) -> &LiveConfig {
        match &self.staged {
            Some(StagedConfig { goal, step: StagedStep::Keep(_), .. }) => goal,
            Some(_) | None => &self.current,
        }
    }

    /// The configuration on trial, and the tries that it has left.
    pub fn on_trial(&self) -> Option<(&ConfigSlot, u8)> {
        let staged = self.staged.as_ref().filter(|staged| staged.step == StagedStep::Trial)?;
        Some((staged.goal.remote()?, staged.tries_left))
    }

    /// The configuration before the one that counts.
    ///
    /// # Errors
    /// If there is none.
    pub fn before(&self) -> io::Result<LiveConfig> {
        let other = self.previous.clone().filter(|previous| *previous != self.current);
        other.ok_or_else(|| io::Error::other("there is no configuration before this one"))
    }

    /// The history, the oldest line first.
    pub fn history(&self) -> &[HistoryLine] {
        &self.history
    }

    /// What a device of this name knows when an update arrives. `local` is the digest of the local file.
    pub fn memory(
        &self,
        device: &str,
        group: Option<&str>,
        clock: Moment,
        local: Digest,
    ) -> Memory {
        let mut known = self.known.digests();
        known.extend(self.history.iter().filter_map(|line| line.update));
        let slots = [Some(self.live()), self.previous.as_ref()].into_iter().flatten();
        let slots = slots.filter_map(LiveConfig::remote);
        known.extend(slots.chain(self.on_trial().map(|(slot, _)| slot)).map(|slot| slot.update));
        Memory {
            device: device.to_owned(),
            group: group.map(str::to_owned),
            clock,
            watermark: self.watermark,
            floor: match self.floor {
                VersionFloor::Known(floor) => VersionFloor::Known(floor.max(self.known.below)),
                missing @ VersionFloor::Missing { .. } => missing,
            },
            known,
            running: self.live().remote().map_or(local, |slot| slot.digest),
            on_trial: self.on_trial().map(|(slot, _)| slot.version),
        }
    }

    /// Puts a configuration on trial.
    ///
    /// # Errors
    /// If another one is on trial, or a file can't be written.
    pub fn stage(&mut self, slot: &ConfigSlot, time: Moment) -> io::Result<()> {
        if self.staged.is_some() {
            return Err(io::Error::other("another configuration is on trial"));
        }
        let VersionFloor::Known(floor) = self.floor else {
            return Err(io::Error::other("the version floor is not known; run config repair"));
        };
        // the floor comes last: without it, and before any history, the folder counts as unused
        put(&self.files, REPLAYS, &self.known)?;
        put(&self.files, FLOOR, &floor)?;
        let goal = LiveConfig::Remote(slot.clone());
        let step = StagedStep::Trial;
        self.put_staged(StagedConfig { goal, tries_left: TRIES_MAX, step })?;
        self.see(time)?;
        self.remember(slot, time)
    }

    /// Lowers the tries of the configuration on trial. Returns those that are left after this one; none
    /// if there was none left, and nothing has changed then.
    ///
    /// # Errors
    /// If the file can't be written: the configuration must not be run then.
    pub fn begin_try(&mut self) -> io::Result<Option<u8>> {
        let Some(staged) = self.staged.clone().filter(|staged| staged.step == StagedStep::Trial)
        else {
            return Err(io::Error::other("no configuration is on trial"));
        };
        let Some(tries_left) = staged.tries_left.checked_sub(1) else { return Ok(None) };
        self.put_staged(StagedConfig { tries_left, ..staged })?;
        Ok(Some(tries_left))
    }

    /// Makes the configuration on trial count, and raises the version floor.
    ///
    /// # Errors
    /// If none is on trial, or a file can't be written.
    pub fn keep(&mut self, time: Moment) -> io::Result<()> {
        let Some((slot, _)) = self.on_trial() else {
            return Err(io::Error::other("no configuration is on trial"));
        };
        let goal = LiveConfig::Remote(slot.clone());
        let floor = self.known_floor().max(slot.version);
        let line = HistoryLine::of(&goal, UpdateState::Kept, None, self.watermark.max(time), floor);
        self.begin_keep(goal, KeepRecord { floor, line })
    }

    /// Drops the configuration on trial.
    ///
    /// # Errors
    /// If none is on trial, or a file can't be written.
    pub fn drop_trial(&mut self, why: &str, time: Moment) -> io::Result<()> {
        let Some(staged) = self.staged.clone().filter(|staged| staged.step == StagedStep::Trial)
        else {
            return Err(io::Error::other("no configuration is on trial"));
        };
        self.see(time)?;
        self.put_staged(StagedConfig { step: StagedStep::Drop(why.to_owned()), ..staged })?;
        self.finish()
    }

    /// Makes the configuration before the one that counts count again. With `steps_down` the version
    /// floor becomes its version, so that higher versions are accepted again.
    ///
    /// # Errors
    /// If there is none, one is on trial, or a file can't be written.
    pub fn roll_back(&mut self, steps_down: bool, time: Moment) -> io::Result<()> {
        if self.staged.is_some() {
            return Err(io::Error::other("a configuration is on trial; drop it first"));
        }
        let goal = self.before()?;
        let floor = if steps_down { goal.version() } else { self.known_floor() };
        let why = format!("taken back by the operator from version {}", self.current.version());
        let at = self.watermark.max(time);
        let line = HistoryLine::of(&goal, UpdateState::RolledBack, Some(&why), at, floor);
        self.begin_keep(goal, KeepRecord { floor, line })
    }

    /// Sets the version floor again from what else is known, and forgets damaged files. With
    /// `clock` the latest time seen becomes this one, which may be earlier.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn repair(&mut self, clock: Option<Moment>, time: Moment) -> io::Result<u64> {
        let floor = self.known_floor();
        let highest = self.history.iter().map(|line| line.version).max().unwrap_or_default();
        if let VersionFloor::Missing { .. } = self.floor {
            // updates that are not known any more may be among those of lower versions
            self.known.below = self.known.below.max(highest);
        }
        put(&self.files, REPLAYS, &self.known)?;
        let why = "the version floor and the time were set by the operator";
        let at = clock.unwrap_or(self.watermark.max(time));
        let line = HistoryLine::of(&self.current, UpdateState::Kept, Some(why), at, floor);
        self.put_history(line)?;
        put(&self.files, CURRENT, &self.current)?;
        put(&self.files, WATERMARK, &at)?;
        self.watermark = at;
        put(&self.files, FLOOR, &floor)?;
        self.floor = VersionFloor::Known(floor);
        Ok(floor)
    }

    fn known_floor(&self) -> u64 {
        match self.floor {
            VersionFloor::Known(floor) | VersionFloor::Missing { known: floor } => floor,
        }
    }

    /// The write that decides that a configuration counts, and all others.
    fn begin_keep(&mut self, goal: LiveConfig, record: KeepRecord) -> io::Result<()> {
        self.put_staged(StagedConfig { goal, tries_left: 0, step: StagedStep::Keep(record) })?;
        self.finish()
    }

    /// Does what is missing of the last decision. Each write may be repeated.
    fn finish(&mut self) -> io::Result<()> {
        let Some(staged) = self.staged.clone() else { return Ok(()) };
        match staged.step {
            StagedStep::Trial => {
                // the update is known before anything else happens with it
                let slot = staged.goal.remote().cloned();
                let is_known = |slot: &ConfigSlot| self.known.digests().contains(&slot.update);
                match slot.filter(|slot| !is_known(slot)) {
                    Some(slot) => self.remember(&slot, self.watermark),
                    None => Ok(()),
                }
            }
            StagedStep::Keep(KeepRecord { floor, line }) => {
                if self.current != staged.goal {
                    put(&self.files, PREVIOUS, &self.current)?;
                    self.previous = Some(self.current.clone());
                    put(&self.files, CURRENT, &staged.goal)?;
                    self.current = staged.goal;
                }
                self.see(line.at)?;
                put(&self.files, FLOOR, &floor)?;
                self.floor = VersionFloor::Known(floor);
                self.put_history(line)?;
                self.remove_staged()
            }
            StagedStep::Drop(why) => {
                let (at, floor) = (self.watermark, self.known_floor());
                let state = UpdateState::RolledBack;
                self.put_history(HistoryLine::of(&staged.goal, state, Some(&why), at, floor))?;
                self.remove_staged()
            }
        }
    }

    /// Remembers the latest time, which the service does now and then: a clock that is set back later does
    /// not make what has expired valid again.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn see(&mut self, time: Moment) -> io::Result<()> {
        if time > self.watermark {
            put(&self.files, WATERMARK, &time)?;
            self.watermark = time;
        }
        Ok(())
    }

    fn remember(&mut self, slot: &ConfigSlot, time: Moment) -> io::Result<()> {
        let known = self.known.with(slot, self.watermark.max(time));
        put(&self.files, REPLAYS, &known)?;
        self.known = known;
        Ok(())
    }

    fn put_staged(&mut self, staged: StagedConfig) -> io::Result<()> {
        put(&self.files, STAGED, &staged)?;
        self.staged = Some(staged);
        Ok(())
    }

    fn remove_staged(&mut self) -> io::Result<()> {
        disk::remove(&self.files, STAGED)?;
        self.staged = None;
        Ok(())
    }

    /// Adds a line, unless it is the last one already.
    fn put_history(&mut self, line: HistoryLine) -> io::Result<()> {
        if self.history.last() == Some(&line) {
            return Ok(());
        }
        let lines = appended(&self.history, line);
        let mut text = String::new();
        for line in &lines {
            text.push_str(&serde_json::to_string(line)?);
            text.push('\n');
        }
        disk::replace(&self.files, HISTORY, text.as_bytes())?;
        self.history = lines;
        Ok(())
    }
}

fn put(files: &impl StateFiles, name: &str, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    disk::replace(files, name, &text)
}

/// The content of a file; none if there is none or it is damaged.
fn json<T: DeserializeOwned>(
    files: &impl StateFiles,
    name: &str,
    damages: &mut Vec<String>,
) -> io::Result<Option<T>> {
    let Some(bytes) = files.read(name)? else { return Ok(None) };
    match parse(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            damages.push(damage(name, &error.to_string()));
            Ok(None)
        }
    }
}

fn config(
    files: &impl StateFiles,
    name: &str,
    damages: &mut Vec<String>,
) -> io::Result<Option<LiveConfig>> {
    let found: Option<LiveConfig> = json(files, name, damages)?;
    let is_intact = found.as_ref().is_none_or(LiveConfig::is_intact);
    if !is_intact {
        damages.push(damage(name, "its digest is another one"));
    }
    Ok(found.filter(|_| is_intact))
}

fn lines(files: &impl StateFiles, damages: &mut Vec<String>) -> io::Result<Vec<HistoryLine>> {
    let bytes = files.read(HISTORY)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Result<Vec<_>, _> = text.lines().map(|line| parse(line.as_bytes())).collect();
    Ok(lines.unwrap_or_else(|error| {
        damages.push(damage(HISTORY, &error.to_string()));
        Vec::new()
    }))
}

fn damage(name: &str, why: &str) -> String {
    format!("fleet/{name} in the state folder is damaged ({why}); run pilotlight config repair")
}

#[cfg(test)]
mod tests;
