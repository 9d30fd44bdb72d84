//! Corrections of the ledger: a folder in which the operator's command leaves them, and from which the
//! ledger takes them.
//!
//! Each correction is a file of its own. Whoever holds the ledger, the service or the command, appends
//! it to the ledger, syncs, and then removes the file; a correction that is read twice counts once.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::files;
use crate::limits::CORRECTIONS_MAX;
use crate::money::account::Correction;

/// The name of the folder in the state folder.
const FOLDER: &str = "corrections";
/// Largest correction, in bytes: its reason, escaped, and 200 bytes.
const BYTES_MAX: u64 = 4096;

/// Leaves a correction for whoever holds the ledger. It is durable then.
///
/// # Errors
/// If it can't be written, or [`CORRECTIONS_MAX`] corrections wait.
pub(crate) fn put(folder: &Path, correction: &Correction) -> io::Result<()> {
    let place = folder.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
    if waiting(folder).len() >= CORRECTIONS_MAX {
        let place = place.display();
        return Err(io::Error::other(format!("{CORRECTIONS_MAX} corrections wait in {place}")));
    }
    let text = serde_json::to_vec(correction)?;
    files::replace(&file_of(folder, correction), &text).map(drop)
}

/// The corrections that wait, at most [`CORRECTIONS_MAX`]. A file that is none is renamed.
pub(crate) fn waiting(folder: &Path) -> Vec<Correction> {
    let Ok(entries) = fs::read_dir(folder.join(FOLDER)) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
    paths.sort();
    paths.truncate(CORRECTIONS_MAX);
    paths.iter().filter_map(|path| read(path)).collect()
}

/// Whether the correction still waits.
pub(crate) fn is_waiting(folder: &Path, correction: &Correction) -> bool {
    file_of(folder, correction).exists()
}

/// Removes a correction that is in the ledger.
pub(crate) fn applied(folder: &Path, correction: &Correction) {
    let file = file_of(folder, correction);
    if let Err(error) = fs::remove_file(&file) {
        // it counts once, whether it is there or not
        tracing::warn!(file = %file.display(), %error, "an applied correction cannot be removed");
    }
}

fn file_of(folder: &Path, correction: &Correction) -> PathBuf {
    folder.join(FOLDER).join(format!("{:016x}.json", correction.id))
}

fn read(path: &Path) -> Option<Correction> {
    let text = files::read(path, BYTES_MAX);
    match text.and_then(|text| files::parse::<Correction>(&text)) {
        Ok(correction) => Some(correction),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let (file, aside) = (path.display(), path.with_extension("damaged"));
            tracing::error!(%file, %error, "this is no correction; it is renamed");
            if let Err(error) = fs::rename(path, aside) {
                tracing::error!(%file, %error, "it cannot be renamed");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::account::Change;
    use crate::money::{Hour, Usd};

    fn correction(id: u64) -> Correction {
        let (app, reason) = ("app".to_owned(), "a wrong bill".to_owned());
        let (change, at) = (Change::Subtract(Usd::MOST), Hour::default());
        Correction { id, app, change, reason, at }
    }

    #[test]
    fn what_is_no_correction_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(waiting(folder.path()), []);
        put(folder.path(), &correction(9)).unwrap();
        let place = folder.path().join(FOLDER);
        fs::write(place.join("x.json"), "{").unwrap();
        fs::write(place.join("y.json"), vec![b' '; 10_000]).unwrap();
        assert_eq!(waiting(folder.path()), [correction(9)]);
        assert!(place.join("x.damaged").exists() && place.join("y.damaged").exists());
        applied(folder.path(), &correction(9));
        assert!(!is_waiting(folder.path(), &correction(9)));
    }

    #[test]
    fn the_number_of_waiting_corrections_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        for id in 0..CORRECTIONS_MAX as u64 {
            put(folder.path(), &correction(id)).unwrap();
        }
        let error = put(folder.path(), &correction(1 << 40)).unwrap_err().to_string();
        assert!(error.contains("corrections wait"), "{error}");
    }
}
