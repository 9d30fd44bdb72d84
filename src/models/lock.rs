//! Locks of the model store, shared by all processes: one for each model, and one for each download.
//!
//! A lock is that of `flock` (2): it ends with the process, however that ends.

use std::path::Path;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::fault::ModelFault;
use super::{ModelEvent, Progress};
use crate::limits::models::{DOWNLOADS_MAX, MODEL_LOCK_EVERY};
use crate::store::file_lock::FileLock;

/// The lock of a model, for as long as the result exists. Waits while another process has it.
pub(super) async fn model(
    folder: &Path,
    name: &str,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<Arc<FileLock>, ModelFault> {
    let files = [format!("{name}.lock")];
    let why = "another process loads or checks the same model".to_owned();
    let lock = any_of(folder, &files, (progress, ModelEvent::Waiting { why }), cancel).await?;
    Ok(Arc::new(lock))
}

/// One of the [`DOWNLOADS_MAX`] places for downloads, for as long as the result exists.
pub(super) async fn place(
    folder: &Path,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<FileLock, ModelFault> {
    // no model has such a name
    let files: Vec<String> = (0..DOWNLOADS_MAX).map(|n| format!(".download-{n}.lock")).collect();
    let why = "as many downloads as permitted are running".to_owned();
    any_of(folder, &files, (progress, ModelEvent::Waiting { why }), cancel).await
}

/// The lock of a model, if no process has it.
pub(super) fn try_model(folder: &Path, name: &str) -> Result<Option<FileLock>, ModelFault> {
    try_lock(&folder.join(format!("{name}.lock")))
}

async fn any_of(
    folder: &Path,
    files: &[String],
    (progress, waiting): (Progress<'_>, ModelEvent),
    cancel: &CancellationToken,
) -> Result<FileLock, ModelFault> {
    let mut is_told = false;
    // ends when a lock is free, or `cancel` is cancelled
    loop {
        for file in files {
            if let Some(lock) = try_lock(&folder.join(file))? {
                return Ok(lock);
            }
        }
        if !is_told {
            progress(&waiting);
            is_told = true;
        }
        tokio::select! {
            () = cancel.cancelled() => return Err(ModelFault::Cancelled),
            () = tokio::time::sleep(MODEL_LOCK_EVERY) => {}
        }
    }
}

fn try_lock(path: &Path) -> Result<Option<FileLock>, ModelFault> {
    FileLock::try_take(path).map_err(|error| ModelFault::file(path, &error))
}
