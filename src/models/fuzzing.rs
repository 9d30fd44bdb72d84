//! Entry point of the fuzz target `onnx`: a file of a model folder.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::structure::check_file;
use crate::catalog::addresses::AddressRule;
use crate::catalog::model::{ModelFileEntry, ModelSource};

/// Checks a file as the first of these files of an entry: paths and lengths.
///
/// # Errors
/// Why the file is refused.
pub fn check(file: &File, files: &[(&str, u64)]) -> Result<(), String> {
    let entries: Vec<ModelFileEntry> = files
        .iter()
        .map(|(path, bytes)| ModelFileEntry {
            path: (*path).to_owned(),
            source: ModelSource::File(String::new()),
            addresses: AddressRule::Any,
            sha256: String::new(),
            bytes: *bytes,
        })
        .collect();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    entries.first().map_or(Ok(()), |first| check_file(&path, first, &entries))
}
