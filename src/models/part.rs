//! A file that is not complete yet: `NAME.part`, with a validator beside it, from which a download resumes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use ring::digest;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::fault::ModelFault;
use crate::catalog::model::ModelFileEntry;
use crate::limits::models::{MODEL_JSON_BYTES_MAX, MODEL_READ_BYTES};
use crate::store::file_lock::FileLock;
use crate::store::files;

/// What identifies the content of a part: the file that it becomes, and the version at its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Validator {
    sha256: String,
    bytes: u64,
    /// The SHA-256 of the URL: it may hold a key.
    source: String,
    /// The strong entity tag or the time of modification, for `If-Range` (RFC 9110, section 13.1.5).
    version: Option<String>,
}

/// A part, open for writing, with the digest of its content so far.
pub(super) struct PartFile {
    target: PathBuf,
    part: PathBuf,
    file: File,
    hash: digest::Context,
    entry: ModelFileEntry,
    len: u64,
    validator: Option<Validator>,
    /// Whether it has bytes of more than one response.
    pub(super) is_resumed: bool,
    /// The lock of the model, for as long as this is written to.
    lock: Arc<FileLock>,
}

/// The path of the part of a file.
pub(super) fn part_of(target: &Path) -> PathBuf {
    with_end(target, ".part")
}

/// The path of its validator.
pub(super) fn validator_of(target: &Path) -> PathBuf {
    with_end(target, ".part.json")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Removes the part of a file and its validator.
pub(super) fn remove(target: &Path) {
    for path in [part_of(target), validator_of(target)] {
        let _ = fs::remove_file(path);
    }
}

impl PartFile {
    /// Opens the part of a file, which is created if there is none. Its bytes are kept if its validator
    /// is that of `entry`, and hashed.
    ///
    /// # Errors
    /// If the file can't be opened or read, or `cancel` is cancelled.
    pub(super) fn open(
        target: &Path,
        entry: &ModelFileEntry,
        lock: Arc<FileLock>,
        cancel: &CancellationToken,
    ) -> Result<PartFile, ModelFault> {
        let part = part_of(target);
        let broken = |e: io::Error| ModelFault::file(&part, &e);
        let file = open_own(&part).map_err(broken)?;
        let len = file.metadata().map_err(broken)?.len();
        let validator = read_validator(target).filter(|validator| {
            validator.sha256 == entry.sha256 && validator.bytes == entry.bytes && len <= entry.bytes
        });
        let mut opened = PartFile {
            target: target.to_owned(),
            file,
            hash: digest::Context::new(&digest::SHA256),
            entry: entry.clone(),
            len: 0,
            is_resumed: validator.is_some() && len > 0,
            validator,
            lock,
            part: part.clone(),
        };
        if opened.is_resumed {
            opened.len = hash_into(&mut opened.hash, &opened.file, len, cancel)
                .map_err(|e| e.unwrap_or(&part))?;
        } else {
            opened.restart()?;
        }
        Ok(opened)
    }

    /// The path of the file that this becomes, and the lock of the model.
    pub(super) fn place(&self) -> (PathBuf, Arc<FileLock>) {
        (self.target.clone(), Arc::clone(&self.lock))
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that are missing.
    pub(super) fn missing(&self) -> u64 {
        self.entry.bytes - self.len
    }

    /// The file that this becomes.
    pub(super) fn entry(&self) -> &ModelFileEntry {
        &self.entry
    }

    /// The version of its content at this source, for `If-Range`.
    pub(super) fn version_at(&self, url: &str) -> Option<&str> {
        let known = self.validator.as_ref().filter(|known| known.source == text_digest(url))?;
        known.version.as_deref()
    }

    /// Removes all content.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn restart(&mut self) -> Result<(), ModelFault> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| ModelFault::write(&self.part, &e))?;
        let _ = fs::remove_file(validator_of(&self.target));
        self.hash = digest::Context::new(&digest::SHA256);
        (self.len, self.is_resumed, self.validator) = (0, false, None);
        Ok(())
    }

    /// Writes the validator of what follows.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn begin(&mut self, url: &str, version: Option<String>) -> Result<(), ModelFault> {
        let ModelFileEntry { sha256, bytes, .. } = self.entry.clone();
        let validator = Validator { sha256, bytes, source: text_digest(url), version };
        if self.validator.as_ref() == Some(&validator) {
            return Ok(());
        }
        let path = validator_of(&self.target);
        let text = serde_json::to_vec(&validator).map_err(|e| ModelFault::file(&path, &e))?;
        files::replace(&path, &text).map_err(|e| ModelFault::write(&path, &e))?;
        self.validator = Some(validator);
        Ok(())
    }

    /// Appends bytes; the caller has checked that they are not too many.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), ModelFault> {
        self.file.write_all(bytes).map_err(|e| ModelFault::write(&self.part, &e))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Gives the complete file its name, if its digest is right and `check` accepts it. Afterwards it is
    /// on disk and can only be read. A file that is refused is removed.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn finish(
        self,
        check: impl FnOnce(&File, u64) -> Result<(), String>,
    ) -> Result<(), ModelFault> {
        let found = hex(self.hash.finish().as_ref());
        let ModelFileEntry { path: file, sha256: expected, .. } = self.entry;
        let refused = if found == expected {
            check(&self.file, self.len).err().map(|why| ModelFault::Damaged { file, why })
        } else {
            Some(ModelFault::WrongDigest { file, expected, found })
        };
        if let Some(fault) = refused {
            remove(&self.target);
            return Err(fault);
        }
        let kept = self
            .file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| self.file.sync_all())
            .and_then(|()| super::put(&self.part, &self.target));
        kept.map_err(|e| ModelFault::write(&self.target, &e))?;
        let _ = fs::remove_file(validator_of(&self.target));
        Ok(())
    }
}

