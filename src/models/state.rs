//! What is in the store: states of models, and receipts of what has been checked.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::fault::ModelFault;
use super::part::{part_of, sha256, text_digest};
use super::{ModelStore, structure};
use crate::catalog::model::{ModelEntry, ModelFileEntry, ModelKind};
use crate::limits::models::{MODEL_FILES_MAX, MODEL_JSON_BYTES_MAX, MODEL_LEVELS_MAX};
use crate::store::files;

/// Beginning of folders that ONNX Runtime writes into a model folder.
const PREPARED: &str = "prepared-";

/// The state of a model in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelState {
    /// It is there and the one that the entry describes.
    Present,
    /// So many of its bytes are there.
    Partial(u64),
    /// Nothing of it is there.
    Missing,
    /// Something of its name is there, and is another one.
    Differs(String),
}

/// How a model is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// Files that have not changed since they were checked are not read again.
    Receipt,
    /// All files are read.
    Digest,
}

/// What was checked: the digest of a model, and the files that had it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ModelReceipt {
    sha256: String,
    /// Of inode, length and time of change of each file.
    stamp: String,
}

/// The state of a model. One that was checked gets a receipt.
///
/// # Errors
/// If files can't be read, or `cancel` is cancelled.
pub fn inspect(
    store: &ModelStore,
    entry: &ModelEntry,
    how: Thoroughness,
    cancel: &CancellationToken,
) -> Result<ModelState, ModelFault> {
    let path = store.path_of(&entry.name);
    if !path.exists() {
        let bytes = partial_bytes(entry, &path);
        return Ok(if bytes == 0 { ModelState::Missing } else { ModelState::Partial(bytes) });
    }
    let folder = match entry.kind {
        ModelKind::Gguf => store.folder.clone(),
        ModelKind::OnnxFolder => path.clone(),
    };
    if let Some(why) = differs_at_once(entry, &path) {
        return Ok(ModelState::Differs(why));
    }
    if how == Thoroughness::Receipt && is_receipted(store, entry, &folder) {
        return Ok(ModelState::Present);
    }
    for file in &entry.files {
        let path = folder.join(&file.path);
        let broken = |e: io::Error| ModelFault::file(&path, &e);
        let opened = File::open(&path).map_err(broken)?;
        let found = sha256(&opened, file.bytes, cancel).map_err(|e| e.unwrap_or(&path))?;
        if found != (file.sha256.clone(), file.bytes) {
            return Ok(ModelState::Differs(format!("the SHA-256 of {} is {}", file.path, found.0)));
        }
        if entry.kind == ModelKind::Gguf
            && let Err(why) = structure::check_gguf(&opened, file.bytes)
        {
            return Ok(ModelState::Differs(why));
        }
    }
    if entry.kind == ModelKind::OnnxFolder
        && let Err((file, why)) = structure::check_onnx(entry, &folder)
    {
        return Ok(ModelState::Differs(format!("{file}: {why}")));
    }
    write_receipt(store, entry, cancel);
    Ok(ModelState::Present)
}

/// The difference that shows without reading the files.
fn differs_at_once(entry: &ModelEntry, path: &Path) -> Option<String> {
    let is_folder = entry.kind == ModelKind::OnnxFolder;
    if path.is_dir() != is_folder {
        let expected = if is_folder { "a folder" } else { "a file" };
        return Some(format!("it is not {expected}"));
    }
    for file in &entry.files {
        // the links in a folder are not followed
        let meta =
            if is_folder { path.join(&file.path).symlink_metadata() } else { path.metadata() };
        match meta {
            Ok(meta) if meta.is_file() && meta.len() == file.bytes => {}
            Ok(meta) if meta.is_file() => {
                return Some(format!("{} has {} bytes, not {}", file.path, meta.len(), file.bytes));
            }
            Ok(_) => return Some(format!("{} is no file", file.path)),
            Err(_) => return Some(format!("{} is missing", file.path)),
        }
    }
    if is_folder {
        let known: BTreeSet<&str> = entry.files.iter().map(|file| file.path.as_str()).collect();
        let others = names_below(path).ok()?;
        let other = others.iter().find(|name| !known.contains(name.as_str()));
        return other.map(|other| format!("{other} is no file of the entry"));
    }
    None
}

