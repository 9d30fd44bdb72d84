//! The password of the embedded broker: generated at the first start, in a file of the state folder that
//! only its owner can read.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::files;
use crate::catalog::file_text;
use crate::catalog::secret::Secret;

/// The user name at the embedded broker.
pub(crate) const USER: &str = "pilotlight";
/// The file's name in the state folder.
const NAME: &str = "broker.password";
/// Random bytes of a generated password: 192 bits can't be guessed.
const RANDOM_BYTES: usize = 24;
/// Longest password file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// The path of the file in this state folder.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// The password of this state folder; none if there is no file.
///
/// # Errors
/// If the file can't be read or holds no password.
pub(crate) fn read(folder: &Path) -> io::Result<Option<Secret<String>>> {
    let bytes = match files::read(&path(folder), FILE_BYTES_MAX) {
        Ok(bytes) => bytes,
        // no folder either: the service tells that it keeps nothing
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let text = file_text::decode(&bytes).map_err(io::Error::other)?.trim();
    if text.is_empty() || text.contains(char::is_control) {
        let why = "it does not hold one line with a password; remove it to have one generated";
        return Err(io::Error::other(why));
    }
    Ok(Some(Secret(text.to_owned())))
}

/// The same; a missing file is written with a generated password.
///
/// # Errors
/// If the file can't be read or written.
pub(crate) fn read_or_generate(folder: &Path) -> io::Result<Secret<String>> {
    if let Some(known) = read(folder)? {
        let mode = std::fs::metadata(path(folder))?.permissions().mode();
        if mode & 0o077 != 0 {
            let file = path(folder);
            tracing::warn!(file = %file.display(), "other users can read the password; run chmod 600");
        }
        return Ok(known);
    }
    let password = generate()?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path(folder))?;
    file.write_all(format!("{}\n", password.0).as_bytes())?;
    file.sync_all()?;
    Ok(password)
}

/// A random password.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn generate() -> io::Result<Secret<String>> {
    let mut bytes = [0; RANDOM_BYTES];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(Secret(URL_SAFE_NO_PAD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_generated_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        let first = read_or_generate(folder.path()).unwrap();
        assert!(first.0.len() >= 32, "too short");
        assert_eq!(read_or_generate(folder.path()).unwrap(), first);
        assert_eq!(read(folder.path()).unwrap(), Some(first.clone()));
        let mode = std::fs::metadata(path(folder.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(read_or_generate(other.path()).unwrap(), first);
    }

    #[test]
    fn a_file_without_a_password_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in ["", "\n", "one\ntwo", "\u{0}"] {
            std::fs::write(path(folder.path()), wrong).unwrap();
            let error = read_or_generate(folder.path()).unwrap_err().to_string();
            assert!(error.contains("one line") && !error.contains("two"), "{wrong:?}: {error}");
        }
        // an editor's byte order mark and line end are no part of it
        std::fs::write(path(folder.path()), "\u{feff}own word\r\n").unwrap();
        assert_eq!(read(folder.path()).unwrap(), Some(Secret("own word".to_owned())));
    }
}
