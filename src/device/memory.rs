//! How much memory a program may still take here.

use sysinfo::{MemoryRefreshKind, System};

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// What can be had without pushing out what is in use.
    pub available: u64,
}

/// The machine's memory, or our own control group's if that is less; none if it can't be read.
pub fn read() -> Option<Memory> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = Memory { total: system.total_memory(), available: system.available_memory() };
    if machine.total == 0 {
        return None;
    }
    let group = system.cgroup_limits().filter(|group| group.total_memory > 0);
    Some(match group {
        Some(group) => Memory {
            total: machine.total.min(group.total_memory),
            available: machine.available.min(group.free_memory),
        },
        None => machine,
    })
}
