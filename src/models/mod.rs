//! The model store: files of `pilotlight.models` on this device, each checked before it gets its name.
//!
//! A file is loaded into `NAME.part`, which a later download resumes, and its SHA-256 is computed while it
//! is written. With the right length and digest its structure is checked; then it becomes read-only, is
//! synced to disk, and is renamed. So what has its name is complete, and no parser has seen other bytes.

mod fault;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod import;
mod lock;
mod onnx_graph;
mod part;
mod prune;
mod source;
mod state;
mod structure;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::fault::ModelFault;
pub use self::import::{ImportFinding, import};
pub use self::prune::{Leftover, leftovers, remove};
pub use self::state::{ModelState, Thoroughness, inspect};
use crate::catalog::catalog::DeviceLimits;
use crate::catalog::model::{ModelEntry, ModelFileEntry, ModelKind};
use crate::device::uplink::uplinks;
use crate::device::{Sensors, disk};
use crate::limits::SAMPLE_MAX;
use crate::limits::models::{DOWNLOAD_RETRY_MIN, DOWNLOAD_STALL_MAX, OBSTACLE_EVERY};
use crate::pressure::level::PressureStage;
use crate::pressure::{Bounds, Gauge, SensorSample};
use crate::store::file_lock::FileLock;
use crate::time::Time;

/// The folder of the models of this device.
#[derive(Debug, Clone)]
pub struct ModelStore {
    /// The folder; a model has its name in it.
    pub folder: PathBuf,
    /// Bytes of the disk that are kept free.
    pub reserve_bytes: u64,
    /// The sensors of a board that downloads only while it is cool.
    pub cool_only: Option<CoolOnly>,
    /// The networks of a board that downloads only while it pays nothing for it.
    pub unmetered_only: Option<UnmeteredOnly>,
    /// How long downloads wait.
    pub pace: DownloadPace,
}

/// Downloads run only while the heat of the board does not slow down its engines.
#[derive(Debug, Clone)]
pub struct CoolOnly {
    /// The root folder of the sensors.
    pub sensors: PathBuf,
    /// The thresholds.
    pub bounds: Bounds,
}

/// Downloads run only while no default route uses a metered network interface.
#[derive(Debug, Clone)]
pub struct UnmeteredOnly {
    /// The root folder of the sensors, which has the route tables.
    pub sensors: PathBuf,
    /// Which interfaces are metered.
    pub limits: DeviceLimits,
}

/// How long downloads wait for a server.
#[derive(Debug, Clone, Copy)]
pub struct DownloadPace {
    /// The longest time for the head of a response, and the interval in which bytes have to arrive.
    pub stall: Duration,
    /// The first wait before another attempt.
    pub retry: Duration,
}

impl Default for DownloadPace {
    fn default() -> DownloadPace {
        DownloadPace { stall: DOWNLOAD_STALL_MAX, retry: DOWNLOAD_RETRY_MIN }
    }
}

/// Where the bytes of a model come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Network,
    Local,
}

/// What happens to a model that is being loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelEvent {
    /// It waits.
    Waiting {
        /// What for.
        why: String,
    },
    /// So many bytes of the whole model are on disk.
    Received {
        /// Bytes on disk.
        done: u64,
        /// All bytes.
        bytes: u64,
    },
    /// What had arrived is not used any more.
    Restarted {
        /// Why.
        why: String,
    },
    /// An attempt failed, and another one follows.
    Retrying {
        /// Why it failed.
        why: String,
        /// When the next attempt begins.
        wait: Duration,
    },
}

/// Takes the events of a model. It is called often, and must not block.
pub type Progress<'p> = &'p (dyn Fn(&ModelEvent) + Send + Sync);

