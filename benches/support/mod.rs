//! Shared code of the benches: quantiles, rates of an engine, tables, the machine, test support.
#![allow(dead_code, reason = "each bench uses a part")]

#[path = "../../tests/support/mod.rs"]
mod tests;

pub use tests::*;

use figures::median;

/// The value below which a share `q` (0 to 1) of them lies, by the nearest rank; of two for the middle
/// the upper one. There must be one at least.
pub fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() - 1) as f64 * q).round();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let at = at as usize;
    values[at]
}

/// The mean of the values; there must be one at least.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The rates of an engine over several rounds.
#[derive(Default)]
pub struct Rates {
    /// Prompt tokens a second.
    pub prefill: Vec<f64>,
    /// Answer tokens a second.
    pub decode: Vec<f64>,
    /// Time of the whole prompt, ms.
    pub first_ms: Vec<f64>,
}

/// The medians of [`Rates`].
#[derive(Clone, Copy)]
pub struct Medians {
    pub prefill: f64,
    pub decode: f64,
    pub first_ms: f64,
}

impl Rates {
    /// One round: this many tokens were read and written in these seconds.
    pub fn add(&mut self, read: f64, read_s: f64, written: f64, write_s: f64) {
        self.prefill.push(read / read_s);
        self.decode.push(written / write_s);
        self.first_ms.push(read_s * 1e3);
    }

    pub fn medians(&mut self) -> Medians {
        Medians {
            prefill: median(&mut self.prefill),
            decode: median(&mut self.decode),
            first_ms: median(&mut self.first_ms),
        }
    }
}

/// The head of a table in Markdown.
pub fn print_head(columns: &[&str]) {
    println!("| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

/// A row of a table in Markdown.
pub fn print_row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Memory of a process as the tables give it.
pub fn memory_text(pid: u32) -> String {
    let used = figures::memory(pid);
    format!("{:.0} MiB resident, {:.0} anonymous", used.resident, used.anonymous)
}

/// Says on what machine the figures were taken.
pub fn print_machine() {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    // boards say in the device tree what they are
    let board = std::fs::read_to_string("/proc/device-tree/model").ok();
    let board = board.map(|text| text.trim_end_matches('\0').to_owned());
    let name = board.or_else(|| field("/proc/cpuinfo", "model name"));
    let name = name.unwrap_or_else(|| "unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    println!(
        "{name}, {}, {cores} cores, {memory} of memory, load {load}\n",
        std::env::consts::ARCH
    );
}
