//! The files of the fleet's state: single operations, and the replacement of a file that is whole after a
//! power failure at any of them.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::FILE_LOCK_WAIT;
use crate::limits::fleet::FLEET_FILE_BYTES_MAX;
use crate::store::file_lock::FileLock;
use crate::store::files;

/// The lock file, held while a process changes the state.
const LOCK: &str = "lock";
/// The end of the name of a file that is being written.
const PART: &str = ".part";

/// A folder of files, one operation at a time.
pub trait StateFiles {
    /// The content of a file; none if there is no such file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Writes a file, which is neither whole nor durable before the next three.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content of a file durable.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Gives a file the name of another one, which it replaces.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes renames and removals durable.
    fn sync_folder(&self) -> io::Result<()>;
}

/// Replaces a file: after a power failure its content is the old or the new one, never a part. When this
/// returns, it is the new one.
pub(super) fn replace(files: &impl StateFiles, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = format!("{name}{PART}");
    files.write(&part, bytes)?;
    files.sync(&part)?;
    files.rename(&part, name)?;
    files.sync_folder()
}

/// Removes a file durably.
pub(super) fn remove(files: &impl StateFiles, name: &str) -> io::Result<()> {
    files.remove(name)?;
    files.sync_folder()
}

/// A folder on disk.
#[derive(Debug)]
pub struct DiskFolder {
    path: PathBuf,
    /// Held by a process that writes.
    lock: Option<FileLock>,
}

impl DiskFolder {
    /// The folder, to read from. It need not exist.
    pub fn to_read(path: &Path) -> DiskFolder {
        DiskFolder { path: path.to_owned(), lock: None }
    }

    /// The folder, to write to; it is made if there is none.
    ///
    /// # Errors
    /// If it can't be made, or another process writes to it.
    pub fn to_write(path: &Path) -> io::Result<DiskFolder> {
        DiskFolder::locked(path, FILE_LOCK_WAIT)?.ok_or_else(|| {
            io::Error::other("another process uses it: the service runs; stop it first")
        })
    }

    /// The folder, to write to; it is made if there is none. None if another process writes to it.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn try_to_write(path: &Path) -> io::Result<Option<DiskFolder>> {
        DiskFolder::locked(path, Duration::ZERO)
    }

    fn locked(path: &Path, wait: Duration) -> io::Result<Option<DiskFolder>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let lock = FileLock::take(&path.join(LOCK), wait)?;
        Ok(lock.map(|lock| DiskFolder { path: path.to_owned(), lock: Some(lock) }))
    }

    fn writable(&self, name: &str) -> io::Result<PathBuf> {
        let why = || io::Error::new(ErrorKind::PermissionDenied, "opened to read alone");
        self.lock.as_ref().ok_or_else(why)?;
        Ok(self.path.join(name))
    }
}

impl StateFiles for DiskFolder {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match files::read(&self.path.join(name), FLEET_FILE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = files::own().truncate(true).open(self.writable(name)?)?;
        io::Write::write_all(&mut file, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.writable(name)?)?.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.writable(from)?, self.writable(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.writable(name)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}
