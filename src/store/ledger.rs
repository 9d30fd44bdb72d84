//! The books on disk: a call's hold is there before anything is sent, so that a service that ends
//! in the middle knows afterwards what it may have spent.
//!
//! The file has one JSON value a line: first the books as they were when the file was made, then
//! what came since. A last line without an end was never acknowledged and does not count. A thread
//! of its own writes whatever waits and makes it durable once for all of it, if somebody waits for
//! that: a bill that a power failure takes leaves the hold, which is more. Without caps nobody waits,
//! and the thread is not woken for each line: what was spent in the last [`LEDGER_REST`] before a sudden
//! end may be missing.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::files;
use crate::clock;
use crate::limits::{
    LEDGER_BYTES_MAX, LEDGER_LINES_MAX, LEDGER_LOCK_WAIT, LEDGER_REST, LEDGER_WAITING_MAX,
};
use crate::model::generate::Fault;
use crate::money::account::{LedgerEntry, SpendingAccount};
use crate::money::{Hour, Usd};

/// The file's name in the folder of what the service keeps.
const NAME: &str = "spent.jsonl";
/// Held while a service keeps the books of this folder.
const LOCK: &str = "spent.lock";
/// The call of the line that stands for what can't be read any more.
const LOST: u64 = u64::MAX;

/// The first line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    books: SpendingAccount,
}

/// A line to write, and who waits for it to be durable.
struct LedgerWrite {
    entry: LedgerEntry,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// The way to the file.
pub(crate) struct Ledger {
    to: mpsc::Sender<LedgerWrite>,
    /// Nothing may be spent that is not in the books.
    is_binding: bool,
}

/// A hold on its way to the disk.
pub(crate) enum Pending {
    /// Nobody needs to wait for it.
    Free,
    /// It is being written.
    Written(oneshot::Receiver<Result<(), String>>),
    /// There was no room for it.
    Dropped,
}

/// What the thread has.
pub(crate) struct Writer {
    from: mpsc::Receiver<LedgerWrite>,
    disk: Result<Disk, String>,
    /// As the ledger's.
    is_binding: bool,
}

struct Disk {
    path: PathBuf,
    file: File,
    books: SpendingAccount,
    lines: usize,
    /// The last writing failed: what stands at the end of the file is not known.
    is_torn: bool,
    /// Given back when it is closed.
    _lock: File,
}

/// The hour of the calendar.
pub(crate) fn hour() -> Hour {
    Hour::at(clock::since_epoch().as_secs())
}

/// Opens the books of this folder; also says what they say.
pub(crate) fn open(
    folder: Option<&Path>,
    is_binding: bool,
    hour: Hour,
) -> (Ledger, Writer, SpendingAccount) {
    let (to, from) = mpsc::channel(LEDGER_WAITING_MAX);
    let disk = match folder {
        Some(folder) => Disk::open(folder, hour).map_err(|error| {
            let folder = folder.display();
            if is_binding {
                tracing::error!(%folder, %error, "nothing can be spent: the books can't be kept");
            } else {
                tracing::warn!(%folder, %error, "what is spent can't be written down");
            }
            format!("the books can't be kept: {error}")
        }),
        None => Err("there is no folder for the books; see PILOTLIGHT_STATE".to_owned()),
    };
    let books =
        disk.as_ref().map_or_else(|_| SpendingAccount::default(), |disk| disk.books.clone());
    (Ledger { to, is_binding }, Writer { from, disk, is_binding }, books)
}

impl Ledger {
    /// Puts a hold on its way.
    pub(crate) fn hold(&self, entry: LedgerEntry) -> Pending {
        if !self.is_binding {
            self.note(entry);
            return Pending::Free;
        }
        let (done, told) = oneshot::channel();
        match self.to.try_send(LedgerWrite { entry, done: Some(done) }) {
            Ok(()) => Pending::Written(told),
            Err(_) => Pending::Dropped,
        }
    }

