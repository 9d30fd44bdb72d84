//! The folder of the saved prefixes of one model, so that an engine that starts again need not read them again.
//!
//! A file is named by the digest of its head. The folder has a largest size; the least recently used files are
//! removed first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::prefix_file::{self, PrefixHead};
use crate::clock::time_of_day;
use crate::limits::engine::{PREFIX_FILES_MAX, PREFIX_FOLDER_BYTES_MAX};
use crate::store::files;

/// The ending of the files.
const ENDING: &str = "prefix";

/// A prefix that is on disk.
#[derive(Debug, Clone)]
pub(super) struct SavedPrefix {
    path: PathBuf,
    pub(super) group: Arc<str>,
    pub(super) tokens: Vec<u32>,
    /// Size of the file.
    bytes: u64,
}

/// The saved prefixes that this engine can use.
#[derive(Debug)]
pub(super) struct PrefixFolder {
    path: PathBuf,
    /// See [`PrefixHead::engine`].
    engine: String,
    /// The least recently used first.
    saved: Vec<SavedPrefix>,
    writer: Option<SyncSender<NewFile>>,
    thread: Option<JoinHandle<()>>,
}

/// A file to be written.
struct NewFile {
    path: PathBuf,
    head: PrefixHead,
    state: Vec<u8>,
}

/// Creates the folder of a model's saved prefixes in that of all models, for its owner alone.
///
/// # Errors
/// If it can't be created.
pub fn create(all: &Path, model: &Path) -> io::Result<PathBuf> {
    let model = model.canonicalize()?;
    let folder = all.join(digest(model.as_os_str().as_encoded_bytes()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Ok(folder)
}

impl PrefixFolder {
    /// The prefixes in a folder that this engine has saved. Files that it can't use are removed.
    ///
    /// # Errors
    /// If the folder can't be read.
    pub(super) fn open(path: &Path, engine: String) -> io::Result<PrefixFolder> {
        let mut saved = Vec::new();
        for (file, bytes) in by_age(path)? {
            let head = prefix_file::read_head(&file).ok();
            let usable = head.filter(|head| head.engine == engine && file.ends_with(name(head)));
            match usable {
                Some(PrefixHead { group, tokens, .. }) => {
                    saved.push(SavedPrefix { path: file, group: group.into(), tokens, bytes });
                }
                None => remove(&file),
            }
        }
        let (writer, files) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("prefixes".to_owned())
            .spawn(move || write_all(&files))?;
        let (writer, thread) = (Some(writer), Some(thread));
        let mut folder = PrefixFolder { path: path.to_owned(), engine, saved, writer, thread };
        folder.make_room(0);
        Ok(folder)
    }

    /// The saved prefix with the most tokens in common, by this count of them.
    pub(super) fn longest(&self, common: impl Fn(&SavedPrefix) -> usize) -> Option<SavedPrefix> {
        self.saved.iter().max_by_key(|saved| common(saved)).cloned()
    }

    /// Whether this prefix is saved.
    pub(super) fn has(&self, tokens: &[u32], group: &str) -> bool {
        self.saved.iter().any(|saved| saved.tokens == tokens && &*saved.group == group)
    }

    /// The state of a saved prefix. None if its file is damaged or gone; it is then forgotten.
    pub(super) fn load(&mut self, saved: &SavedPrefix) -> Option<Vec<u8>> {
        match prefix_file::read(&saved.path, &self.head(&saved.tokens, &saved.group)) {
            Ok(state) => {
                self.saved.retain(|one| one.path != saved.path);
                self.saved.push(saved.clone());
                // the age of a file is the time since its last use
                let file = File::open(&saved.path);
                if let Err(error) = file.and_then(|file| file.set_modified(time_of_day())) {
                    tracing::debug!(%error, "the time of a saved prefix cannot be set");
                }
                Some(state)
            }
            Err(error) => {
                let file = saved.path.display();
                tracing::warn!(%file, %error, "a saved prefix is unusable and is removed");
                self.drop_saved(saved);
                None
            }
        }
    }

    /// Removes a prefix.
    pub(super) fn drop_saved(&mut self, saved: &SavedPrefix) {
        self.saved.retain(|one| one.path != saved.path);
        remove(&saved.path);
    }

    /// Whether a state of so many bytes is saved.
    pub(super) fn takes(bytes: usize) -> bool {
        bytes as u64 <= PREFIX_FOLDER_BYTES_MAX / 2
    }

    /// Saves a prefix, on another thread. False if it is not saved now and may be later.
    pub(super) fn save(&mut self, tokens: &[u32], group: &Arc<str>, state: Vec<u8>) -> bool {
        let bytes = state.len() as u64;
        let head = self.head(tokens, group);
        let path = self.path.join(name(&head));
        let file = NewFile { path: path.clone(), head, state };
        if self.writer.as_ref().is_none_or(|writer| writer.try_send(file).is_err()) {
            return false;
        }
        self.make_room(bytes);
        let (group, tokens) = (Arc::clone(group), tokens.to_vec());
        self.saved.push(SavedPrefix { path, group, tokens, bytes });
        true
    }

    /// Removes the least recently used prefixes until another one of this size has room.
    fn make_room(&mut self, bytes: u64) {
        let has_room = |saved: &[SavedPrefix]| {
            let all: u64 = saved.iter().map(|one| one.bytes).sum();
            all + bytes <= PREFIX_FOLDER_BYTES_MAX && saved.len() < PREFIX_FILES_MAX
        };
        // bounded: each round removes one
        while !self.saved.is_empty() && !has_room(&self.saved) {
            remove(&self.saved.remove(0).path);
        }
    }

    fn head(&self, tokens: &[u32], group: &str) -> PrefixHead {
        PrefixHead { engine: self.engine.clone(), group: group.to_owned(), tokens: tokens.to_vec() }
    }
}

impl Drop for PrefixFolder {
    /// Waits until what is to be saved is on disk.
    fn drop(&mut self) {
        drop(self.writer.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The name of the file with this head.
fn name(head: &PrefixHead) -> String {
    let head = format!("{} {:?} {:?}", head.engine, head.group, head.tokens);
    format!("{}.{ENDING}", digest(head.as_bytes()))
}

/// 128 bits of a SHA-256, hexadecimal.
fn digest(bytes: &[u8]) -> String {
    let mut digest = format!("{:x}", Sha256::digest(bytes));
    digest.truncate(32);
    digest
}

/// Writes files until no more come.
fn write_all(files: &Receiver<NewFile>) {
    // ends with the sender
    while let Ok(NewFile { path, head, state }) = files.recv() {
        let written = prefix_file::encode(&head, &state)
            .and_then(|bytes| files::replace(&path, &bytes).map(drop));
        let file = path.display();
        match written {
            Ok(()) => tracing::debug!(%file, tokens = head.tokens.len(), "prefix saved"),
            Err(error) => tracing::warn!(%file, %error, "a prefix cannot be saved"),
        }
    }
}

/// The files of a folder with their sizes, the least recently used first; what was not written to its end is
/// removed.
fn by_age(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // another engine of the same model may have removed it
        let Ok(meta) = entry.metadata() else { continue };
        let path = entry.path();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some(ENDING) if meta.is_file() => {
                let time = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((time, path, meta.len()));
            }
            Some("part") => remove(&path),
            Some(_) | None => {}
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path, bytes)| (path, bytes)).collect())
}

fn remove(file: &Path) {
    if let Err(error) = fs::remove_file(file) {
        tracing::debug!(file = %file.display(), %error, "a saved prefix cannot be removed");
    }
}
