//! The power fails at every operation on a file: afterwards the old or the new configuration counts, and
//! no update that was received is accepted again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::limits::fleet::{HISTORY_MAX, REPLAYS_MAX};

const NOW: Moment = Moment(1_795_744_800);

/// A folder that loses what is not durable when the power fails.
#[derive(Debug, Clone, Default)]
struct Failing {
    /// The names and their files, as programs see them.
    seen: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
    /// The same on disk.
    durable: Rc<RefCell<BTreeMap<String, Vec<u8>>>>,
    /// Names of files whose content is durable.
    synced: Rc<RefCell<Vec<String>>>,
    /// Operations until the power fails.
    left: Rc<Cell<usize>>,
}

/// What becomes of what is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is lost.
    Lost,
    /// Renames reach the disk, contents only in part.
    Torn,
    /// It happens to reach the disk.
    Written,
}

impl Failing {
    fn new() -> Failing {
        let folder = Failing::default();
        folder.left.set(usize::MAX);
        folder
    }

    fn operation(&self) -> io::Result<()> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(io::Error::other("the power has failed"));
        };
        self.left.set(left);
        Ok(())
    }

    /// The folder after the power has come back.
    fn restarted(&self, fate: Fate) -> Failing {
        let mut files = match fate {
            Fate::Lost => self.durable.borrow().clone(),
            Fate::Torn | Fate::Written => self.seen.borrow().clone(),
        };
        let durable = self.durable.borrow();
        for (name, bytes) in &mut files {
            let is_synced = self.synced.borrow().contains(name) || durable.get(name) == Some(bytes);
            if fate == Fate::Torn && !is_synced {
                bytes.truncate(bytes.len() / 2);
            }
        }
        let folder = Failing::new();
        *folder.seen.borrow_mut() = files.clone();
        *folder.durable.borrow_mut() = files;
        folder
    }
}

impl StateFiles for Failing {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.seen.borrow().get(name).cloned())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // a part of the bytes, before the operation counts as done
        self.synced.borrow_mut().retain(|synced| synced != name);
        let half = bytes[..bytes.len() / 2].to_vec();
        self.seen.borrow_mut().insert(name.to_owned(), half);
        self.operation()?;
        self.seen.borrow_mut().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.operation()?;
        self.synced.borrow_mut().push(name.to_owned());
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.operation()?;
        let bytes = self.seen.borrow_mut().remove(from).unwrap();
        self.seen.borrow_mut().insert(to.to_owned(), bytes);
        let is_synced = self.synced.borrow().iter().any(|name| name == from);
        self.synced.borrow_mut().retain(|name| name != from && name != to);
        if is_synced {
            self.synced.borrow_mut().push(to.to_owned());
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operation()?;
        self.seen.borrow_mut().remove(name);
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.operation()?;
        *self.durable.borrow_mut() = self.seen.borrow().clone();
        Ok(())
    }
}

fn slot(version: u64) -> ConfigSlot {
    let config = format!("{{\"version\": {version}}}");
    ConfigSlot {
        version,
        update: Digest::of(&version.to_be_bytes()),
        key: "ops-2026".to_owned(),
        expires: Moment(NOW.0 + 3600),
        digest: Digest::of(config.as_bytes()),
        config,
    }
}

/// The state after these versions were kept.
fn after(versions: &[u64]) -> Slots<Failing> {
    let mut slots = Slots::open(Failing::new()).unwrap();
    for version in versions {
        slots.stage(&slot(*version), NOW).unwrap();
        slots.begin_try().unwrap();
        slots.keep(NOW).unwrap();
    }
    slots
}

fn memory(slots: &Slots<Failing>) -> Memory {
    slots.memory("pi-7", None, Moment(0), Digest::of(b"local"))
}

