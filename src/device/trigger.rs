//! The kernel's word that programs have begun to wait for memory, at the moment when they do.
//!
//! Pressure stall triggers as the kernel's Documentation/accounting/psi.rst has them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Some task waits for 200 ms in all within two seconds. A service that is not root may ask for
/// multiples of two seconds only; the kernel tells at most once in each.
const WANTED: &[u8] = b"some 200000 2000000\0";
/// The share of the time that this is, in percent.
pub(super) const FIRED_STALL: f64 = 10.0;

/// A trigger that was asked for, if the kernel has such.
#[derive(Debug)]
pub(super) struct Trigger(Option<AsyncFd<File>>);

impl Trigger {
    /// Asks for it; must be called inside a runtime.
    pub(super) fn new(root: &Path) -> Trigger {
        Trigger(ask(root))
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Returns when programs wait for memory; never if the kernel does not tell.
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

fn ask(root: &Path) -> Option<AsyncFd<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut file = options.open(root.join("proc/pressure/memory")).ok()?;
    // a file of another kind, below a root of one's own, is not touched
    if !is_kernel_s(&file) {
        return None;
    }
    file.write_all(WANTED).ok()?;
    register(file)
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the file's number")]
fn register(file: File) -> Option<AsyncFd<File>> {
    // SAFETY: the file is moved in, is never swapped for another, and closes its number only when
    // it is dropped
    unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.ok()
}

fn is_kernel_s(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}
