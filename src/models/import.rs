//! Import: the models of the configuration from a folder, such as a USB stick, by their digests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::fault::ModelFault;
use super::part::{Unhashed, sha256};
use super::{ModelStore, Progress, blocking, ensure};
use crate::catalog::model::{ModelEntry, ModelFileEntry, ModelSource};
use crate::limits::models::{IMPORT_DEPTH_MAX, IMPORT_ENTRIES_MAX};

/// What the folder has of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFinding {
    /// All of it: the model is in the store.
    Imported,
    /// Not all: these files are missing, each with the files that have its length and another digest.
    Missing(Vec<(String, Vec<PathBuf>)>),
    /// It was found and could not be used.
    Failed(ModelFault),
}

/// Takes these models from a folder or a file, whatever the names of the files are. They are copied and
/// checked as a download is.
///
/// Links are not followed, and folders not below [`IMPORT_DEPTH_MAX`] levels. A file is read only if its
/// length is that of a file of a model.
///
/// # Errors
/// If the folder can't be read or has too many entries, or `cancel` is cancelled.
pub async fn import(
    models: &[ModelEntry],
    from: &Path,
    store: &ModelStore,
    progress: &(dyn Fn(&ModelEntry, &super::ModelEvent) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Vec<(String, ImportFinding)>, ModelFault> {
    let files: Vec<ModelFileEntry> = models.iter().flat_map(|model| model.files.clone()).collect();
    let (root, stop) = (from.to_owned(), cancel.clone());
    let found = blocking(move || search(&root, &files, &stop)).await??;
    let mut findings = Vec::new();
    for model in models {
        let (model, missing) = found.sources_of(model);
        let told: Progress<'_> = &|event| progress(&model, event);
        let finding = if missing.is_empty() {
            match ensure(&model, store, told, cancel).await {
                Ok(_) => ImportFinding::Imported,
                Err(ModelFault::Cancelled) => return Err(ModelFault::Cancelled),
                Err(fault) => ImportFinding::Failed(fault),
            }
        } else {
            ImportFinding::Missing(missing)
        };
        findings.push((model.name, finding));
    }
    Ok(findings)
}

/// The files that have the length of a file of a model.
#[derive(Debug, Default)]
struct FoundFiles {
    by_digest: BTreeMap<String, PathBuf>,
    others: BTreeMap<u64, Vec<PathBuf>>,
}

impl FoundFiles {
    /// The model with the found files as its sources, and the files that were not found.
    fn sources_of(&self, model: &ModelEntry) -> (ModelEntry, Vec<(String, Vec<PathBuf>)>) {
        let mut model = model.clone();
        let mut missing = Vec::new();
        for file in &mut model.files {
            match self.by_digest.get(&file.sha256) {
                Some(path) => file.source = ModelSource::File(path.to_string_lossy().into_owned()),
                None => {
                    let others = self.others.get(&file.bytes).cloned().unwrap_or_default();
                    missing.push((file.path.clone(), others));
                }
            }
        }
        (model, missing)
    }
}

fn search(
    root: &Path,
    files: &[ModelFileEntry],
    cancel: &CancellationToken,
) -> Result<FoundFiles, ModelFault> {
    let mut found = FoundFiles::default();
    let mut entries = 0;
    // a link that the user names is meant
    let root = root.canonicalize().map_err(|e| ModelFault::file(root, &e))?;
    let mut paths = vec![(root.clone(), 0)];
    // bounded by the number of entries
    while let Some((path, depth)) = paths.pop() {
        if cancel.is_cancelled() {
            return Err(ModelFault::Cancelled);
        }
        entries += 1;
        if entries > IMPORT_ENTRIES_MAX {
            let why = format!("it has more than {IMPORT_ENTRIES_MAX} entries; name a folder in it");
            return Err(ModelFault::file(&root, &why));
        }
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() && depth <= IMPORT_DEPTH_MAX {
            // a folder that can't be read, such as `lost+found`, has no models for this user
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            paths.extend(below.map(|entry| (entry.path(), depth + 1)));
        } else if meta.is_file() && files.iter().any(|file| file.bytes == meta.len()) {
            look_at(&mut found, files, path, meta.len(), cancel)?;
        }
    }
    Ok(found)
}

/// Reads a file; one that can't be read is as good as one with another digest.
fn look_at(
    found: &mut FoundFiles,
    files: &[ModelFileEntry],
    path: PathBuf,
    bytes: u64,
    cancel: &CancellationToken,
) -> Result<(), ModelFault> {
    let digest = match File::open(&path).map(|file| sha256(&file, bytes, cancel)) {
        Ok(Ok((digest, read))) if read == bytes => Some(digest),
        Ok(Err(Unhashed::Cancelled)) => return Err(ModelFault::Cancelled),
        Ok(Ok(_) | Err(Unhashed::Io(_))) | Err(_) => None,
    };
    match digest.filter(|digest| files.iter().any(|file| file.sha256 == *digest)) {
        Some(digest) => {
            found.by_digest.entry(digest).or_insert(path);
        }
        None => found.others.entry(bytes).or_default().push(path),
    }
    Ok(())
}