/// Opens a file of the store for reading and writing. A link is not followed.
fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    match options.open(path) {
        // the process ended after the file had become read-only
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_file() => {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            options.open(path)
        }
        opened => opened,
    }
}

fn read_validator(target: &Path) -> Option<Validator> {
    let bytes = files::read(&validator_of(target), MODEL_JSON_BYTES_MAX).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Why hashing a file ended early.
pub(super) enum Unhashed {
    Cancelled,
    Io(io::Error),
}

impl Unhashed {
    pub(super) fn unwrap_or(self, path: &Path) -> ModelFault {
        match self {
            Unhashed::Cancelled => ModelFault::Cancelled,
            Unhashed::Io(error) => ModelFault::file(path, &error),
        }
    }
}

/// Hashes up to `most` bytes of an open file; returns their number.
///
/// # Errors
/// If the file can't be read, or `cancel` is cancelled.
pub(super) fn hash_into(
    hash: &mut digest::Context,
    mut file: &File,
    most: u64,
    cancel: &CancellationToken,
) -> Result<u64, Unhashed> {
    let mut buffer = vec![0; MODEL_READ_BYTES];
    let mut done = 0;
    // bounded by `most`
    while done < most {
        if cancel.is_cancelled() {
            return Err(Unhashed::Cancelled);
        }
        let wanted = usize::try_from(most - done).unwrap_or(usize::MAX).min(buffer.len());
        match file.read(&mut buffer[..wanted]) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&buffer[..n]);
                done += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Unhashed::Io(error)),
        }
    }
    Ok(done)
}

/// The SHA-256 of an open file up to `most` bytes, and how many it has.
///
/// # Errors
/// If the file can't be read, or `cancel` is cancelled.
pub(super) fn sha256(
    file: &File,
    most: u64,
    cancel: &CancellationToken,
) -> Result<(String, u64), Unhashed> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let bytes = hash_into(&mut hash, file, most, cancel)?;
    Ok((hex(hash.finish().as_ref()), bytes))
}

pub(super) fn text_digest(text: &str) -> String {
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(u32::from(nibble), 16));
        }
        text
    })
}

/// Makes the names in the folder of this path durable.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
