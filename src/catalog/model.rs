//! Models as artefacts: where the files of a model come from, and how they are recognized.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::addresses::AddressRule;
use super::secret::Secret;
use super::server::{Endpoint, ServerEntry, is_engine};
use crate::limits::models::{MODEL_LEVELS_MAX, MODEL_NAME_BYTES_MAX};
use crate::model::context::Locality;
use crate::money::Price;

/// One model of `pilotlight.models`: a GGUF file, or a folder for ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// The key of the entry, and the name of the file or folder in the model store.
    pub name: String,
    /// Whether it is a file or a folder.
    pub kind: ModelKind,
    /// The files in the order of their paths. A [`ModelKind::Gguf`] has one, whose path is the name.
    pub files: Vec<ModelFileEntry>,
    /// The licence as its author names it, such as `apache-2.0`.
    pub licence: String,
    /// Patterns of the boards that the model is for; empty for all.
    pub boards: Vec<String>,
    /// A PEM file with the certificate authorities that its sources are verified by; the system's if none.
    pub ca: Option<String>,
}

/// What a model consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// One GGUF file.
    Gguf,
    /// A folder with at least one ONNX graph.
    OnnxFolder,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFileEntry {
    /// The path in the folder, with `/` between its levels.
    pub path: String,
    /// Where it comes from.
    pub source: ModelSource,
    /// Which addresses the source may have, and the hosts that it redirects to.
    pub addresses: AddressRule,
    /// Its SHA-256: 64 digits `0-9a-f`.
    pub sha256: String,
    /// Its exact length.
    pub bytes: u64,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// An `https://` URL, or `http://` of a loopback address. It may hold a key.
    Url(Secret<String>),
    /// A path on this device.
    File(String),
}

impl ModelEntry {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// The SHA-256 of the file; of a folder that of what `sha256sum` prints for all its files in the order
    /// of their paths, as for `pilotlight.servers.NAME.digest`.
    pub fn digest(&self) -> String {
        match (self.kind, self.files.as_slice()) {
            (ModelKind::Gguf, [file]) => file.sha256.clone(),
            (ModelKind::Gguf | ModelKind::OnnxFolder, files) => folder_digest(files),
        }
    }

    /// Whether the model is for the board with these names; see [`crate::device::identity::board_names`].
    pub fn is_for(&self, board: &[String]) -> bool {
        let fits = |pattern: &String| board.iter().any(|name| matches(pattern, name));
        self.boards.is_empty() || self.boards.iter().any(fits)
    }
}

/// The SHA-256 of the lines that `sha256sum` prints for these files, which are in the order of their paths.
pub(super) fn folder_digest(files: &[ModelFileEntry]) -> String {
    let mut all = Sha256::new();
    for file in files {
        all.update(format!("{}  ./{}\n", file.sha256, file.path));
    }
    format!("{:x}", all.finalize())
}

/// Whether a name fits a pattern, in which `*` stands for any characters; ASCII letters of either case are
/// the same.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What [`is_model_name`] accepts, as far as a pattern can state it.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$";

/// Whether this can be the name of a model, and one level of a path in its folder: letters, digits and
/// `. _ + -`, beginning with a letter or digit. No path leaves its folder, no shell reads it as an option,
/// and it is the same on every file system.
pub(super) fn is_model_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    (1..=MODEL_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && !name.ends_with('.')
        && ![".part", ".part.json"].iter().any(|end| name.ends_with(end))
}

/// Whether a file of a model folder is an ONNX graph, by its name.
pub fn is_graph(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, end)| end.eq_ignore_ascii_case("onnx"))
}

/// Whether this can be the path of a file in a model folder.
pub(super) fn is_model_path(path: &str) -> bool {
    path.split('/').count() <= MODEL_LEVELS_MAX && path.split('/').all(is_model_name)
}

/// The place of the model in the arguments of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelArgument {
    /// `--gguf` or `--onnx`.
    pub flag: String,
    /// The file, the folder, or the name of a model.
    pub value: String,
    /// The index of the argument that has the value.
    at: usize,
    is_joined: bool,
}