    /// Writes a line that need not be durable at once: without it the hold counts.
    pub(crate) fn note(&self, entry: LedgerEntry) {
        if self.to.try_send(LedgerWrite { entry, done: None }).is_err() {
            tracing::warn!("the ledger is behind; a call counts as the most that it can cost");
        }
    }
}

impl Pending {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if it can't be: nothing may be sent.
    pub(crate) async fn done(self) -> Result<(), Fault> {
        let told = match self {
            Pending::Free => return Ok(()),
            Pending::Written(told) => told,
            Pending::Dropped => {
                return Err(Fault::unavailable(
                    "the ledger is behind; nothing was sent".to_owned(),
                ));
            }
        };
        told.await
            .unwrap_or_else(|_| Err("the books are closed".to_owned()))
            .map_err(|why| Fault::unavailable(format!("nothing was sent: {why}")))
    }
}

impl Writer {
    /// Writes until the ledger is dropped. To be run on a thread of its own.
    pub(crate) fn run(mut self) {
        let mut orders = Vec::new();
        // ends with the ledger
        while self.from.blocking_recv_many(&mut orders, LEDGER_WAITING_MAX) > 0 {
            let result = match &mut self.disk {
                Ok(disk) => {
                    let is_awaited = orders.iter().any(|order| order.done.is_some());
                    let entries = orders.iter().map(|order| &order.entry);
                    disk.write(entries, is_awaited).map_err(|error| {
                        let file = disk.path.display();
                        tracing::warn!(%file, %error, "the books can't be written");
                        format!("the books can't be written: {error}")
                    })
                }
                Err(why) => Err(why.clone()),
            };
            for done in orders.drain(..).filter_map(|order| order.done) {
                // the asker may have gone
                let _ = done.send(result.clone());
            }
            if !self.is_binding {
                thread::sleep(LEDGER_REST);
            }
        }
        if let Ok(disk) = self.disk
            && let Err(error) = disk.file.sync_data()
        {
            tracing::warn!(%error, "the end of the books may not be durable");
        }
    }
}

impl Disk {
    fn open(folder: &Path, hour: Hour) -> io::Result<Disk> {
        let lock = files::own().open(folder.join(LOCK))?;
        take(&lock)?;
        let path = folder.join(NAME);
        let mut books = match read(&path) {
            Ok(books) => books,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SpendingAccount::default(),
            Err(error) => {
                let (aside, file) = (path.with_extension("damaged"), path.display());
                tracing::error!(
                    %file, %error, aside = %aside.display(),
                    "the books are damaged and put aside; all budgets count as used up until their \
                     time is over. To begin with nothing spent, stop the service and remove the file"
                );
                fs::rename(&path, &aside)?;
                all_spent(hour)
            }
        };
        books.close();
        let file = begin(&path, &books)?;
        Ok(Disk { path, file, books, lines: 0, is_torn: false, _lock: lock })
    }

    /// Writes these lines and makes them durable, if that is awaited. After a failure, and from time
    /// to time, the file is made anew.
    fn write<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e LedgerEntry>,
        is_awaited: bool,
    ) -> io::Result<()> {
        let mut text = Vec::new();
        for entry in entries {
            self.books.write(entry);
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
            self.lines += 1;
        }
        let result = if self.is_torn || self.lines > LEDGER_LINES_MAX {
            begin(&self.path, &self.books).map(|file| {
                self.file = file;
                self.lines = 0;
            })
        } else {
            let written = self.file.write_all(&text);
            written.and_then(|()| if is_awaited { self.file.sync_data() } else { Ok(()) })
        };
        self.is_torn = result.is_err();
        result
    }
}

/// Locks the books; one who is just ending is waited for.
fn take(lock: &File) -> io::Result<()> {
    let end = clock::now() + LEDGER_LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if clock::now() < end => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another service keeps books there"));
            }
        }
    }
}

/// An account after which nothing may be spent in the present hour, day and month.
fn all_spent(hour: Hour) -> SpendingAccount {
    let mut books = SpendingAccount::default();
    books.turn(hour);
    let line = books.hold(LOST, "", Usd::MOST);
    books.write(&line);
    books
}

/// Makes the file anew.
fn begin(path: &Path, books: &SpendingAccount) -> io::Result<File> {
    let mut text = serde_json::to_vec(&Begin { books: books.clone() })?;
    text.push(b'\n');
    let file = files::replace(path, &text)?;
    // the name has to be durable as well
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}

