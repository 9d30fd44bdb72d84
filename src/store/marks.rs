//! Marks of the messages in hand: which of them a process that died was working on.
//!
//! The broker delivers a message without an acknowledgement again, so one that ends the process would
//! end every process after it. A message that was refused for its mark stays marked: if the
//! acknowledgement of the refusal is lost, the message must not be answered after it was refused.
//!
//! The file has a fixed number of slots. It is written without a sync, which costs some microseconds: it
//! outlives the process. A power failure is not the message's fault: a process that ended with the whole
//! system counts no death. Marks that can't be written are left out with a warning; the service works
//! without them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files;
use crate::limits::{DEATHS_MAX, MARKS_MAX};

/// Digest (8), stage (1), deaths (1), start of the system (6).
const SLOT_BYTES: usize = 16;
/// A part of the identifier that Linux draws at each start (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Being read and checked, which happens to one message at a time.
const CHECKED: u8 = 1;
/// Accepted, and not answered yet.
const ACCEPTED: u8 = 2;
/// Refused for its mark.
const REFUSED: u8 = 3;

/// A start of the system, as a mark names it; zeros if it is not known.
type Boot = [u8; 6];

/// The marks of one interface.
#[derive(Debug)]
pub(crate) struct Marks {
    path: PathBuf,
    file: Option<File>,
    slots: Vec<Slot>,
    boot: Boot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    digest: u64,
    stage: u8,
    /// How often a process died with the message in hand.
    deaths: u8,
    /// Left by a process that died and not delivered again yet, or refused: not in hand.
    is_left: bool,
}

/// The slot of a message in hand; none if all slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(Option<usize>);

impl Marks {
    /// Reads the marks that the last process left in this folder; without a folder nothing is marked.
    pub(crate) fn open(folder: Option<&Path>) -> Marks {
        Marks::open_in(folder, boot())
    }

    fn open_in(folder: Option<&Path>, boot: Boot) -> Marks {
        let path = folder.map(|folder| folder.join("in-hand")).unwrap_or_default();
        let mut marks = Marks { path, file: None, slots: vec![Slot::default(); MARKS_MAX], boot };
        if folder.is_some() {
            match marks.read() {
                Ok(file) => marks.file = Some(file),
                Err(error) => {
                    let path = marks.path.display();
                    tracing::warn!(%path, %error, "messages in hand are not marked");
                }
            }
        }
        marks
    }

    fn read(&mut self) -> io::Result<File> {
        let before = match files::read(&self.path, (MARKS_MAX * SLOT_BYTES) as u64) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            before => before?,
        };
        for (slot, bytes) in self.slots.iter_mut().zip(before.chunks_exact(SLOT_BYTES)) {
            let (digest, rest) = bytes.split_at(8);
            let digest = u64::from_le_bytes(digest.try_into().unwrap_or_default());
            let is_same_start = rest[2..] == self.boot;
            let (stage, deaths) = match rest[0] {
                REFUSED => (REFUSED, rest[1]),
                CHECKED | ACCEPTED if is_same_start => (rest[0], rest[1].saturating_add(1)),
                CHECKED | ACCEPTED => (ACCEPTED, rest[1]),
                _ => continue,
            };
            *slot = Slot { digest, stage, deaths, is_left: true };
        }
        let file = files::own().read(true).truncate(false).open(&self.path)?;
        file.set_len((MARKS_MAX * SLOT_BYTES) as u64)?;
        for at in 0..self.slots.len() {
            write(&file, at, self.slots[at], self.boot)?;
        }
        Ok(file)
    }

    /// Marks a message before it is read. `again`: whether the broker delivers it another time.
    ///
    /// # Errors
    /// If the process died while it was checked, or [`DEATHS_MAX`] times while it was in hand: it must
    /// not be taken, now or if it is delivered again. The same message may be sent anew.
    pub(crate) fn check(&mut self, digest: u64, again: bool) -> Result<Mark, Suspect> {
        let left = self.slots.iter().position(|slot| slot.is_left && slot.digest == digest);
        let Slot { stage, deaths, .. } = left.map_or(Slot::default(), |at| self.slots[at]);
        let is_anew = stage == REFUSED && !again;
        let deaths = if is_anew { 0 } else { deaths };
        if let Some(at) = left.filter(|_| !is_anew)
            && (stage == CHECKED || stage == REFUSED || deaths >= DEATHS_MAX)
        {
            self.set(at, Slot { digest, stage: REFUSED, deaths, is_left: true });
            return Err(Suspect { deaths });
        }
        // a mark that was left is overwritten last: its message may still be delivered
        let of = |is: fn(&Slot) -> bool| self.slots.iter().position(is);
        let free = || of(|slot| slot.stage == 0).or_else(|| of(|slot| slot.stage == REFUSED));
        let at = left.or_else(free).or_else(|| of(|slot| slot.is_left));
        if let Some(at) = at {
            self.set(at, Slot { digest, stage: CHECKED, deaths, is_left: false });
        }
        Ok(Mark(at))
    }

    /// The message was checked; returns whether it stays marked, because it was accepted.
    pub(crate) fn checked(&mut self, mark: Mark, is_accepted: bool) -> bool {
        if let Some(at) = mark.0.filter(|_| is_accepted) {
            self.set(at, Slot { stage: ACCEPTED, ..self.slots[at] });
        } else {
            self.answered(mark);
        }
        is_accepted
    }

    /// The message has its reply.
    pub(crate) fn answered(&mut self, mark: Mark) {
        if let Some(at) = mark.0 {
            self.set(at, Slot::default());
        }
    }

    /// The process ends as it should: no message in hand is to blame.
    pub(crate) fn close(mut self) {
        for at in 0..self.slots.len() {
            if !matches!(self.slots[at].stage, 0 | REFUSED) {
                self.set(at, Slot::default());
            }
        }
        let is_empty = self.slots.iter().all(|slot| slot.stage == 0);
        if self.file.take().is_some_and(|_| is_empty)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "the marks of messages in hand cannot be removed");
        }
    }

    fn set(&mut self, at: usize, slot: Slot) {
        self.slots[at] = slot;
        if let Some(file) = &self.file
            && let Err(error) = write(file, at, slot, self.boot)
        {
            tracing::warn!(path = %self.path.display(), %error, "messages in hand are not marked");
            self.file = None;
        }
    }
}