impl ServerEntry {
    /// An engine of this program with these arguments and variables, and defaults for the rest.
    pub fn of_engine(
        name: String,
        args: Vec<String>,
        env: BTreeMap<String, String>,
    ) -> ServerEntry {
        let (command, hidden) = ("pilotlight".to_owned(), BTreeSet::new());
        ServerEntry {
            name,
            endpoint: Endpoint::Child { command, args, env, hidden },
            locality: Locality::Device,
            silence: None,
            idle_probe: None,
            skills: Vec::new(),
            fallbacks: Vec::new(),
            price: Price::default(),
            tools: BTreeMap::new(),
        }
    }

    /// Whether it is an engine of this program.
    pub fn is_own_engine(&self) -> bool {
        matches!(&self.endpoint, Endpoint::Child { command, args, .. } if is_engine(command, args))
    }

    /// The model that an engine of this program is started with; none for other servers.
    pub fn model_argument(&self) -> Option<ModelArgument> {
        let Endpoint::Child { command, args, .. } = &self.endpoint else { return None };
        if !is_engine(command, args) {
            return None;
        }
        args.iter().enumerate().find_map(|(at, arg)| {
            let (flag, joined) = match arg.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (arg.as_str(), None),
            };
            let flag = ["--gguf", "--onnx"].into_iter().find(|known| *known == flag)?.to_owned();
            Some(match joined {
                Some(value) => ModelArgument { flag, value: value.to_owned(), at, is_joined: true },
                None => {
                    let value = args.get(at + 1)?.clone();
                    ModelArgument { flag, value, at: at + 1, is_joined: false }
                }
            })
        })
    }

    /// Whether its engine loads the model at this path.
    pub fn uses_model_at(&self, path: &Path) -> bool {
        self.model_argument().is_some_and(|argument| Path::new(&argument.value) == path)
    }

    /// Starts the engine with the model at this path. A GGUF file is pinned to `digest`, unless the entry
    /// pins one: the engine reads the whole file for it before it parses a byte.
    pub fn set_model(&mut self, argument: &ModelArgument, path: &str, digest: &str) {
        let Endpoint::Child { args, .. } = &mut self.endpoint else { return };
        if let Some(value) = args.get_mut(argument.at) {
            *value = if argument.is_joined {
                format!("{}={path}", argument.flag)
            } else {
                path.to_owned()
            };
        }
        let is_pinned = args.iter().any(|arg| arg == "--digest" || arg.starts_with("--digest="));
        if argument.flag == "--gguf" && !is_pinned {
            args.extend(["--digest".to_owned(), format!("sha256:{digest}")]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_boards() {
        for (pattern, name, expected) in [
            ("aarch64", "aarch64", true),
            ("aarch64", "aarch64_be", false),
            ("AARCH64", "aarch64", true),
            ("raspberry pi*", "Raspberry Pi 5 Model B Rev 1.0", true),
            ("*orin*", "NVIDIA Jetson Orin Nano Developer Kit", true),
            ("*orin", "NVIDIA Jetson Orin Nano Developer Kit", false),
            ("raspberrypi,5*", "raspberrypi,5-model-b", true),
            ("*", "x", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["m.gguf", "Qwen2.5-0.5B_Q4+x", "1"] {
            assert!(is_model_name(name), "{name}");
        }
        let long = "a".repeat(MODEL_NAME_BYTES_MAX + 1);
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "../a",
            "a\\b",
            "-a",
            "a b",
            "a\0",
            "ä",
            "a.part",
            "a.part.json",
            "a.",
            &long,
        ] {
            assert!(!is_model_name(name), "{name:?}");
        }
        for path in ["model.onnx", "onnx/model.onnx", "a/b/c/d"] {
            assert!(is_model_path(path), "{path}");
        }
        for path in ["/a", "a//b", "a/", "a/../b", "../a", "a/./b", "a/b/c/d/e", "a/.git"] {
            assert!(!is_model_path(path), "{path}");
        }
    }
}