/// The lowest version that is accepted of an update that is not known.
fn floor(slots: &Slots<Failing>) -> u64 {
    match memory(slots).floor {
        VersionFloor::Known(floor) => floor,
        missing @ VersionFloor::Missing { .. } => panic!("{missing:?}: {:?}", slots.damages),
    }
}

type Change<'c> = &'c dyn Fn(&mut Slots<Failing>) -> io::Result<()>;

/// Lets the power fail at each operation of a change, and looks at the state after each of the fates, and
/// after a second failure during the recovery.
fn with_failures(begin: &Slots<Failing>, change: Change<'_>, look: &dyn Fn(&Slots<Failing>, bool)) {
    let mut cuts = 0;
    loop {
        let folder = begin.files.restarted(Fate::Written);
        let mut slots = Slots::open(folder.clone()).unwrap();
        folder.left.set(cuts);
        let is_done = change(&mut slots).is_ok();
        for fate in [Fate::Lost, Fate::Torn, Fate::Written] {
            look(&Slots::open(folder.restarted(fate)).unwrap(), is_done);
            for second in 0..40 {
                let again = folder.restarted(fate);
                again.left.set(second);
                let is_enough = Slots::open(again.clone()).is_ok();
                // what is read without recovery is right as well
                look(&Slots::read(again.restarted(Fate::Lost)).unwrap(), is_done);
                look(&Slots::open(again.restarted(Fate::Torn)).unwrap(), is_done);
                if is_enough {
                    break;
                }
            }
        }
        if is_done {
            assert!(cuts > 3, "nothing was cut");
            println!("the power failed at {cuts} operations");
            return;
        }
        cuts += 1;
    }
}

#[test]
fn the_power_may_fail_during_each_write_of_a_whole_update() {
    for before in [&[] as &[u64], &[11], &[10, 11]] {
        let begin = after(before);
        let old = begin.live().version();
        let update = |slots: &mut Slots<Failing>| {
            slots.stage(&slot(12), NOW)?;
            slots.begin_try()?;
            slots.keep(NOW)
        };
        with_failures(&begin, &update, &|slots, is_done| {
            let live = slots.live();
            assert!(slots.damages.is_empty(), "{:?}", slots.damages);
            assert!(live.is_intact() && [old, 12].contains(&live.version()), "{live:?}");
            if is_done {
                assert_eq!(live.version(), 12);
            }
            let memory = memory(slots);
            // the floor is that of what counts, not of what is tried
            assert_eq!(floor(slots), live.version());
            for version in before {
                assert!(memory.known.contains(&slot(*version).update), "{version}");
            }
            let is_received = slots.on_trial().is_some() || live.version() == 12;
            assert_eq!(memory.known.contains(&slot(12).update), is_received);
            if live.version() == 12 {
                assert_eq!(slots.on_trial(), None);
                let previous = slots.previous.as_ref().map(LiveConfig::version);
                assert!(slots.staged.is_some() || previous == Some(old), "{previous:?}");
            }
        });
    }
}

#[test]
fn the_power_may_fail_while_a_trial_is_dropped() {
    let mut begin = after(&[11]);
    begin.stage(&slot(12), NOW).unwrap();
    let drop = |slots: &mut Slots<Failing>| slots.drop_trial("worse", NOW);
    with_failures(&begin, &drop, &|slots, is_done| {
        assert_eq!((slots.live().version(), floor(slots)), (11, 11));
        // it is never tried again
        assert!(memory(slots).known.contains(&slot(12).update));
        if is_done {
            assert_eq!(slots.on_trial(), None);
            let dropped = slots.history().iter().filter(|line| line.version == 12);
            assert!(dropped.count() <= 1, "{:?}", slots.history());
        }
    });
}

