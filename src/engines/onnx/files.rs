//! Files of a model folder: origin, digests and verification.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::engines::worker::sha256;
use crate::model::generate::Fault;

/// The graph, by default.
pub(crate) const MODEL: &str = "model.onnx";
/// The tokenizer, in the format of the `tokenizers` library.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Configuration of the model.
pub(crate) const MODEL_CONFIG: &str = "config.json";
/// onnxruntime-genai's configuration of a decoder's graph.
pub(crate) const CONFIG: &str = "genai_config.json";
/// Origin and digests of the files.
pub(crate) const ORIGIN: &str = "pilotlight.json";

/// Prefix of the folder with prepacked weights.
pub(super) const PREPARED: &str = "prepared-";
/// Most files of a folder whose digest is pinned; those of the tested models have up to 12.
const FILES_MAX: usize = 256;

/// Origin of a converted model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) provider: Option<String>,
    pub(crate) licence: Option<String>,
    pub(crate) quantization: String,
    /// SHA-256 of each file, hexadecimal.
    pub(crate) sha256: BTreeMap<String, String>,
}

/// A folder with a graph.
pub(super) struct FolderFiles {
    pub(super) path: PathBuf,
    pub(super) graph: PathBuf,
    pub(super) origin: Origin,
}

impl FolderFiles {
    /// Reads the origin of a folder.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names what is missing or can't be read.
    pub(super) fn read(path: &Path, graph: &str) -> Result<FolderFiles, Fault> {
        if !path.is_dir() {
            return Err(Fault::unavailable(format!("there is no model folder {}", path.display())));
        }
        let origin = json(&path.join(ORIGIN))?.map(serde_json::from_value::<Origin>).transpose();
        let origin = origin.map_err(|e| damaged(&path.join(ORIGIN), &e))?.unwrap_or_default();
        Ok(FolderFiles { path: path.to_owned(), graph: path.join(graph), origin })
    }

    /// Name of the folder.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| "onnx".to_owned())
    }

    /// Digest of the weights: the recorded SHA-256, else one over all files of the graph.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names the file that can't be read.
    pub(super) fn digest(&self) -> Result<String, Fault> {
        let recorded = self.origin.sha256.iter().find(|(name, _)| is_weights(name));
        if let Some((_, digest)) = recorded {
            return Ok(digest.clone());
        }
        let mut all = Sha256::new();
        for path in self.graph_files() {
            all.update(sha256(&path).map_err(|e| damaged(&path, &e))?);
        }
        Ok(format!("{:x}", all.finalize()))
    }

    /// Checks the digest of the whole folder: the SHA-256 of what `sha256sum` prints for all its files in
    /// the order of their paths. The folder of the prepacked weights is not part of it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names the file that can't be read, or both digests.
    pub(super) fn check_pinned(&self, pinned: &str) -> Result<(), Fault> {
        let mut paths = Vec::new();
        self.collect(&self.path, &mut paths)?;
        paths.sort();
        let mut all = Sha256::new();
        for name in paths {
            let path = self.path.join(&name);
            let digest = sha256(&path).map_err(|e| damaged(&path, &e))?;
            all.update(format!("{digest}  ./{name}\n"));
        }
        let digest = format!("{:x}", all.finalize());
        if digest == pinned {
            return Ok(());
        }
        Err(Fault::unavailable(format!(
            "{} has the SHA-256 {digest} and {pinned} is pinned: it is not loaded; restore the \
             folder, or change pilotlight.servers.NAME.digest",
            self.path.display()
        )))
    }

    /// Adds the paths of all files below a folder, relative to this one.
    fn collect(&self, folder: &Path, into: &mut Vec<String>) -> Result<(), Fault> {
        let entries = fs::read_dir(folder).map_err(|e| damaged(folder, &e))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let below = path.strip_prefix(&self.path).unwrap_or(&path);
            let name = below.to_string_lossy().into_owned();
            if into.len() >= FILES_MAX {
                return Err(damaged(folder, &format!("more than {FILES_MAX} files")));
            }
            if name.starts_with(PREPARED) {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                self.collect(&path, into)?;
            } else {
                into.push(name);
            }
        }
        Ok(())
    }

    /// Verifies the SHA-256 of all files but the weights.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names the file that has changed.
    pub(super) fn verify(&self) -> Result<(), Fault> {
        self.verify_files(|name| !is_weights(name))
    }

    /// Verifies the SHA-256 of the weights: a flipped byte would not be noticed otherwise.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names the file that has changed.
    pub(super) fn verify_weights(&self) -> Result<(), Fault> {
        self.verify_files(is_weights)
    }

    fn verify_files(&self, wanted: impl Fn(&str) -> bool) -> Result<(), Fault> {
        for (name, expected) in self.origin.sha256.iter().filter(|(name, _)| wanted(name)) {
            let path = self.path.join(name);
            let found = sha256(&path).map_err(|e| damaged(&path, &e))?;
            if found != *expected {
                return Err(Fault::unavailable(format!(
                    "{}: SHA-256 mismatch; convert the model again",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Size of all files of the graph, bytes.
    pub(super) fn bytes(&self) -> u64 {
        let lengths = self.graph_files().into_iter().map(fs::metadata);
        lengths.filter_map(Result::ok).map(|meta| meta.len()).sum()
    }

    fn graph_files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name().to_string_lossy().contains(".onnx"));
        let mut paths: Vec<PathBuf> = files.map(|file| file.path()).collect();
        paths.sort();
        paths
    }
}

/// Whether a file of this name holds weights outside of the graph.
fn is_weights(name: &str) -> bool {
    name.contains(".onnx") && name.contains("data")
}

/// Reads a JSON file; `None` if it does not exist.
pub(super) fn json(path: &Path) -> Result<Option<Value>, Fault> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(damaged(path, &error)),
    }
}

pub(super) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Fault {
    Fault::unavailable(format!("{} cannot be read: {error}", path.display()))
}
