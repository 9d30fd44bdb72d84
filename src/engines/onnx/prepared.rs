//! Weights in the order in which this machine's processor wants them, made once and mapped then.
//!
//! ONNX Runtime packs weights anew at each start and keeps the packed copy for itself: 3 bytes of
//! memory for each byte of weights. Here it writes them beside the graph once, and maps the file
//! from then on: the kernel shares it, and can let go of it. What was written is good for one
//! version of the runtime, one kind of processor and one set of weights; the name of its folder
//! says which.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{FolderFiles, MODEL};
use super::runtime::OnnxRuntime;
use crate::engines::worker::sha256;
use crate::model::generate::Fault;

/// The file of the packed weights.
const DATA: &str = "model.onnx.data";
/// What was written.
const SEAL: &str = "seal.json";
/// The beginning of the folder's name.
const PREFIX: &str = "prepared-";
/// The ending of what is not complete.
const PART: &str = "part";
/// How much larger packed weights may be than the weights, in room on the disk.
const GROWTH: u64 = 3;

/// SHA-256 of what was written, hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    graph: String,
    data: String,
}

/// The prepared graph, made now if it is not there; none if it can't be made (a folder that can't
/// be written, a disk that is full): the graph itself is then loaded.
///
/// # Errors
/// If the weights that would have to be read are not those that were written.
pub(super) fn graph(
    folder: &FolderFiles,
    digest: &str,
    runtime: &OnnxRuntime,
) -> Result<Option<PathBuf>, Fault> {
    let home = folder.path.join(format!("{PREFIX}{}", key(digest, &runtime.version)));
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
    // another engine may have been faster
    result.or_else(|why| if check(home) == Ok(true) { Ok(()) } else { Err(why) })
}

fn make_at(folder: &FolderFiles, part: &Path, runtime: &OnnxRuntime) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    fs::create_dir_all(part).map_err(|e| told(&e))?;
    let room = nix::sys::statvfs::statvfs(part).map_err(|e| told(&e))?;
    let room = room.blocks_available() * room.fragment_size();
    if room < folder.bytes() * GROWTH {
        return Err(format!("{} MiB are free on the disk", room >> 20));
    }
    // the session is only made so that its graph is written
    drop(write(folder, part, runtime).map_err(|e| told(&e))?);
    let digest = |name: &str| {
        let path = part.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(|e| told(&e))?;
        sha256(&path).map_err(|e| told(&e))
    };
    let seal = Seal { graph: digest(MODEL)?, data: digest(DATA)? };
    let seal = serde_json::to_vec(&seal).map_err(|e| told(&e))?;
    fs::write(part.join(SEAL), seal).map_err(|e| told(&e))
}

fn write(folder: &FolderFiles, part: &Path, runtime: &OnnxRuntime) -> ort::Result<Session> {
    let mut builder = Session::builder(&runtime.environment)?
        .with_optimization_level(GraphOptimizationLevel::Level3)?
        .with_optimized_model_path(part.join(MODEL))?
        .with_config_entry("session.optimized_model_external_initializers_file_name", DATA)?
        .with_config_entry("session.save_external_prepacked_constant_initializers", "1")?;
    builder.commit_from_file(&folder.graph)
}

/// Whether it is there; an error if it is and is not what was written.
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

/// What was prepared for another runtime or processor, or by a process that did not come to its
/// end, only takes room.
fn remove_others(folder: &FolderFiles, home: &Path) {
    let entries = fs::read_dir(&folder.path).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && path != home && !is_being_made(&name) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Whether the process that makes it, by its name, is alive.
fn is_being_made(name: &str) -> bool {
    let process = name.split('.').nth(1).and_then(|mine| mine.split('-').next());
    name.ends_with(PART) && process.is_some_and(|id| Path::new("/proc").join(id).exists())
}

/// Names the weights, the runtime and the processor.
fn key(digest: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(digest);
    hash.update(version);
    hash.update(processor());
    let name = format!("{:x}", hash.finalize());
    name.chars().take(16).collect()
}

/// What the kernel says of the first processor: its model and what it can do.
fn processor() -> String {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = told.split("\n\n").next().unwrap_or_default();
    let keys = ["model name", "flags", "Features", "CPU implementer", "CPU part"];
    let lines = first.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
    lines.collect::<Vec<_>>().join("\n")
}
