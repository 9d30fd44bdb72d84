//! Memory: what a process can still allocate, and memory pressure (PSI).
//!
//! The formats of `/proc/meminfo`, `/proc/pressure/memory` and `/proc/vmstat` are those of proc(5);
//! the limits of the own control group those of Documentation/admin-guide/cgroup-v2.rst of the Linux
//! kernel.

use std::path::Path;

use sysinfo::{MemoryRefreshKind, System};

use super::SensorFinding;
use super::files::text;
use crate::pressure::Amount;

/// The major page faults per sample from which on memory is short on a kernel without PSI, and the
/// memory pressure that they count as, in percent.
const FAULTS_MANY: f64 = 200.0;
const FAULTS_STALL: f64 = 20.0;

/// The most memory of a machine, 1 PiB: more is a wrong reading.
const MEMORY_MAX: u64 = 1 << 50;
/// The least limit of a control group in which this service can run, half of what it has after its start.
const GROUP_MIN: u64 = 8 << 20;
/// The most control groups above each other that are read.
const GROUPS_MAX: usize = 16;

/// The memory of the machine, or of the own control group if that is less; none if it can't be read.
pub fn read() -> Option<Amount> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = Amount { total: system.total_memory(), available: system.available_memory() };
    if machine.total == 0 {
        return None;
    }
    let group = system.cgroup_limits().filter(|group| group.total_memory > 0);
    Some(match group {
        Some(group) => {
            least(machine, Amount { total: group.total_memory, available: group.free_memory })
        }
        None => machine,
    })
}

fn least(a: Amount, b: Amount) -> Amount {
    Amount { total: a.total.min(b.total), available: a.available.min(b.available) }
}

/// The same from the files below a root folder.
pub(super) fn below(root: &Path) -> Option<Amount> {
    let info = text(&root.join("proc/meminfo"))?;
    // some containers state that nothing is available while memory is free
    let free = kilobytes(&info, "MemFree:").unwrap_or(0);
    let available = kilobytes(&info, "MemAvailable:")?;
    let available = if available == 0 { free } else { available };
    let machine = Amount { total: kilobytes(&info, "MemTotal:")?, available };
    let is_possible = (1..=MEMORY_MAX).contains(&machine.total) && available <= machine.total;
    if !is_possible {
        return None;
    }
    Some(group(root).map_or(machine, |group| least(machine, group)))
}

/// The memory of the own control group or of one above it, whichever has the least available, if any has
/// a limit.
fn group(root: &Path) -> Option<Amount> {
    let own = text(&root.join("proc/self/cgroup"))?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let top = root.join("sys/fs/cgroup");
    let own = top.join(path);
    let folders = own.ancestors().take(GROUPS_MAX).take_while(|folder| folder.starts_with(&top));
    folders.filter_map(limited).reduce(least)
}

/// The memory of one control group. Inactive file cache counts as available: the kernel reclaims it. A
/// limit in which this service could not run, or far below what the group uses, is none.
fn limited(folder: &Path) -> Option<Amount> {
    let limit = |name: &str| text(&folder.join(name))?.parse::<u64>().ok();
    let limits = [limit("memory.max"), limit("memory.high")].into_iter().flatten();
    let total = limits.filter(|bytes| *bytes >= GROUP_MIN).min()?;
    let current = limit("memory.current").filter(|bytes| bytes / 2 <= total)?;
    let stat = text(&folder.join("memory.stat")).unwrap_or_default();
    let files = value(&stat, "inactive_file ").unwrap_or(0);
    let used = current.saturating_sub(files);
    Some(Amount { total, available: total.saturating_sub(used) })
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    value(text, name)?.checked_mul(1024)
}

fn value(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The state of the memory pressure from one sample to the next.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    faults: Option<u64>,
}

impl Stalls {
    /// Memory pressure: the share of the last ten seconds in which some task was stalled on memory,
    /// in percent.
    pub(super) fn read(&mut self, root: &Path) -> Option<f64> {
        if let Some(share) = stalled(root, "memory") {
            return Some(share);
        }
        let faults = value(&text(&root.join("proc/vmstat"))?, "pgmajfault ")?;
        let before = self.faults.replace(faults)?;
        #[expect(clippy::cast_precision_loss, reason = "faults of a second")]
        let many = faults.saturating_sub(before) as f64 >= FAULTS_MANY;
        Some(if many { FAULTS_STALL } else { 0.0 })
    }
}

/// The share of the last ten seconds in which some task was stalled on this resource, in percent.
pub(super) fn stalled(root: &Path, resource: &str) -> Option<f64> {
    let text = text(&root.join("proc/pressure").join(resource))?;
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="))?;
    let share: f64 = some.split_whitespace().next()?.parse().ok()?;
    (0.0..=100.0).contains(&share).then_some(share)
}

pub(super) fn findings(root: &Path) -> Vec<SensorFinding> {
    let stalls = stalled(root, "memory").is_some();
    let group = group(root);
    let controllers = text(&root.join("sys/fs/cgroup/cgroup.controllers")).unwrap_or_default();
    let may_limit = controllers.split_whitespace().any(|name| name == "memory");
    vec![
        SensorFinding {
            what: "memory",
            found: below(root).is_some(),
            said: match below(root) {
                Some(Amount { total, available }) => {
                    let from = if group.is_some() { "our control group" } else { "/proc/meminfo" };
                    format!("{} of {} MiB available, from {from}", available >> 20, total >> 20)
                }
                None => "/proc/meminfo cannot be read".to_owned(),
            },
        },
        SensorFinding {
            what: "memory stalls",
            found: stalls,
            said: if stalls {
                "from /proc/pressure/memory: every second, and on kernel notification".to_owned()
            } else {
                "the kernel reports no pressure stall information; page faults are used instead. \
                 Add psi=1 to the kernel command line"
                    .to_owned()
            },
        },
        SensorFinding {
            what: "memory limits",
            found: may_limit,
            said: if may_limit {
                "memory control group enabled".to_owned()
            } else {
                "memory control group disabled; add cgroup_enable=memory to the kernel command line"
                    .to_owned()
            },
        },
    ]
}
