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
