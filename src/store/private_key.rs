//! The private keys of calls over MQTT, in the state folder.

use std::io;
use std::path::{Path, PathBuf};

use super::secret_file;
use crate::catalog::public_key::{KEY_BYTES, SecretKind};
use crate::catalog::secret::Secret;
use crate::random;

/// What the files hold, in errors.
const WHAT: &str = "private key";

/// The path of the file in this state folder.
pub(crate) fn path(folder: &Path, kind: SecretKind) -> PathBuf {
    folder.join(match kind {
        SecretKind::Service => "service.key",
        SecretKind::Caller => "caller.key",
    })
}

/// The private key of this state folder; generated if there is none.
///
/// # Errors
/// If its file can't be read or written, or holds no key.
pub(crate) fn read_or_generate(
    folder: &Path,
    kind: SecretKind,
) -> io::Result<Secret<[u8; KEY_BYTES]>> {
    let generate = || Ok(Secret(kind.text(&random::bytes()?)));
    let text = secret_file::read_or_generate(&path(folder, kind), WHAT, generate)?;
    kind.parse(&text.0).map(Secret).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_generated_once_and_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [SecretKind::Service, SecretKind::Caller] {
            let first = read_or_generate(folder.path(), kind).unwrap();
            assert_eq!(read_or_generate(folder.path(), kind).unwrap(), first);
            let mode = std::fs::metadata(path(folder.path(), kind)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            std::fs::write(path(folder.path(), kind), "word\n").unwrap();
            let error = read_or_generate(folder.path(), kind).unwrap_err().to_string();
            assert!(error.contains("must be a private key"), "{error}");
        }
    }
}
