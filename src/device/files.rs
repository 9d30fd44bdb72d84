//! Small files of procfs and sysfs, which hold one text or number each.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The most bytes that are read of a file.
const BYTES_MAX: u64 = 64 * 1024;

/// The trimmed text of a file; none if it can't be read or is empty.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(BYTES_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The number in a file; none if the text is no number.
pub(super) fn number(path: &Path) -> Option<f64> {
    text(path)?.parse().ok()
}

/// The subfolders with the name `beginning` and a number, in the order of the numbers.
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

/// The hardware monitor (hwmon) folder whose `name` file has this name.
pub(super) fn monitor(root: &Path, name: &str) -> Option<PathBuf> {
    let all = folders(&root.join("sys/class/hwmon"), "hwmon");
    all.into_iter().find(|path| text(&path.join("name")).as_deref() == Some(name))
}
