//! The ledger of spending on disk. The reservation (hold) of a call is durable before the call is sent,
//! so that a service that ended in the middle knows afterwards what it may have spent.
//!
//! The file has one JSON value a line: first the account at the time when the file was made, then the
//! entries since. An incomplete last line was never acknowledged and does not count. A thread writes
//! all entries that wait and syncs once for all of them, if a reservation waits for it: a bill lost in
//! a power failure leaves the reservation, which is higher. Without caps nothing waits, and the thread
//! is not woken for each entry: entries of the last [`LEDGER_REST`] before a sudden end may be missing.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::file_lock::FileLock;
use super::{corrections, files};
use crate::clock;
use crate::limits::{
    FILE_LOCK_WAIT, LEDGER_BYTES_MAX, LEDGER_LINES_MAX, LEDGER_REST, LEDGER_WAITING_MAX,
};
use crate::model::generate::Fault;
use crate::money::account::{LedgerEntry, SpendingAccount};
use crate::money::{Hour, Usd};

/// The file's name in the state folder.
const NAME: &str = "spent.jsonl";
/// The lock file, held while a service uses the ledger of this folder.
const LOCK: &str = "spent.lock";
/// The call number of the entry that replaces an unreadable file.
const LOST: u64 = u64::MAX;

/// The first line of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Begin {
    pub(super) books: SpendingAccount,
}

/// An entry to write, and the sender to notify when it is durable.
struct LedgerWrite {
    entry: LedgerEntry,
    done: Option<oneshot::Sender<Result<(), String>>>,
}

/// The sending end of the ledger.
pub(crate) struct Ledger {
    to: mpsc::Sender<LedgerWrite>,
    /// Whether spending is capped: then nothing may be spent that is not in the ledger.
    is_binding: Arc<AtomicBool>,
}

/// A reservation that is being written.
pub(crate) enum Pending {
    /// Without caps, nothing waits for it.
    Free,
    /// It is being written.
    Written(oneshot::Receiver<Result<(), String>>),
    /// The queue of the writer was full.
    Dropped,
}

/// The state of the writing thread.
pub(crate) struct Writer {
    from: mpsc::Receiver<LedgerWrite>,
    disk: Result<Disk, String>,
    /// As in [`Ledger`].
    is_binding: Arc<AtomicBool>,
}

struct Disk {
    path: PathBuf,
    file: File,
    books: SpendingAccount,
    lines: usize,
    /// The last write failed: the end of the file is undefined.
    is_torn: bool,
    _lock: FileLock,
}

/// The present hour, UTC.
pub(crate) fn hour() -> Hour {
    Hour::at(clock::since_epoch().as_secs())
}

/// Opens the ledger of this folder; returns its two ends and the account.
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
                tracing::error!(%folder, %error, "ledger unavailable: paid models are disabled");
            } else {
                tracing::warn!(%folder, %error, "ledger unavailable: spending is not recorded");
            }
            format!("the ledger cannot be used: {error}")
        }),
        None => Err("no state folder for the ledger; set PILOTLIGHT_STATE".to_owned()),
    };
    let books =
        disk.as_ref().map_or_else(|_| SpendingAccount::default(), |disk| disk.books.clone());
    let is_binding = Arc::new(AtomicBool::new(is_binding));
    (Ledger { to, is_binding: Arc::clone(&is_binding) }, Writer { from, disk, is_binding }, books)
}

/// Whether the waiting corrections are in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// They are.
    Now,
    /// A running service holds the ledger, and will apply them.
    ByService,
}

