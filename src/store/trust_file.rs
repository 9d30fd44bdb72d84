//! The trust policy on disk, and the programs that it allows: files that nobody but root and the service's
//! user can change.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};

use crate::catalog::mistake::Mistake;
use crate::fleet::digest::Digest;
use crate::fleet::trust::{AllowedCommand, Trust};
use crate::limits::fleet::TRUST_BYTES_MAX;

/// Largest program that is digested, in bytes.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;
/// Write permission of the group and of others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Of a folder: only the owner of a file may remove or rename it.
const STICKY: u32 = 0o1000;

/// Reads the trust policy of this file.
///
/// # Errors
/// All mistakes, with their paths; for the file itself, its path.
pub(crate) fn read(path: &Path) -> Result<Trust, Vec<Mistake>> {
    let one = |message: String| vec![Mistake::new(path.display().to_string(), message)];
    let open = || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        check_owner(path, &file.metadata()?)?;
        let mut bytes = Vec::new();
        file.take(TRUST_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > TRUST_BYTES_MAX {
            return Err(io::Error::other(format!("it is larger than {TRUST_BYTES_MAX} bytes")));
        }
        Ok(bytes)
    };
    let bytes = open().map_err(|error| one(format!("the trust policy can't be used: {error}")))?;
    Trust::read(&bytes)
}

/// Whether the programs of these commands are those that the trust policy means.
///
/// # Errors
/// What is wrong with the first one that is not, with its path.
pub(crate) fn check_programs(commands: &[AllowedCommand]) -> io::Result<()> {
    commands.iter().try_for_each(check_program)
}

/// Whether the program of an allowed command is the one that the trust policy means.
///
/// # Errors
/// What is wrong, with the path.
fn check_program(command: &AllowedCommand) -> io::Result<()> {
    let Some(named) = &command.sha256 else { return Ok(()) };
    let path = Path::new(&command.path);
    let told = |error: io::Error| io::Error::other(format!("{}: {error}", command.path));
    let found = digest_of_program(path).map_err(told)?;
    if found == named.0 {
        return Ok(());
    }
    let why = format!("has the digest {found}, and the trust policy names {}", named.0);
    Err(told(io::Error::other(why)))
}

/// The digest of a program that a trust policy may name: nobody but root and this user can change it.
///
/// # Errors
/// If it can't be read, or others can change it.
pub(crate) fn digest_of_program(path: &Path) -> io::Result<Digest> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    check_owner(path, &metadata)?;
    if !metadata.is_file() || metadata.len() > PROGRAM_BYTES_MAX {
        return Err(io::Error::other("is no program"));
    }
    let mut hasher = Sha256::new();
    io::copy(&mut file.take(PROGRAM_BYTES_MAX), &mut hasher)?;
    Ok(Digest::from(hasher))
}

/// The file and its folder belong to root or to this user, and nobody else may write to them.
fn check_owner(path: &Path, file: &Metadata) -> io::Result<()> {
    check(file, "it", 0)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = std::fs::metadata(folder.unwrap_or(Path::new(".")))?;
    check(&folder, "its folder", STICKY)
}

fn check(what: &Metadata, name: &str, without: u32) -> io::Result<()> {
    let (owner, mode) = (what.uid(), what.permissions().mode());
    let own = geteuid().as_raw();
    if owner != 0 && owner != own {
        let why = format!("{name} belongs to the user {owner}; run chown root");
        return Err(io::Error::other(why));
    }
    if mode & WRITABLE_BY_OTHERS != 0 && mode & without == 0 {
        return Err(io::Error::other(format!("other users can write to {name}; run chmod go-w")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fleet::digest::HexDigest;
    use crate::fleet::trust::OWN_PROGRAM;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_policy_that_others_can_write_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trust.json");
        fs::write(&path, "{}").unwrap();
        let check = |mode: u32, folder_mode: u32, expected: Option<&str>| {
            set_mode(&path, mode);
            set_mode(folder.path(), folder_mode);
            let found = read(&path).err().map(|mistakes| mistakes[0].to_string());
            match (found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{mode:o} {folder_mode:o}: {found:?}"),
            }
        };
        check(0o600, 0o700, None);
        check(0o644, 0o755, None);
        check(0o644, 0o1777, None);
        check(0o664, 0o755, Some("other users can write to it"));
        check(0o602, 0o755, Some("other users can write to it"));
        check(0o644, 0o775, Some("other users can write to its folder"));
        fs::write(&path, " ".repeat(usize::try_from(TRUST_BYTES_MAX).unwrap() + 1)).unwrap();
        check(0o644, 0o755, Some("larger than"));
        fs::remove_file(&path).unwrap();
        let missing = read(&path).unwrap_err();
        assert!(missing[0].message.contains("can't be used"), "{missing:?}");
    }

    #[test]
    fn a_program_is_the_one_of_the_policy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        set_mode(&path, 0o755);
        let sha256 = HexDigest(Digest::of(b"#!/bin/sh\n"));
        let mut command = AllowedCommand {
            path: path.display().to_string(),
            sha256: Some(sha256),
            args: Vec::new(),
        };
        check_program(&command).unwrap();
        fs::write(&path, "#!/bin/sh\nevil\n").unwrap();
        let error = check_program(&command).unwrap_err().to_string();
        assert!(error.contains("has the digest") && error.contains("program"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(check_program(&command).is_err());
        // this program is exchanged by updates of the system
        (command.path, command.sha256) = (OWN_PROGRAM.to_owned(), None);
        check_program(&command).unwrap();
    }
}
