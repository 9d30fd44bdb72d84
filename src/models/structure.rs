//! Structure of files whose digest is right: a digest tells that a file is the one that was meant, not that
//! it is harmless.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

use super::onnx_graph;
use crate::catalog::model::{ModelEntry, ModelFileEntry, is_graph};
use crate::gguf::head::GgufHead;
use crate::limits::models::{MODEL_JSON_BYTES_MAX, MODEL_SHOWN_BYTES_MAX};
use crate::request::refusal::one_line;
use crate::store::files;

/// Configurations that name the graphs of a folder: of onnxruntime-genai, and of optimum.
const CONFIGS: [&str; 2] = ["genai_config.json", "config.json"];

/// Checks the head of a GGUF file.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_gguf(mut file: &File, bytes: u64) -> Result<(), String> {
    file.seek(SeekFrom::Start(0)).map_err(|e| format!("it cannot be read: {e}"))?;
    match GgufHead::read(file, bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the head of the GGUF file is damaged: {error:#}")),
    }
}

/// Checks the graphs of a folder: their external data are files of the entry, and nothing else.
///
/// # Errors
/// The path of a file, and what is wrong with it.
pub(super) fn check_onnx(entry: &ModelEntry, folder: &Path) -> Result<(), (String, String)> {
    for file in &entry.files {
        let path = folder.join(&file.path);
        check_file(&path, file, &entry.files).map_err(|why| (file.path.clone(), why))?;
    }
    Ok(())
}

/// Checks a graph, or a configuration that names graphs, against the files of its entry.
pub(super) fn check_file(
    path: &Path,
    file: &ModelFileEntry,
    all: &[ModelFileEntry],
) -> Result<(), String> {
    if is_graph(&file.path) {
        check_graph(path, file, all)
    } else if CONFIGS.iter().any(|name| file.path.rsplit('/').next() == Some(name)) {
        check_config(path, file, all)
    } else {
        Ok(())
    }
}

fn check_graph(path: &Path, file: &ModelFileEntry, all: &[ModelFileEntry]) -> Result<(), String> {
    let opened = File::open(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let mut graph = onnx_graph::read(&opened, file.bytes, &mut |data| {
        let Some(target) = beside(&file.path, &data.location, all) else {
            return Err(format!(
                "its external data {:?} is no file of the entry, relative to the graph",
                one_line(&data.location, MODEL_SHOWN_BYTES_MAX)
            ));
        };
        let end = data.offset.checked_add(data.length.unwrap_or_default());
        if end.is_none_or(|end| end > target.bytes) {
            return Err(format!("its external data goes beyond the end of {}", target.path));
        }
        Ok(())
    });
    if graph == Ok(0) {
        graph = Err("it has no graph".to_owned());
    }
    graph.map(drop).map_err(|why| format!("it is no ONNX file that can be used: {why}"))
}

/// Checks that the graphs that the configuration names are files of the entry.
fn check_config(path: &Path, file: &ModelFileEntry, all: &[ModelFileEntry]) -> Result<(), String> {
    let bytes = files::read(path, MODEL_JSON_BYTES_MAX).map_err(|e| e.to_string())?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|e| format!("no JSON: {e}"))?;
    let parts = config.get("model").and_then(Value::as_object).into_iter().flat_map(|m| m.values());
    for part in [&config].into_iter().chain(parts) {
        let Some(name) = part.get("filename") else { continue };
        let graph = name.as_str().and_then(|name| beside(&file.path, name, all));
        if graph.is_none_or(|graph| !is_graph(&graph.path)) {
            let name = one_line(&name.to_string(), MODEL_SHOWN_BYTES_MAX);
            return Err(format!("it names the graph {name}, which is no .onnx file of the entry"));
        }
    }
    Ok(())
}

/// The file of the entry at `location` in the folder of `of`. Paths of entries have no `..`, so that nothing
/// outside of the folder is one.
fn beside<'f>(of: &str, location: &str, all: &'f [ModelFileEntry]) -> Option<&'f ModelFileEntry> {
    let location = location.strip_prefix("./").unwrap_or(location);
    let path = match of.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{location}"),
        None => location.to_owned(),
    };
    all.iter().find(|file| file.path == path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::catalog::addresses::AddressRule;
    use crate::catalog::model::ModelSource;

    #[test]
    fn a_message_shows_the_beginning_of_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let field = |tag: u8, content: &[u8]| {
            let length = u16::try_from(content.len()).unwrap();
            let low = u8::try_from(length & 0x7f).unwrap() | 0x80;
            [&[tag, low, u8::try_from(length >> 7).unwrap()], content].concat()
        };
        let graph = |key: &str, value: &str| {
            let entry = [field(0x0a, key.as_bytes()), field(0x12, value.as_bytes())].concat();
            field(0x3a, &field(0x2a, &field(0x6a, &entry)))
        };
        for long in ["../w", "\u{1}", "\u{202e}", "é"].map(|text| text.repeat(1000)) {
            let config = serde_json::json!({ "filename": long.repeat(20) }).to_string();
            for (name, bytes) in [
                ("m.onnx", graph("location", &long)),
                ("m.onnx", graph("offset", &long)),
                ("config.json", config.into_bytes()),
            ] {
                let path = folder.path().join(name);
                fs::write(&path, &bytes).unwrap();
                let file = ModelFileEntry {
                    path: name.to_owned(),
                    source: ModelSource::File(String::new()),
                    addresses: AddressRule::Any,
                    sha256: String::new(),
                    bytes: bytes.len() as u64,
                };
                let why = check_file(&path, &file, std::slice::from_ref(&file)).unwrap_err();
                assert!(why.len() < 1024 && !why.contains(char::is_control), "{why}");
                assert!(why.contains("external data") || why.contains("names the graph"), "{why}");
            }
        }
    }
}
