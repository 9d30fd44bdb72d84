//! What the benches count with.

/// The middle one; the upper of two.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Memory of a process, MiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// All that is resident.
    pub resident: f64,
    /// What is its own: not mapped from a file.
    pub anonymous: f64,
}

/// What the kernel says of a process.
pub fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    };
    Memory { resident: field("VmRSS"), anonymous: field("RssAnon") }
}

/// Processor time that a process has used, seconds. Source: the manual page `proc_pid_stat(5)`, fields 14 and 15.
pub fn processor_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // the name of the program may have spaces
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks = fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u32>().unwrap());
    // the kernel tells them in hundredths on every architecture of ours
    f64::from(ticks.sum::<u32>()) / 100.0
}

/// The threads of a process.
pub fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}