/// The account of the ledger in this state folder at this hour; none if there is no ledger.
///
/// # Errors
/// If the ledger can't be read.
pub(crate) fn account(folder: &Path, hour: Hour) -> io::Result<Option<SpendingAccount>> {
    match read(&folder.join(NAME)) {
        Ok(mut account) => {
            account.turn(hour);
            Ok(Some(account))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Appends the waiting corrections to the ledger, unless a running service holds it.
///
/// # Errors
/// If the ledger can't be written.
pub(crate) fn apply_corrections(folder: &Path) -> io::Result<Applied> {
    let Some(_lock) = FileLock::try_take(&folder.join(LOCK))? else {
        return Ok(Applied::ByService);
    };
    let (path, waiting) = (folder.join(NAME), corrections::waiting(folder));
    // an incomplete last line was never acknowledged
    let whole = files::read(&path, LEDGER_BYTES_MAX)?;
    let end = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut file = File::options().append(true).open(&path)?;
    if end < whole.len() {
        file.set_len(end as u64)?;
    }
    let mut text = Vec::new();
    for correction in &waiting {
        serde_json::to_writer(&mut text, &LedgerEntry::Correction(correction.clone()))?;
        text.push(b'\n');
    }
    file.write_all(&text)?;
    file.sync_all()?;
    for one in &waiting {
        corrections::applied(folder, one);
    }
    Ok(Applied::Now)
}

impl Ledger {
    /// Spending is capped from now on, or is not any more.
    pub(crate) fn set_binding(&self, is_binding: bool) {
        self.is_binding.store(is_binding, Ordering::Relaxed);
    }

    /// Queues a reservation.
    pub(crate) fn hold(&self, entry: LedgerEntry) -> Pending {
        if !self.is_binding.load(Ordering::Relaxed) {
            self.note(entry);
            return Pending::Free;
        }
        self.durable(entry)
    }

    /// Queues an entry that must be durable, caps or not.
    pub(crate) fn durable(&self, entry: LedgerEntry) -> Pending {
        let (done, is_done) = oneshot::channel();
        match self.to.try_send(LedgerWrite { entry, done: Some(done) }) {
            Ok(()) => Pending::Written(is_done),
            Err(_) => Pending::Dropped,
        }
    }

    /// Queues an entry that need not be durable at once: without it the reservation counts.
    pub(crate) fn note(&self, entry: LedgerEntry) {
        if self.to.try_send(LedgerWrite { entry, done: None }).is_err() {
            tracing::warn!("ledger queue full: a call is counted with its highest possible cost");
        }
    }
}

impl Pending {
    /// Waits until the reservation is durable.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if it can't be written: the call must not be sent.
    pub(crate) async fn done(self) -> Result<(), Fault> {
        let is_done = match self {
            Pending::Free => return Ok(()),
            Pending::Written(is_done) => is_done,
            Pending::Dropped => {
                return Err(Fault::unavailable("ledger queue full: nothing was sent".to_owned()));
            }
        };
        is_done
            .await
            .unwrap_or_else(|_| Err("the ledger is closed".to_owned()))
            .map_err(|why| Fault::unavailable(format!("nothing was sent: {why}")))
    }
}

impl Writer {
    /// Writes until the ledger is dropped. Blocks: run it on a thread of its own.
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
                        tracing::warn!(%file, %error, "the ledger cannot be written");
                        format!("the ledger cannot be written: {error}")
                    })
                }
                Err(why) => Err(why.clone()),
            };
            for done in orders.drain(..).filter_map(|order| order.done) {
                // the attempt may have been stopped
                let _ = done.send(result.clone());
            }
            if !self.is_binding.load(Ordering::Relaxed) {
                thread::sleep(LEDGER_REST);
            }
        }
        if let Ok(disk) = self.disk
            && let Err(error) = disk.file.sync_data()
        {
            tracing::warn!(%error, "the last ledger entries may not be durable");
        }
    }
}

impl Disk {
    fn open(folder: &Path, hour: Hour) -> io::Result<Disk> {
        let lock = FileLock::take(&folder.join(LOCK), FILE_LOCK_WAIT)?
            .ok_or_else(|| io::Error::other("another process holds the ledger"))?;
        let path = folder.join(NAME);
        let mut books = match read(&path) {
            Ok(books) => books,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SpendingAccount::default(),
            Err(error) => {
                let (aside, file) = (path.with_extension("damaged"), path.display());
                tracing::error!(
                    %file, %error, aside = %aside.display(),
                    "the ledger is damaged and was renamed; all budgets count as used up until \
                     their period ends. To start with nothing spent, stop the service and remove \
                     the file"
                );
                fs::rename(&path, &aside)?;
                all_spent(hour)
            }
        };
        books.close();
        let waiting = corrections::waiting(folder);
        for one in &waiting {
            books.write(&LedgerEntry::Correction(one.clone()));
        }
        let file = begin(&path, &books)?;
        for one in &waiting {
            corrections::applied(folder, one);
        }
        Ok(Disk { path, file, books, lines: 0, is_torn: false, _lock: lock })
    }

    /// Writes these entries, and syncs if a reservation waits. The file is replaced after a failure and
    /// from time to time.
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

/// An account after which nothing may be spent in the present hour, day and month.
fn all_spent(hour: Hour) -> SpendingAccount {
    let mut books = SpendingAccount::default();
    books.turn(hour);
    let line = books.hold(LOST, "", Usd::MOST);
    books.write(&line);
    books
}

/// Replaces the file by one that begins with this account.
fn begin(path: &Path, books: &SpendingAccount) -> io::Result<File> {
    let mut text = serde_json::to_vec(&Begin { books: books.clone() })?;
    text.push(b'\n');
    files::replace(path, &text)
}

/// The account that the ledger states, with calls that were open at its last entry.
fn read(path: &Path) -> io::Result<SpendingAccount> {
    let text = String::from_utf8(files::read(path, LEDGER_BYTES_MAX)?).map_err(io::Error::other)?;
    stated(&text)
}

/// The account that the lines of a ledger state.
pub(super) fn stated(text: &str) -> io::Result<SpendingAccount> {
    let wrong = |n: usize, why: &dyn Display| io::Error::other(format!("line {}: {why}", n + 1));
    // an incomplete last line was never acknowledged
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate();
    let (n, first) = lines.next().ok_or_else(|| wrong(0, &"it is not there"))?;
    let begin: Begin = files::parse(first.as_bytes()).map_err(|e| wrong(n, &e))?;
    let mut books = begin.books;
    for (n, line) in lines {
        let entry: LedgerEntry = files::parse(line.as_bytes()).map_err(|e| wrong(n, &e))?;
        books.write(&entry);
    }
    Ok(books)
}

#[cfg(test)]
mod tests;