impl ModelStore {
    /// The path of a model that is present.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn locks(&self) -> PathBuf {
        self.folder.join(".locks")
    }

    fn receipts(&self) -> PathBuf {
        self.folder.join(".receipts")
    }

    fn create(&self) -> Result<(), ModelFault> {
        [self.locks(), self.receipts()].iter().try_for_each(|folder| {
            fs::create_dir_all(folder).map_err(|e| ModelFault::file(folder, &e))
        })
    }

    /// Checks that the disk has room for so many bytes more.
    ///
    /// # Errors
    /// [`ModelFault::NoRoom`]. A disk whose free space is unknown has room.
    fn check_room(&self, bytes: u64) -> Result<(), ModelFault> {
        let needed = bytes.saturating_add(self.reserve_bytes);
        match disk(&self.folder).map(|disk| disk.available) {
            Some(available) if available < needed => {
                let folder = self.folder.display().to_string();
                Err(ModelFault::NoRoom { needed, available, folder })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the board is cool by one reading of its sensors; sensors that hang count as too warm.
    async fn is_cool(&self) -> bool {
        let Some(CoolOnly { sensors, bounds }) = self.cool_only.clone() else { return true };
        let folder = self.folder.clone();
        let mut reading = JoinSet::new();
        reading.spawn_blocking(move || {
            let sample = Sensors::new(&sensors, &folder).read(None);
            // neither memory nor disk
            let sample = SensorSample {
                zones: sample.zones,
                board: sample.board,
                ..SensorSample::default()
            };
            Gauge::new(bounds).on(&sample, Time::default()).stage == PressureStage::Calm
        });
        matches!(tokio::time::timeout(SAMPLE_MAX, reading.join_next()).await, Ok(Some(Ok(true))))
    }

    /// Why nothing may be transferred at the moment, by the policy; over a network or on this device.
    async fn obstacle(&self, transfer: Transfer) -> Option<String> {
        if !self.is_cool().await {
            return Some("the board is too warm".to_owned());
        }
        let UnmeteredOnly { sensors, limits } = match transfer {
            Transfer::Network => self.unmetered_only.as_ref()?,
            Transfer::Local => return None,
        };
        let interface = uplinks(sensors).into_iter().find(|name| limits.is_metered(name))?;
        Some(format!(
            "the network interface {interface} is metered, by device_limits.metered_interfaces, and \
             policy.models_download.only_unmetered is true"
        ))
    }

    async fn until_permitted(
        &self,
        transfer: Transfer,
        progress: Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), ModelFault> {
        let mut told = None;
        // ends when nothing is in the way, or `cancel` is cancelled
        while let Some(why) = self.obstacle(transfer).await {
            if told.as_ref() != Some(&why) {
                progress(&ModelEvent::Waiting { why: why.clone() });
                told = Some(why);
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(ModelFault::Cancelled),
                () = tokio::time::sleep(OBSTACLE_EVERY) => {}
            }
        }
        Ok(())
    }
}

/// The path of a model, which is loaded if it is not there or not the one that the entry describes. Waits
/// while another process loads it, or [`crate::limits::models::DOWNLOADS_MAX`] others are loaded.
///
/// A file with the name of the model stays until the right one is complete and checked.
///
/// # Errors
/// Why the model can't be loaded. What has arrived is kept for the next call, unless it is wrong.
pub async fn ensure(
    entry: &ModelEntry,
    store: &ModelStore,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<PathBuf, ModelFault> {
    store.create()?;
    let lock = lock::model(&store.locks(), &entry.name, progress, cancel).await?;
    let state = {
        let (store, entry, cancel) = (store.clone(), entry.clone(), cancel.clone());
        blocking(move || inspect(&store, &entry, Thoroughness::Receipt, &cancel)).await??
    };
    if state == ModelState::Present {
        return Ok(store.path_of(&entry.name));
    }
    let _place = lock::place(&store.locks(), progress, cancel).await?;
    load(entry, store, &lock, progress, cancel).await?;
    let (store, entry, cancel) = (store.clone(), entry.clone(), cancel.clone());
    blocking(move || {
        state::write_receipt(&store, &entry, &cancel);
        Ok(store.path_of(&entry.name))
    })
    .await?
}

async fn load(
    entry: &ModelEntry,
    store: &ModelStore,
    lock: &Arc<FileLock>,
    progress: Progress<'_>,
    cancel: &CancellationToken,
) -> Result<(), ModelFault> {
    let staged = part::part_of(&store.path_of(&entry.name));
    let folder = match entry.kind {
        ModelKind::Gguf => store.folder.clone(),
        ModelKind::OnnxFolder => staged.clone(),
    };
    if staged.symlink_metadata().is_ok_and(|meta| meta.is_dir() == (entry.kind == ModelKind::Gguf))
    {
        remove_any(&staged).map_err(|e| ModelFault::file(&staged, &e))?;
    }
    let mut done = 0;
    for file in &entry.files {
        let target = folder.join(&file.path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(|e| ModelFault::file(folder, &e))?;
        }
        let told = |event: &ModelEvent| {
            if let ModelEvent::Received { done: of_file, .. } = event {
                progress(&ModelEvent::Received { done: done + of_file, bytes: entry.bytes() });
            } else {
                progress(event);
            }
        };
        let is_there = entry.kind == ModelKind::OnnxFolder && {
            let (target, file, cancel) = (target.clone(), file.clone(), cancel.clone());
            blocking(move || state::is_file(&target, &file, &cancel)).await??
        };
        if !is_there {
            load_file(entry, file, &target, store, lock, (&told, cancel)).await?;
        }
        done += file.bytes;
    }
    if entry.kind == ModelKind::OnnxFolder {
        let (entry, target) = (entry.clone(), store.path_of(&entry.name));
        blocking(move || place_folder(&entry, &staged, &target)).await??;
    }
    Ok(())
}

async fn load_file(
    entry: &ModelEntry,
    file: &ModelFileEntry,
    target: &Path,
    store: &ModelStore,
    lock: &Arc<FileLock>,
    (progress, cancel): (Progress<'_>, &CancellationToken),
) -> Result<(), ModelFault> {
    let open = {
        let (target, file) = (target.to_owned(), file.clone());
        let (lock, cancel) = (Arc::clone(lock), cancel.clone());
        move || part::PartFile::open(&target, &file, lock, &cancel)
    };
    let part = blocking(open).await??;
    let download = fetch::Download { store, ca: entry.ca.as_deref(), progress, cancel };
    let kind = entry.kind;
    download
        .run(part, move |file, bytes| match kind {
            ModelKind::Gguf => structure::check_gguf(file, bytes),
            // a graph is checked when all files are there
            ModelKind::OnnxFolder => Ok(()),
        })
        .await
}

/// Gives a complete folder its name, if its structure is right. A folder that is refused is removed.
fn place_folder(entry: &ModelEntry, staged: &Path, target: &Path) -> Result<(), ModelFault> {
    let broken = |e: io::Error| ModelFault::write(staged, &e);
    let folders = state::remove_others(entry, staged).map_err(broken)?;
    if let Err((file, why)) = structure::check_onnx(entry, staged) {
        remove_any(staged).map_err(broken)?;
        return Err(ModelFault::Damaged { file, why });
    }
    for folder in folders {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(broken)?;
    }
    put(staged, target).map_err(|e| ModelFault::write(target, &e))
}

/// Renames a file or folder, also if there is another file or folder of the name, which is removed.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    let renamed = fs::rename(from, to);
    if renamed.is_err() && to.symlink_metadata().is_ok() {
        renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_EXCHANGE)?;
        remove_any(from)?;
    } else {
        renamed?;
    }
    part::sync_folder_of(to)
}

/// Removes a file, a link, or a folder with its content.
fn remove_any(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Runs work that blocks on another thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ModelFault> {
    let mut one = JoinSet::new();
    one.spawn_blocking(work);
    match one.join_next().await {
        Some(Ok(done)) => Ok(done),
        Some(Err(_)) | None => {
            Err(ModelFault::Unreachable("a thread of the model store has ended".to_owned()))
        }
    }
}
