//! Files of the state folder with one secret each: generated at the first start, readable by their owner
//! alone.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::files;
use crate::catalog::file_text;
use crate::catalog::secret::Secret;

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// The secret of this file, which is called `what` in errors; none if there is no file.
///
/// # Errors
/// If the file can't be read or does not hold one line.
pub(crate) fn read(path: &Path, what: &str) -> io::Result<Option<Secret<String>>> {
    let bytes = match files::read(path, FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        // no folder either: the service tells that it keeps nothing
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let text = file_text::decode(&bytes).map_err(io::Error::other)?.trim();
    if text.is_empty() || text.contains(char::is_control) {
        let why =
            format!("it does not hold one line with a {what}; remove it to have one generated");
        return Err(io::Error::other(why));
    }
    Ok(Some(Secret(text.to_owned())))
}

/// The same; a missing file is written with a generated secret.
///
/// # Errors
/// If the file can't be read or written.
pub(crate) fn read_or_generate(
    path: &Path,
    what: &str,
    generate: impl FnOnce() -> io::Result<Secret<String>>,
) -> io::Result<Secret<String>> {
    if let Some(known) = read(path, what)? {
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(file = %path.display(), "other users can read the {what}; run chmod 600");
        }
        return Ok(known);
    }
    let secret = generate()?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", secret.0).as_bytes())?;
    file.sync_all()?;
    Ok(secret)
}
