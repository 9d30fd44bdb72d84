//! PSI trigger: the kernel's notification of memory pressure, at the moment when it begins.
//!
//! The interface is that of Documentation/accounting/psi.rst of the Linux kernel.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The trigger: some task is stalled for 200 ms in total within two seconds. Without privileges the
/// window must be a multiple of two seconds; the kernel notifies at most once per window.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// A registered trigger; none if the kernel has no PSI triggers.
#[derive(Debug)]
pub(super) struct Trigger(Option<AsyncFd<File>>);

impl Trigger {
    /// Registers the trigger. Must be called within a tokio runtime.
    pub(super) fn new(root: &Path) -> Trigger {
        Trigger(open(root))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Returns when the trigger fires; never without a trigger.
    pub(super) async fn fired(&self) {
        if let Some(file) = &self.0
            && let Ok(mut ready) = file.ready(Interest::PRIORITY).await
            && !ready.ready().is_error()
        {
            ready.clear_ready();
            return;
        }
        std::future::pending::<()>().await;
    }
}

fn open(root: &Path) -> Option<AsyncFd<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut file = options.open(root.join("proc/pressure/memory")).ok()?;
    // a regular file below another root folder is not written to
    if !is_procfs(&file) {
        return None;
    }
    file.write_all(TRIGGER).ok()?;
    register(file)
}

#[expect(unsafe_code, reason = "tokio requires the descriptor to stay valid")]
fn register(file: File) -> Option<AsyncFd<File>> {
    // SAFETY: the file is moved in, is never replaced, and closes its descriptor only when it is
    // dropped
    unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.ok()
}

fn is_procfs(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}