fn read(path: &Path) -> io::Result<SpendingAccount> {
    let text = String::from_utf8(files::read(path, LEDGER_BYTES_MAX)?).map_err(io::Error::other)?;
    let wrong = |n: usize, why: String| io::Error::other(format!("line {}: {why}", n + 1));
    // a last line that was cut off is one that nobody was told of
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate();
    let (n, first) = lines.next().ok_or_else(|| wrong(0, "it is not there".to_owned()))?;
    let begin: Begin = serde_json::from_str(first).map_err(|e| wrong(n, e.to_string()))?;
    let mut books = begin.books;
    for (n, line) in lines {
        let entry: LedgerEntry = serde_json::from_str(line).map_err(|e| wrong(n, e.to_string()))?;
        books.write(&entry);
    }
    Ok(books)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Span;

    fn usd(cents: u32) -> Usd {
        Usd::at_least(f64::from(cents) / 100.0)
    }

    fn day() -> Hour {
        Hour::at(86_400 * 20_000)
    }

    fn disk(folder: &Path) -> Disk {
        Disk::open(folder, day()).unwrap()
    }

    fn hold(disk: &mut Disk, call: u64, cents: u32) {
        disk.books.turn(day());
        let line = disk.books.hold(call, "app", usd(cents));
        disk.write([&line].into_iter(), true).unwrap();
    }

    fn spent(folder: &Path) -> Usd {
        disk(folder).books.spent(None, Span::Day)
    }

    #[test]
    fn what_was_held_counts_after_a_sudden_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = disk(folder.path());
        hold(&mut first, 1, 30);
        hold(&mut first, 2, 50);
        first.write([&LedgerEntry::Bill { call: 1, usd: usd(7) }].into_iter(), false).unwrap();
        drop(first);
        assert_eq!(spent(folder.path()), usd(57));
        // a bill that comes too late finds nothing
        let mut later = disk(folder.path());
        later.write([&LedgerEntry::Bill { call: 2, usd: usd(1) }].into_iter(), true).unwrap();
        drop(later);
        assert_eq!(spent(folder.path()), usd(57));
    }

    #[test]
    fn a_file_may_be_cut_off_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = disk(folder.path());
        hold(&mut first, 1, 30);
        hold(&mut first, 2, 50);
        drop(first);
        let path = folder.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        for cut in ends[0] + 1..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let lines = ends.iter().filter(|end| **end < cut).count();
            assert_eq!(spent(folder.path()), usd([0, 0, 30, 80][lines]), "{cut}");
        }
    }

    #[test]
    fn damaged_books_allow_nothing() {
        for text in ["x\n", "{}\n", "", "{\"bill\": {\"call\": 1, \"usd\": 1}}\n", "\u{0}\n"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(NAME);
            fs::write(&path, text).unwrap();
            assert_eq!(spent(folder.path()), Usd::MOST, "{text:?}");
            assert_eq!(fs::read_to_string(path.with_extension("damaged")).unwrap(), text);
            // and that is kept
            assert_eq!(spent(folder.path()), Usd::MOST, "{text:?}");
        }
    }

    #[test]
    fn only_one_service_keeps_the_books() {
        let folder = tempfile::tempdir().unwrap();
        let first = disk(folder.path());
        let second = Disk::open(folder.path(), day()).err().unwrap();
        assert!(second.to_string().contains("another service"), "{second}");
        drop(first);
        disk(folder.path());
    }

    #[test]
    fn a_long_file_is_made_anew_and_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = disk(folder.path());
        hold(&mut disk, 0, 1);
        let lines: Vec<LedgerEntry> = (1..=LEDGER_LINES_MAX as u64)
            .map(|call| disk.books.hold(call, "app", usd(1)))
            .collect();
        disk.write(lines.iter(), true).unwrap();
        let text = fs::read_to_string(folder.path().join(NAME)).unwrap();
        assert_eq!(text.lines().count(), 1);
        drop(disk);
        assert_eq!(spent(folder.path()), usd(10_001));
    }

    #[test]
    fn without_a_place_nothing_is_sent_if_there_is_a_cap() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for is_binding in [true, false] {
            let (ledger, writer, books) = open(None, is_binding, day());
            let thread = std::thread::spawn(|| writer.run());
            let pending = ledger.hold(books.hold(1, "app", usd(1)));
            let told = runtime.block_on(pending.done());
            assert_eq!(told.is_err(), is_binding, "{told:?}");
            drop(ledger);
            thread.join().unwrap();
        }
    }
}