#[test]
fn the_power_may_fail_during_a_rollback() {
    for steps_down in [false, true] {
        let begin = after(&[11, 12]);
        let roll_back = |slots: &mut Slots<Failing>| slots.roll_back(steps_down, NOW);
        with_failures(&begin, &roll_back, &|slots, is_done| {
            let version = slots.live().version();
            assert!([11, 12].contains(&version));
            if is_done {
                assert_eq!(version, 11);
                let line = slots.history().last().unwrap();
                assert!(slots.staged.is_some() || line.state == "rolled-back", "{line:?}");
            }
            // it is lowered by permission alone, and what was received stays known
            let lowest = if steps_down { 11 } else { 12 };
            assert!((lowest..=12).contains(&floor(slots)), "{}", floor(slots));
            for version in [11, 12] {
                assert!(memory(slots).known.contains(&slot(version).update));
            }
        });
    }
    let mut slots = after(&[11, 12]);
    slots.roll_back(true, NOW).unwrap();
    assert_eq!((slots.live().version(), floor(&slots)), (11, 11));
    // and back again
    slots.roll_back(false, NOW).unwrap();
    assert_eq!((slots.live().version(), floor(&slots)), (12, 11));
    let mut first = after(&[12]);
    first.roll_back(false, NOW).unwrap();
    assert_eq!(first.live(), &LiveConfig::Local {});
    assert_eq!(floor(&first), 12);
    assert!(after(&[]).roll_back(false, NOW).is_err());
}

/// A service that crashes with each try comes to an end of it.
#[test]
fn tries_are_lowered_before_each_try() {
    let mut begin = after(&[11]);
    begin.stage(&slot(12), NOW).unwrap();
    let folder = begin.files;
    let mut tries = 0;
    loop {
        let mut slots = Slots::open(folder.clone()).unwrap();
        let Some(left) = slots.begin_try().unwrap() else { break };
        tries += 1;
        // the power fails while it runs
        let (_, kept) = Slots::open(folder.restarted(Fate::Lost))
            .unwrap()
            .on_trial()
            .map(|(s, t)| (s.version, t))
            .unwrap();
        assert_eq!(kept, left);
    }
    assert_eq!(tries, TRIES_MAX);
    // what can't be lowered is not tried
    let folder = after(&[11]).files;
    let mut slots = Slots::open(folder.clone()).unwrap();
    slots.stage(&slot(12), NOW).unwrap();
    folder.left.set(0);
    assert!(slots.begin_try().is_err());
}

#[test]
fn a_removed_floor_is_noticed() {
    for removed in [FLOOR, REPLAYS] {
        let mut slots = after(&[11, 12]);
        slots.stage(&slot(13), NOW).unwrap();
        slots.drop_trial("worse", NOW).unwrap();
        let folder = slots.files;
        folder.seen.borrow_mut().remove(removed);
        let mut slots = Slots::open(folder.clone()).unwrap();
        assert_eq!(memory(&slots).floor, VersionFloor::Missing { known: 12 });
        assert_eq!(slots.live().version(), 12);
        assert!(slots.stage(&slot(14), NOW).is_err());
        // the operator sets it again: nothing that was received is accepted
        assert_eq!(slots.repair(None, NOW).unwrap(), 12);
        let slots = Slots::open(folder).unwrap();
        let least = if removed == REPLAYS { 13 } else { 12 };
        assert!(floor(&slots) >= least, "{}", floor(&slots));
        assert!(memory(&slots).known.contains(&slot(13).update));
    }
    // an older floor and an emptied one
    for text in ["3", "", "x", "-1", "12.5"] {
        let folder = after(&[11, 12]).files;
        folder.seen.borrow_mut().insert(FLOOR.to_owned(), text.into());
        let slots = Slots::open(folder).unwrap();
        let expected = [VersionFloor::Known(12), VersionFloor::Missing { known: 12 }];
        assert!(expected.contains(&memory(&slots).floor), "{text}");
    }
}

