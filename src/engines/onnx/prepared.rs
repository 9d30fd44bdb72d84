//! Prepacked weights: packed for this machine's processor once, and memory-mapped afterwards.
//!
//! ONNX Runtime packs weights at each start into private memory: 3 bytes for each byte of weights. Here
//! it writes them beside the graph once and maps the file at later starts: the kernel shares and evicts
//! its pages. The file is valid for one version of the runtime, one kind of processor and one set of
//! weights, which the name of its folder identifies.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{FolderFiles, MODEL, PREPARED};
use super::runtime::OnnxRuntime;
use crate::device::disk;
use crate::engines::worker::sha256;
use crate::model::generate::Fault;

/// The file of the packed weights.
const DATA: &str = "model.onnx.data";
/// File with the digests of the prepacked files.
const SEAL: &str = "seal.json";
/// Extension of an incomplete folder.
const PART: &str = "part";
/// Free disk space that is required, as a multiple of the weights.
const GROWTH: u64 = 3;

/// SHA-256 of the prepacked files, hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    graph: String,
    data: String,
}

/// The graph with prepacked weights, written if it is missing. `None` if it can't be written (read-only
/// folder, full disk): the graph itself is then loaded.
///
/// # Errors
/// [`Fault::Unavailable`] if the weights are damaged.
pub(super) fn graph(
    folder: &FolderFiles,
    digest: &str,
    runtime: &OnnxRuntime,
) -> Result<Option<PathBuf>, Fault> {
    let home = folder.path.join(format!("{PREPARED}{}", key(digest, &runtime.version)));
    match check(&home) {
        Ok(true) => return Ok(Some(home.join(MODEL))),
        Ok(false) => {}
        Err(why) => {
            tracing::warn!(folder = %home.display(), why, "packing weights again");
            let _ = fs::remove_dir_all(&home);
        }
    }
    folder.verify_weights()?;
    Ok(match make(folder, &home, runtime) {
        Ok(()) => Some(home.join(MODEL)),
        Err(why) => {
            tracing::warn!(folder = %home.display(), why, "weights cannot be packed: the engine \
                                                           needs more memory");
            None
        }
    })
}

fn make(folder: &FolderFiles, home: &Path, runtime: &OnnxRuntime) -> Result<(), String> {
    remove_others(folder, home);
    let mine = format!("{}-{:08x}.{PART}", std::process::id(), fastrand::u32(..));
    let part = home.with_extension(mine);
    let result = make_at(folder, &part, runtime)
        .and_then(|()| fs::rename(&part, home).map_err(|e| e.to_string()));
    if result.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    // another engine may have written them meanwhile
    result.or_else(|why| if check(home) == Ok(true) { Ok(()) } else { Err(why) })
}

fn make_at(folder: &FolderFiles, part: &Path, runtime: &OnnxRuntime) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    fs::create_dir_all(part).map_err(|e| text(&e))?;
    let free = disk(part).ok_or("the free disk space is unknown")?.available;
    if free < folder.bytes() * GROWTH {
        return Err(format!("{} MiB are free on the disk", free >> 20));
    }
    // the session is opened only to write its graph
    drop(write(folder, part, runtime).map_err(|e| text(&e))?);
    let digest = |name: &str| {
        let path = part.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(|e| text(&e))?;
        sha256(&path).map_err(|e| text(&e))
    };
    let seal = Seal { graph: digest(MODEL)?, data: digest(DATA)? };
    let seal = serde_json::to_vec(&seal).map_err(|e| text(&e))?;
    fs::write(part.join(SEAL), seal).map_err(|e| text(&e))
}

fn write(folder: &FolderFiles, part: &Path, runtime: &OnnxRuntime) -> ort::Result<Session> {
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::Level3)?
        .with_optimized_model_path(part.join(MODEL))?
        .with_config_entry("session.optimized_model_external_initializers_file_name", DATA)?
        .with_config_entry("session.save_external_prepacked_constant_initializers", "1")?;
    builder.commit_from_file(&folder.graph)
}

/// Whether the prepacked files exist; an error if they are damaged.
fn check(home: &Path) -> Result<bool, String> {
    let Ok(seal) = fs::read(home.join(SEAL)) else {
        return if home.exists() { Err("no checksum file".to_owned()) } else { Ok(false) };
    };
    let seal: Seal = serde_json::from_slice(&seal).map_err(|e| e.to_string())?;
    for (name, expected) in [(MODEL, &seal.graph), (DATA, &seal.data)] {
        let found = sha256(&home.join(name)).map_err(|e| e.to_string())?;
        if found != *expected {
            return Err(format!("the SHA-256 of {name} has changed"));
        }
    }
    Ok(true)
}

/// Removes folders for another runtime or processor, and those of processes that ended early.
fn remove_others(folder: &FolderFiles, home: &Path) {
    let entries = fs::read_dir(&folder.path).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(PREPARED) && path != home && !is_being_made(&name) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Whether the process that writes the folder, by its id in the name, is alive.
fn is_being_made(name: &str) -> bool {
    let process = name.split('.').nth(1).and_then(|mine| mine.split('-').next());
    name.ends_with(PART) && process.is_some_and(|id| Path::new("/proc").join(id).exists())
}

/// Identifies the weights, the runtime and the processor: 16 hexadecimal digits.
fn key(digest: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(digest);
    hash.update(version);
    hash.update(processor());
    let name = format!("{:x}", hash.finalize());
    name.chars().take(16).collect()
}

/// Model and features of the first processor, from `/proc/cpuinfo`.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = info.split("\n\n").next().unwrap_or_default();
    let keys = ["model name", "flags", "Features", "CPU implementer", "CPU part"];
    let lines = first.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
    lines.collect::<Vec<_>>().join("\n")
}
