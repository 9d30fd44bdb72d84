//! Prune: what is in the store and no configuration names.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::fault::ModelFault;
use super::{ModelStore, lock, remove_any};
use crate::limits::models::{PRUNE_CONFIG_BYTES_MAX, PRUNE_CONFIGS_MAX};
use crate::store::files;

/// Beginnings of the names of configurations below `fleet/` whose models are kept.
const KEPT: [&str; 3] = ["current", "staged", "previous"];

/// A file or folder that no configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name in the store.
    pub name: String,
    /// Its bytes, those of all files of a folder.
    pub bytes: u64,
}

/// What can be removed: all but the models of these names, the ones that a configuration in `fleet` names,
/// and what is loaded of them. `fleet` has the configurations that are in use, on trial, or the previous
/// one; each name that occurs in one of them is kept.
///
/// # Errors
/// If the store or one of these configurations can't be read: nothing may be removed then.
pub fn leftovers(
    store: &ModelStore,
    names: &BTreeSet<String>,
    fleet: Option<&Path>,
) -> Result<Vec<Leftover>, ModelFault> {
    let configs = fleet.map_or(Ok(Vec::new()), configurations)?;
    let broken = |e: io::Error| ModelFault::file(&store.folder, &e);
    let entries = match fs::read_dir(&store.folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(broken(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(broken)?.file_name().to_string_lossy().into_owned();
        let model = model_of(&name);
        let is_named = names.contains(model) || configs.iter().any(|text| occurs(text, model));
        // what is complete is not loaded any more
        let is_done = model != name && names.contains(model) && store.path_of(model).exists();
        if name.starts_with('.') || (is_named && !is_done) {
            continue;
        }
        let bytes = bytes_of(&store.folder.join(&name));
        found.push(Leftover { name, bytes });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Removes a leftover; false if another process loads it.
///
/// # Errors
/// If it can't be removed.
pub fn remove(store: &ModelStore, leftover: &Leftover) -> Result<bool, ModelFault> {
    store.create()?;
    let model = model_of(&leftover.name);
    let Some(_lock) = lock::try_model(&store.locks(), model)? else { return Ok(false) };
    let path = store.folder.join(&leftover.name);
    remove_any(&path).map_err(|e| ModelFault::file(&path, &e))?;
    let _ = fs::remove_file(store.receipts().join(format!("{model}.json")));
    Ok(true)
}

/// The model that a file of the store belongs to.
fn model_of(name: &str) -> &str {
    let mut model = name;
    if let Some(part) = name.strip_suffix(".part.json") {
        model = part;
    }
    // bounded: each turn removes an ending
    while let Some(shorter) = model.strip_suffix(".part") {
        model = shorter;
    }
    model
}

/// Whether a text has a name as a whole word. Names need no escapes in JSON, so that they are found in a
/// configuration within a text of another one as well.
fn occurs(text: &[u8], name: &str) -> bool {
    let name = name.as_bytes();
    let is_part = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(byte))
    };
    let mut windows = text.windows(name.len().max(1)).enumerate();
    windows.any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        window == name && !is_part(before) && !is_part(text.get(at + name.len()))
    })
}

/// The texts of the configurations that are kept, and of all files in their folders.
fn configurations(fleet: &Path) -> Result<Vec<Vec<u8>>, ModelFault> {
    let mut found = Vec::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    match fs::read_dir(fleet) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|e| ModelFault::file(fleet, &e))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if KEPT.iter().any(|kept| name.starts_with(kept)) {
                    paths.push(entry.path());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(ModelFault::file(fleet, &error)),
    }
    // bounded by the number of files
    while let Some(path) = paths.pop() {
        let broken = |e: io::Error| ModelFault::file(&path, &e);
        let meta = match path.metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(broken(error)),
        };
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(broken)? {
                paths.push(entry.map_err(broken)?.path());
            }
        } else {
            found.push(files::read(&path, PRUNE_CONFIG_BYTES_MAX).map_err(broken)?);
        }
        if found.len() + paths.len() > PRUNE_CONFIGS_MAX {
            let why = format!("it has more than {PRUNE_CONFIGS_MAX} files");
            return Err(ModelFault::file(fleet, &why));
        }
    }
    Ok(found)
}

fn bytes_of(path: &Path) -> u64 {
    let Ok(meta) = path.symlink_metadata() else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    below.map(|entry| bytes_of(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_belong_to_their_model() {
        for (name, expected) in [
            ("m.gguf", "m.gguf"),
            ("m.gguf.part", "m.gguf"),
            ("m.gguf.part.json", "m.gguf"),
            ("m.gguf.part.part", "m.gguf"),
            ("config.json", "config.json"),
        ] {
            assert_eq!(model_of(name), expected);
        }
    }

    #[test]
    fn a_name_is_a_whole_word() {
        for (text, expected) in [
            (r#""m.gguf""#, true),
            (r#"{\"args\": [\"--gguf=m.gguf\"]}"#, true),
            ("m.gguf", true),
            ("/var/models/m.gguf", true),
            ("am.gguf", false),
            ("m.gguf.old", false),
            ("m-gguf", false),
            ("", false),
        ] {
            assert_eq!(occurs(text.as_bytes(), "m.gguf"), expected, "{text}");
        }
    }
}