#[test]
fn a_damaged_configuration_is_replaced_by_the_one_before() {
    for (name, live) in [(CURRENT, 11), (PREVIOUS, 12), (STAGED, 12), (HISTORY, 12)] {
        let mut slots = after(&[11, 12]);
        slots.stage(&slot(13), NOW).unwrap();
        let folder = slots.files;
        let mut bytes = folder.seen.borrow()[name].clone();
        let at = bytes.windows(9).rposition(|part| part == b"\"version\"").unwrap();
        bytes[at + 1] = b'V';
        folder.seen.borrow_mut().insert(name.to_owned(), bytes);
        let slots = Slots::open(folder).unwrap();
        assert_eq!(slots.live().version(), live, "{name}");
        assert!(slots.damages.iter().any(|one| one.contains(name)), "{:?}", slots.damages);
        assert!(floor(&slots) >= 12);
        assert!(memory(&slots).known.contains(&slot(12).update), "{name}");
    }
}

#[test]
fn the_clock_may_be_set_back() {
    let mut slots = after(&[11]);
    slots.stage(&slot(12), Moment(NOW.0 + 500)).unwrap();
    let folder = slots.files;
    let slots = Slots::open(folder.clone()).unwrap();
    let early = slots.memory("pi-7", None, Moment(5), Digest::of(b""));
    assert_eq!(early.time(), Moment(NOW.0 + 500));
    // with the file removed, the history has the time
    let folder = after(&[11]).files;
    folder.seen.borrow_mut().remove(WATERMARK);
    let mut slots = Slots::open(folder.clone()).unwrap();
    assert_eq!(memory(&slots).watermark, NOW);
    slots.repair(Some(Moment(7)), Moment(7)).unwrap();
    assert_eq!(memory(&Slots::open(folder).unwrap()).watermark, Moment(7));
}

/// Known updates have a bound, beyond which their versions are refused as a whole.
#[test]
fn a_flood_of_updates_makes_none_acceptable_again() {
    let mut slots = after(&[1]);
    let count = REPLAYS_MAX as u64 + 50;
    for version in 2..count {
        slots.stage(&slot(version), NOW).unwrap();
        slots.drop_trial("worse", NOW).unwrap();
    }
    let folder = slots.files;
    let slots = Slots::open(folder).unwrap();
    let memory = memory(&slots);
    let VersionFloor::Known(floor) = memory.floor else { panic!("{memory:?}") };
    assert!(memory.known.len() <= REPLAYS_MAX + HISTORY_MAX + 4);
    for version in 2..count {
        let is_refused = version <= floor || memory.known.contains(&slot(version).update);
        assert!(is_refused, "{version}");
    }
    assert_eq!(slots.history().len(), HISTORY_MAX);
    // expired ones are forgotten: their time refuses them
    let mut slots = after(&[1]);
    for version in 2..10 {
        slots.stage(&slot(version), Moment(NOW.0 + 4000 * version)).unwrap();
        slots.drop_trial("worse", Moment(0)).unwrap();
    }
    assert_eq!(slots.known.digests().len(), 1);
}

#[test]
fn files_are_those_of_one_process_and_of_one_user() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fleet");
    let mut slots = Slots::open(DiskFolder::to_write(&path).unwrap()).unwrap();
    slots.stage(&slot(12), NOW).unwrap();
    slots.begin_try().unwrap();
    slots.keep(NOW).unwrap();
    assert!(DiskFolder::to_write(&path).unwrap_err().to_string().contains("another process"));
    let read = Slots::read(DiskFolder::to_read(&path)).unwrap();
    assert_eq!(read.live().version(), 12);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path) & 0o777, 0o700);
    for file in [CURRENT, PREVIOUS, FLOOR, REPLAYS, HISTORY, WATERMARK] {
        assert_eq!(mode(&path.join(file)) & 0o777, 0o600, "{file}");
    }
    drop(slots);
    let mut slots = Slots::read(DiskFolder::to_read(&path)).unwrap();
    assert!(slots.stage(&slot(13), NOW).is_err(), "opened to read");
    DiskFolder::to_write(&path).unwrap();
}
