//! Small files of the kernel: one word or number each, and short.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest file that is read, in bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// The text of a file without the space around it; none if it can't be read or is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in a file.
pub(super) fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok()
}

/// The folders of a folder whose names begin so, in the order of their numbers.
pub(super) fn folders(path: &Path, beginning: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix(beginning)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// A folder of hardware monitors by the name that it states.
pub(super) fn monitor(root: &Path, name: &str) -> Option<PathBuf> {
    let all = folders(&root.join("sys/class/hwmon"), "hwmon");
    all.into_iter().find(|path| text(&path.join("name")).as_deref() == Some(name))
}
