//! Reading files up to a bound, and replacing them atomically and durably.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Options that open a file for writing, readable by its owner alone, and create it if it is missing.
pub(crate) fn own() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// The content of a file.
///
/// # Errors
/// If it can't be read, or has more than `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Replaces a file atomically: after a crash its content is the old or the new one, never a part. The
/// file and the folder are synced to disk. Returns the file, open at its end.
///
/// # Errors
/// If it can't be written or synced; unless the sync of the folder failed, the old content remains.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let part = path.with_extension("part");
    let mut file = own().truncate(true).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    // the rename is durable once the folder is on disk
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(file)
}
