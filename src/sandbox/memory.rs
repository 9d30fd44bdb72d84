//! The bound of what an engine process may allocate.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::limits::engine::ENGINE_MEMORY_EXTRA_BYTES;

/// Whether [`MemoryBound::set`] has bounded this process.
static IS_BOUND: AtomicBool = AtomicBool::new(false);

/// What an engine process is held to.
#[derive(Debug, Clone, Default)]
pub struct EngineBounds {
    /// SHA-256 of the model, hexadecimal.
    pub digest: Option<String>,
    /// The memory that the process may allocate.
    pub memory: MemoryBound,
}

/// The memory that an engine process may allocate. Mapped files, such as weights, do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryBound {
    /// As much as the system gives.
    #[default]
    None,
    /// A multiple of what the model needs.
    Derived,
    /// This number of MiB.
    Mib(u64),
}

impl MemoryBound {
    /// Bounds the memory of this process (`RLIMIT_DATA`); an allocation beyond it fails, which ends the
    /// process. `needed` bytes are computed for the model, of which the library may allocate `factor`
    /// times as much while it loads.
    pub(crate) fn set(self, needed: u64, factor: u64) {
        let bytes = match self {
            MemoryBound::None => return,
            MemoryBound::Derived => needed.saturating_mul(factor) + ENGINE_MEMORY_EXTRA_BYTES,
            MemoryBound::Mib(mib) => mib << 20,
        };
        let set = getrlimit(Resource::RLIMIT_DATA).and_then(|(_, most)| {
            let bytes = bytes.min(most);
            setrlimit(Resource::RLIMIT_DATA, bytes, bytes)
        });
        match set {
            Ok(()) => {
                IS_BOUND.store(true, Ordering::Relaxed);
                tracing::info!(mib = bytes >> 20, "the memory of this engine is bounded");
            }
            Err(error) => tracing::warn!(%error, "the memory of this engine can't be bounded"),
        }
    }
}

/// Bounds what the process may allocate from now on, until the result is dropped; only in a process
/// that is bounded at all.
pub(crate) fn bound_growth(bytes: u64) -> Option<GrowthBound> {
    if !IS_BOUND.load(Ordering::Relaxed) {
        return None;
    }
    let (before, most) = getrlimit(Resource::RLIMIT_DATA).ok()?;
    let bytes = allocated()?.saturating_add(bytes).min(before);
    setrlimit(Resource::RLIMIT_DATA, bytes, most).ok()?;
    Some(GrowthBound { before, most })
}

/// See [`bound_growth`].
pub(crate) struct GrowthBound {
    before: u64,
    most: u64,
}

impl Drop for GrowthBound {
    fn drop(&mut self) {
        if let Err(error) = setrlimit(Resource::RLIMIT_DATA, self.before, self.most) {
            tracing::warn!(%error, "the bound of the memory can't be restored");
        }
    }
}

/// Bytes of writable private memory, as `RLIMIT_DATA` counts it.
fn allocated() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let data = status.lines().find_map(|line| line.strip_prefix("VmData:"))?;
    let kilobytes: u64 = data.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes << 10)
}
