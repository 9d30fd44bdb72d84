//! Notices changes of the configuration's files: the kernel tells of each change in their folders
//! (inotify), because an editor, a package or an orchestrator replaces a file rather than writing it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::clock;
use crate::limits::reload::{CONFIG_QUIET, CONFIG_QUIET_MAX};

/// Watches files that need not exist.
pub struct FileChanges {
    kernel: AsyncFd<Watcher>,
    files: Vec<PathBuf>,
    /// What is known of each file.
    seen: Vec<Option<FileStamp>>,
}

struct Watcher(Inotify);

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What differs after a change: device, inode, bytes, and the time of the last modification.
type FileStamp = (u64, u64, u64, (i64, i64));

#[expect(unsafe_code, reason = "tokio requires the descriptor to stay valid")]
fn register(kernel: Inotify) -> io::Result<AsyncFd<Watcher>> {
    // SAFETY: the instance is moved in, is never replaced, and closes its descriptor only when it is
    // dropped
    let registered =
        unsafe { AsyncFd::register_with_interest(Watcher(kernel), Interest::READABLE) };
    registered.map_err(io::Error::from)
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), (meta.mtime(), meta.mtime_nsec())))
}

/// The folder of a file, or the nearest one above it that exists.
fn folder(path: &Path) -> PathBuf {
    let above = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    above.into_iter().find(|folder| folder.is_dir()).unwrap_or(Path::new(".")).to_owned()
}

impl FileChanges {
    /// Watches these files from now on.
    ///
    /// # Errors
    /// If the kernel has no inotify, or too many are in use (`fs.inotify.max_user_instances`).
    pub fn new(files: Vec<PathBuf>) -> io::Result<FileChanges> {
        let kernel = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = FileChanges { kernel: register(kernel)?, files, seen: Vec::new() };
        changes.watch_folders();
        Ok(FileChanges { seen: changes.stamps(), ..changes })
    }

    /// Watches the folders of all files; one that is watched already stays so. A folder may have been
    /// replaced by another one of the same name.
    fn watch_folders(&self) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF;
        // a symbolic link is watched at both of its ends
        let ends = |file: &PathBuf| [Some(file.clone()), file.canonicalize().ok()];
        let ends = self.files.iter().flat_map(ends).flatten();
        let folders: BTreeSet<PathBuf> = ends.map(|file| folder(&file)).collect();
        for folder in folders {
            if let Err(error) = self.kernel.get_ref().0.add_watch(&folder, flags) {
                tracing::debug!(folder = %folder.display(), %error, "the folder is not watched");
            }
        }
    }

    /// Waits until a file has changed, and then has not for [`CONFIG_QUIET`].
    pub async fn changed(&mut self) {
        // ends with a change
        loop {
            if self.next().await.is_err() {
                return std::future::pending().await;
            }
            let first = clock::now();
            let mut present = self.stamps();
            // bounded by CONFIG_QUIET_MAX
            while first.elapsed() < CONFIG_QUIET_MAX {
                tokio::time::sleep(CONFIG_QUIET).await;
                let now = self.stamps();
                if now == present {
                    break;
                }
                present = now;
            }
            self.watch_folders();
            if present != self.seen {
                self.seen = present;
                return;
            }
        }
    }

    fn stamps(&self) -> Vec<Option<FileStamp>> {
        self.files.iter().map(|file| stamp(file)).collect()
    }

    /// Waits for an event in one of the folders, and takes all that wait.
    async fn next(&self) -> io::Result<()> {
        let mut ready = self.kernel.readable().await?;
        let taken = ready.try_io(|watcher| Ok(watcher.get_ref().0.read_events()?));
        taken.map_or(Ok(()), |events| events.map(|_| ()))
    }
}
