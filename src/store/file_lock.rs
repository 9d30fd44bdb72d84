//! Locks between processes on a file, those of `flock` (2). A lock ends with its process, however that ends.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::files;
use crate::clock;
use crate::limits::FILE_LOCK_EVERY;

/// The lock on a file, released when this is dropped.
///
/// A child process that is being started has copies of all descriptors until it runs its own program. The
/// lock belongs to the open file and not to the descriptor, so closing it would not release the lock while
/// such a copy exists; it is released explicitly.
#[derive(Debug)]
pub(crate) struct FileLock(File);

impl FileLock {
    /// Takes the lock on a file, which is created if it is missing; none if another process has it.
    ///
    /// # Errors
    /// If the file can't be opened or locked.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<FileLock>> {
        let file = files::own().open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(FileLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock on a file like [`FileLock::try_take`], and waits up to `wait` for a process that is
    /// just ending.
    ///
    /// # Errors
    /// If the file can't be opened or locked.
    pub(crate) fn take(path: &Path, wait: Duration) -> io::Result<Option<FileLock>> {
        let end = clock::now() + wait;
        // ends with the lock, or after `wait`
        loop {
            match FileLock::try_take(path)? {
                None if clock::now() < end => thread::sleep(FILE_LOCK_EVERY),
                taken => return Ok(taken),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // without success the lock ends with the last descriptor
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_released_although_a_copy_of_its_descriptor_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FileLock::try_take(&path).unwrap().unwrap();
        assert!(FileLock::try_take(&path).unwrap().is_none());
        let copy = lock.0.try_clone().unwrap();
        drop(lock);
        assert!(FileLock::try_take(&path).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn the_end_of_another_holder_is_awaited() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FileLock::try_take(&path).unwrap().unwrap();
        let wait = Duration::from_secs(60);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| FileLock::take(&path, wait).unwrap().is_some());
            assert!(FileLock::take(&path, Duration::ZERO).unwrap().is_none());
            drop(lock);
            assert!(waiter.join().unwrap());
        });
    }
}
