//! The password of the embedded broker: generated at the first start, in a file of the state folder that
//! only its owner can read.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::secret_file;
use crate::catalog::secret::Secret;
use crate::random;

/// The user name at the embedded broker.
pub(crate) const USER: &str = "pilotlight";
/// The file's name in the state folder.
const NAME: &str = "broker.password";
/// Random bytes of a generated password: 192 bits can't be guessed.
const RANDOM_BYTES: usize = 24;
/// What the file holds, in errors.
const WHAT: &str = "password";

/// The path of the file in this state folder.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(NAME)
}

/// The password of this state folder; none if there is no file.
///
/// # Errors
/// If the file can't be read or holds no password.
pub(crate) fn read(folder: &Path) -> io::Result<Option<Secret<String>>> {
    secret_file::read(&path(folder), WHAT)
}

/// The same; a missing file is written with a generated password.
///
/// # Errors
/// If the file can't be read or written.
pub(crate) fn read_or_generate(folder: &Path) -> io::Result<Secret<String>> {
    secret_file::read_or_generate(&path(folder), WHAT, generate)
}

/// A random password.
///
/// # Errors
/// If the system has no random numbers.
pub(crate) fn generate() -> io::Result<Secret<String>> {
    Ok(Secret(URL_SAFE_NO_PAD.encode(random::bytes::<RANDOM_BYTES>()?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