/// Whether a file of a folder that is being loaded is complete.
pub(super) fn is_file(
    path: &Path,
    entry: &ModelFileEntry,
    cancel: &CancellationToken,
) -> Result<bool, ModelFault> {
    let is_right = |meta: Metadata| meta.is_file() && meta.len() == entry.bytes;
    if !path.symlink_metadata().is_ok_and(is_right) {
        return Ok(false);
    }
    let file = File::open(path).map_err(|e| ModelFault::file(path, &e))?;
    let (found, _) = sha256(&file, entry.bytes, cancel).map_err(|e| e.unwrap_or(path))?;
    Ok(found == entry.sha256)
}

/// Bytes of a model that is being loaded.
fn partial_bytes(entry: &ModelEntry, path: &Path) -> u64 {
    let staged = part_of(path);
    let bytes = |path: &Path| path.metadata().ok().filter(Metadata::is_file).map_or(0, |m| m.len());
    match entry.kind {
        ModelKind::Gguf => bytes(&staged).min(entry.bytes()),
        ModelKind::OnnxFolder => entry
            .files
            .iter()
            .map(|file| {
                let path = staged.join(&file.path);
                bytes(&path).max(bytes(&part_of(&path))).min(file.bytes)
            })
            .sum(),
    }
}

/// Removes what is no file of the entry from a folder; returns all folders that are left.
pub(super) fn remove_others(entry: &ModelEntry, folder: &Path) -> io::Result<Vec<PathBuf>> {
    let known: BTreeSet<&str> = entry.files.iter().map(|file| file.path.as_str()).collect();
    for name in names_below(folder)?.iter().filter(|name| !known.contains(name.as_str())) {
        super::remove_any(&folder.join(name))?;
    }
    let mut folders: BTreeSet<PathBuf> = BTreeSet::from([folder.to_owned()]);
    for file in &entry.files {
        folders.extend(folder.join(&file.path).parent().map(Path::to_owned));
    }
    // the innermost first
    Ok(folders.into_iter().rev().collect())
}

/// The paths of all entries below a folder that are no folders, relative to it; without the folders of
/// prepacked weights.
///
/// # Errors
/// If a folder can't be read, or has too many entries or levels.
fn names_below(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 1)];
    // bounded by the levels, and by the entries of each folder
    while let Some((next, level)) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            if name.starts_with(PREPARED) {
                continue;
            }
            if path.symlink_metadata()?.is_dir() && level <= MODEL_LEVELS_MAX {
                folders.push((path, level + 1));
            } else {
                found.push(name);
            }
            if found.len() + folders.len() > 4 * MODEL_FILES_MAX {
                return Err(io::Error::other("it has too many files"));
            }
        }
    }
    Ok(found)
}

fn receipt_of(store: &ModelStore, entry: &ModelEntry) -> PathBuf {
    store.receipts().join(format!("{}.json", entry.name))
}

fn is_receipted(store: &ModelStore, entry: &ModelEntry, folder: &Path) -> bool {
    let read = || {
        let bytes = files::read(&receipt_of(store, entry), MODEL_JSON_BYTES_MAX).ok()?;
        let receipt: ModelReceipt = serde_json::from_slice(&bytes).ok()?;
        let stamp = stamp(entry, folder).ok()?;
        Some(receipt == ModelReceipt { sha256: entry.digest(), stamp })
    };
    read() == Some(true)
}

/// Notes that the model has just been checked. Without the note it is checked again.
pub(super) fn write_receipt(store: &ModelStore, entry: &ModelEntry, cancel: &CancellationToken) {
    let folder = match entry.kind {
        ModelKind::Gguf => store.folder.clone(),
        ModelKind::OnnxFolder => store.path_of(&entry.name),
    };
    let path = receipt_of(store, entry);
    let write = || {
        let receipt = ModelReceipt { sha256: entry.digest(), stamp: stamp(entry, &folder)? };
        files::replace(&path, &serde_json::to_vec(&receipt)?)
    };
    if !cancel.is_cancelled()
        && let Err(error) = write()
    {
        tracing::debug!(file = %path.display(), %error, "the receipt of a model is not written");
    }
}

/// What changes when one of the files does: a time of change, unlike one of modification, can't be set.
fn stamp(entry: &ModelEntry, folder: &Path) -> io::Result<String> {
    let mut text = String::new();
    for file in &entry.files {
        let meta = folder.join(&file.path).metadata()?;
        let (inode, len) = (meta.ino(), meta.len());
        let (s, ns) = (meta.ctime(), meta.ctime_nsec());
        let _ = writeln!(text, "{} {inode} {len} {s} {ns}", file.path);
    }
    Ok(text_digest(&text))
}
