//! Faults of the model store, each with what an operator can do about it.

use std::fmt;
use std::io;
use std::path::Path;

/// Why a model is not in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFault {
    /// It was cancelled; what has arrived is kept, and the next download resumes there.
    Cancelled,
    /// The disk has too little room.
    NoRoom {
        /// Bytes that are still to be written, and the bytes that are kept free.
        needed: u64,
        /// Bytes that are free.
        available: u64,
        /// The folder on this disk.
        folder: String,
    },
    /// The server or the network failed. Another attempt may succeed.
    Unreachable(String),
    /// The server refused, or sent what can't be the file. Another attempt would end in the same way.
    Refused(String),
    /// The file has another length.
    WrongLength {
        /// The path of the file in the model.
        file: String,
        /// The length in `mcp.json`.
        expected: u64,
        /// What was found.
        found: String,
    },
    /// The file has another SHA-256.
    WrongDigest {
        /// The path of the file in the model.
        file: String,
        /// The digest in `mcp.json`.
        expected: String,
        /// The digest of the file.
        found: String,
    },
    /// The digest is right, and the file is still not one that an engine may load.
    Damaged {
        /// The path of the file in the model.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file or folder of this device can't be used.
    File {
        /// The path of the file.
        path: String,
        /// The error of the system.
        why: String,
    },
}

impl ModelFault {
    /// The name of the kind, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ModelFault::Cancelled => "cancelled",
            ModelFault::NoRoom { .. } => "no_room",
            ModelFault::Unreachable(_) => "unreachable",
            ModelFault::Refused(_) => "refused",
            ModelFault::WrongLength { .. } => "wrong_length",
            ModelFault::WrongDigest { .. } => "wrong_digest",
            ModelFault::Damaged { .. } => "damaged",
            ModelFault::File { .. } => "file",
        }
    }

    pub(super) fn file(path: &Path, error: &dyn fmt::Display) -> ModelFault {
        ModelFault::File { path: path.display().to_string(), why: error.to_string() }
    }

    /// The fault of a write: a full disk is told apart.
    pub(super) fn write(path: &Path, error: &io::Error) -> ModelFault {
        let known = [
            (io::ErrorKind::StorageFull, "the disk is full; free some room and run it again"),
            (io::ErrorKind::QuotaExceeded, "the disk quota is used up"),
            (io::ErrorKind::FileTooLarge, "the file system can't hold a file of this length"),
        ];
        match known.iter().find(|(kind, _)| *kind == error.kind()) {
            Some((_, why)) => ModelFault::file(path, why),
            None => ModelFault::file(path, error),
        }
    }
}

impl fmt::Display for ModelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelFault::Cancelled => {
                f.write_str("cancelled; what has arrived is kept, and the next pull resumes there")
            }
            ModelFault::NoRoom { needed, available, folder } => write!(
                f,
                "the disk of {folder} has {} MiB free and {} MiB are needed, the reserve of the disk included; run \
                 `pilotlight model prune`, or set PILOTLIGHT_MODELS to a folder of another disk",
                available >> 20,
                needed.div_ceil(1 << 20)
            ),
            ModelFault::Unreachable(why) => {
                write!(f, "{why}; what has arrived is kept, and the next pull resumes there")
            }
            ModelFault::Refused(why) => f.write_str(why),
            ModelFault::WrongLength { file, expected, found } => write!(
                f,
                "{file}: {found}, and mcp.json states {expected} bytes; correct bytes and sha256, or the \
                 source"
            ),
            ModelFault::WrongDigest { file, expected, found } => write!(
                f,
                "{file}: the SHA-256 is {found}, and mcp.json states {expected}; the file is not used; \
                 correct sha256 if the file is the right one, or the source"
            ),
            ModelFault::Damaged { file, why } => {
                write!(f, "{file}: {why}; the file is not used: choose another one")
            }
            ModelFault::File { path, why } => write!(f, "{path}: {why}"),
        }
    }
}

impl std::error::Error for ModelFault {}
