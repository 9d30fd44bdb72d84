//! A number that grows with each start, also on a board whose clock is not set.

use std::path::Path;

use super::files;
use crate::clock;

/// The file's name in the state folder.
const NAME: &str = "starts";
/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64;

/// The number of this start: the time of day in milliseconds, and more than that of the last start, which
/// the state folder keeps. Without a folder it grows as long as the clock does.
pub(crate) fn next(folder: Option<&Path>) -> u64 {
    let time = u64::try_from(clock::since_epoch().as_millis()).unwrap_or(u64::MAX);
    let Some(path) = folder.map(|folder| folder.join(NAME)) else { return time };
    let text =
        files::read(&path, FILE_BYTES_MAX).ok().and_then(|text| String::from_utf8(text).ok());
    let last = text.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or_default();
    let number = time.max(last.saturating_add(1));
    if let Err(error) = files::replace(&path, format!("{number}\n").as_bytes()) {
        let file = path.display();
        tracing::warn!(%file, %error, "the number of starts can't be kept: callers may not notice a restart");
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_grows_whatever_the_clock_shows() {
        let folder = tempfile::tempdir().unwrap();
        let first = next(Some(folder.path()));
        assert!(next(Some(folder.path())) > first);
        // a clock that was far ahead once
        std::fs::write(folder.path().join(NAME), format!("{}\n", first * 2)).unwrap();
        assert_eq!(next(Some(folder.path())), first * 2 + 1);
        std::fs::write(folder.path().join(NAME), "no number").unwrap();
        assert!(next(Some(folder.path())) >= first);
        assert!(next(None) >= first);
    }
}