/// This start of the system.
fn boot() -> Boot {
    let id = files::read(Path::new(BOOT_ID), 64).unwrap_or_default();
    let mut digits = id.iter().filter_map(|byte| char::from(*byte).to_digit(16));
    let mut byte = || Some(digits.next()? << 4 | digits.next()?);
    std::array::from_fn(|_| byte().and_then(|byte| u8::try_from(byte).ok()).unwrap_or_default())
}

fn write(file: &File, at: usize, slot: Slot, boot: Boot) -> io::Result<()> {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&slot.digest.to_le_bytes());
    (bytes[8], bytes[9]) = (slot.stage, slot.deaths);
    bytes[10..].copy_from_slice(&boot);
    file.write_all_at(&bytes, (at * SLOT_BYTES) as u64)
}

/// A message with which a process died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suspect {
    /// How often.
    pub(crate) deaths: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &tempfile::TempDir) -> Marks {
        Marks::open(Some(folder.path()))
    }

    #[test]
    fn a_message_that_ends_the_process_while_it_is_checked_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut marks = open(&folder);
        let other = marks.check(1, true).unwrap();
        marks.checked(other, true);
        marks.check(7, true).unwrap();
        drop(marks);
        let mut marks = open(&folder);
        assert_eq!(marks.check(7, true), Err(Suspect { deaths: 1 }));
        // the other one was only in hand
        assert!(marks.check(1, true).is_ok());
        // delivered again, also to a later process, it has the same reply
        assert_eq!(marks.check(7, true), Err(Suspect { deaths: 1 }));
        marks.close();
        let mut marks = open(&folder);
        assert_eq!(marks.check(7, true), Err(Suspect { deaths: 1 }));
        // sent anew, it is a message like others
        let mark = marks.check(7, false).unwrap();
        marks.checked(mark, true);
        drop(marks);
        let mut marks = open(&folder);
        let mark = marks.check(7, true).unwrap();
        assert_eq!(marks.slots[mark.0.unwrap()].deaths, 1);
    }

    #[test]
    fn a_message_in_hand_is_given_up_after_several_deaths() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..DEATHS_MAX {
            let mut marks = open(&folder);
            let mark = marks.check(3, true).unwrap();
            marks.checked(mark, true);
        }
        assert_eq!(open(&folder).check(3, true), Err(Suspect { deaths: DEATHS_MAX }));
    }

    #[test]
    fn a_power_failure_is_no_death() {
        let folder = tempfile::tempdir().unwrap();
        for start in 0..3 * DEATHS_MAX {
            let mut marks = Marks::open_in(Some(folder.path()), [start; 6]);
            let mark = marks.check(3, true).unwrap();
            marks.checked(mark, start % 2 == 0);
            if start % 2 == 1 {
                // while it was checked
                marks.check(3, true).unwrap();
            }
        }
        // deaths in one start of the system are counted, those before included
        assert_ne!(boot(), [0; 6]);
        for deaths in 1..DEATHS_MAX {
            let mut marks = open(&folder);
            let mark = marks.check(3, true).unwrap();
            assert_eq!(marks.slots[mark.0.unwrap()].deaths, deaths - 1);
            marks.checked(mark, true);
        }
        drop(open(&folder));
        assert_eq!(open(&folder).check(3, true), Err(Suspect { deaths: DEATHS_MAX }));
    }

    #[test]
    fn an_answered_message_and_a_clean_end_leave_no_mark() {
        let folder = tempfile::tempdir().unwrap();
        let mut marks = open(&folder);
        let mark = marks.check(3, true).unwrap();
        marks.checked(mark, true);
        marks.answered(mark);
        drop(marks);
        let mut marks = open(&folder);
        marks.check(4, true).unwrap();
        marks.close();
        let mut marks = open(&folder);
        assert!(marks.check(3, true).is_ok() && marks.check(4, true).is_ok());
    }

    #[test]
    fn more_messages_than_slots_and_a_broken_file_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in-hand"), [CHECKED; 77]).unwrap();
        let mut marks = open(&folder);
        for digest in 0..2 * MARKS_MAX as u64 {
            let mark = marks.check(digest, true).unwrap();
            marks.checked(mark, true);
        }
        std::fs::write(folder.path().join("in-hand"), vec![0; 1 << 20]).unwrap();
        assert!(open(&folder).check(1, true).is_ok());
        assert!(Marks::open(None).check(1, true).is_ok());
    }
}
