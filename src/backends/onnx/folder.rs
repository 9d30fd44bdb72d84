//! A model folder: the graph, its tokenizer, and what they say of themselves.
//!
//! Read are folders made by `pilotlight model convert`, by onnxruntime-genai's builder
//! (`genai_config.json`) and by optimum (`config.json`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::backends::engine::sha256;
use crate::backends::template::Template;
use crate::generate::Fault;

/// The graph, unless the configuration names another.
pub(super) const MODEL: &str = "model.onnx";
/// The tokenizer, as the tokenizers library writes it.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Special tokens and chat template.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// onnxruntime-genai's description of the graph.
pub(super) const CONFIG: &str = "genai_config.json";
/// The model's own description, of which optimum's folders have a copy.
const MODEL_CONFIG: &str = "config.json";
/// A chat template in a file of its own, as newer folders have it.
const TEMPLATE: &str = "chat_template.jinja";
/// Where the weights come from.
pub(super) const ORIGIN: &str = "pilotlight.json";

/// Where a converted model comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    pub(super) name: Option<String>,
    pub(super) version: Option<String>,
    pub(super) provider: Option<String>,
    pub(super) licence: Option<String>,
    pub(super) quantization: String,
    /// SHA-256 of each file, hexadecimal.
    pub(super) sha256: BTreeMap<String, String>,
}

/// The names of the graph's inputs and outputs; `%d` stands for the layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Names {
    pub(super) input_ids: String,
    pub(super) attention_mask: String,
    pub(super) position_ids: String,
    pub(super) past: [String; 2],
    pub(super) logits: String,
    pub(super) present: [String; 2],
}

/// What a folder says.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) graph: PathBuf,
    pub(super) family: String,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) context: u32,
    /// The tokens that end an answer, the usual one first.
    pub(super) ends: Vec<u32>,
    /// Whether past and present may lie in one buffer.
    pub(super) shared: bool,
    pub(super) names: Names,
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    pub(super) add_bos: bool,
    pub(super) template: Option<Template>,
    pub(super) origin: Origin,
}

impl Folder {
    /// Reads everything but the weights.
    ///
    /// # Errors
    /// [`Fault::Away`] that names the file and what is wrong with it.
    pub(super) fn read(path: &Path) -> Result<Folder, Fault> {
        if !path.is_dir() {
            return Err(Fault::Away(format!("there is no model folder {}", path.display())));
        }
        let told = json(&path.join(CONFIG))?;
        let (model, decoder) = match &told {
            Some(told) => (told["model"].clone(), told["model"]["decoder"].clone()),
            None => {
                let own = json(&path.join(MODEL_CONFIG))?.ok_or_else(|| {
                    let shown = path.display();
                    Fault::Away(format!("{shown} has neither {CONFIG} nor {MODEL_CONFIG}"))
                })?;
                (own.clone(), own)
            }
        };
        let size = |key: &str| {
            let n = decoder[key].as_u64().filter(|n| (1..=1 << 20).contains(n));
            let n = n.and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| Fault::Away(format!("{} does not say {key}", path.display())))
        };
        let heads = size("num_attention_heads")?;
        let head = size("head_size").or_else(|_| size("head_dim"));
        let head = head.or_else(|_| size("hidden_size").map(|hidden| hidden / heads))?;
        let context = ["context_length", "max_position_embeddings"];
        let context = context.iter().find_map(|key| model[*key].as_u64()).unwrap_or(2048);
        let tokenizer = json(&path.join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let (bos, eos) = (token(&tokenizer["bos_token"]), token(&tokenizer["eos_token"]));
        let template = template(path, &tokenizer, bos.as_deref(), eos.as_deref())?;
        let origin = json(&path.join(ORIGIN))?.map(serde_json::from_value::<Origin>).transpose();
        let origin = origin.map_err(|e| damaged(&path.join(ORIGIN), &e))?.unwrap_or_default();
        Ok(Folder {
            graph: path.join(decoder["filename"].as_str().unwrap_or(MODEL)),
            family: model["type"]
                .as_str()
                .or(model["model_type"].as_str())
                .unwrap_or("")
                .to_owned(),
            layers: size("num_hidden_layers")?,
            kv_heads: size("num_key_value_heads").unwrap_or(heads),
            head,
            context: u32::try_from(context).unwrap_or(u32::MAX),
            ends: ids(&model["eos_token_id"]),
            shared: told.is_some_and(|told| told["search"]["past_present_share_buffer"] == true),
            names: names(&decoder),
            bos,
            eos,
            add_bos: tokenizer["add_bos_token"] == true,
            template,
            origin,
            path: path.to_owned(),
        })
    }

    /// What names the weights: their SHA-256 as it was written down, else one over all files of the
    /// graph as they are.
    ///
    /// # Errors
    /// [`Fault::Away`] that names the file that can't be read.
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

    /// Looks whether everything but the weights is what was written.
    ///
    /// # Errors
    /// [`Fault::Away`] that names the file that has changed.
    pub(super) fn verify(&self) -> Result<(), Fault> {
        self.verify_files(|name| !is_weights(name))
    }

    /// Looks whether the weights are those that were written; a flipped byte would be read as if
    /// nothing were wrong.
    ///
    /// # Errors
    /// [`Fault::Away`] that names the file that has changed.
    pub(super) fn verify_weights(&self) -> Result<(), Fault> {
        self.verify_files(is_weights)
    }

    fn verify_files(&self, wanted: impl Fn(&str) -> bool) -> Result<(), Fault> {
        for (name, expected) in self.origin.sha256.iter().filter(|(name, _)| wanted(name)) {
            let path = self.path.join(name);
            let found = sha256(&path).map_err(|e| damaged(&path, &e))?;
            if found != *expected {
                return Err(Fault::Away(format!(
                    "{} is not what was written: its SHA-256 has changed; convert the model again",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    /// Bytes of all files of the graph.
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

/// Whether a file of this name holds weights, beside the graph.
fn is_weights(name: &str) -> bool {
    name.contains(".onnx") && name.contains("data")
}

/// A JSON file; none if it is not there.
fn json(path: &Path) -> Result<Option<Value>, Fault> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|e| damaged(path, &e))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(damaged(path, &error)),
    }
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Fault {
    Fault::Away(format!("{} can't be read: {error}", path.display()))
}

/// One id, or several.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(all) => all.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}

/// A special token: its text, or an object that has it.
fn token(value: &Value) -> Option<String> {
    value.as_str().or(value["content"].as_str()).map(str::to_owned)
}

fn template(
    path: &Path,
    tokenizer: &Value,
    bos: Option<&str>,
    eos: Option<&str>,
) -> Result<Option<Template>, Fault> {
    let own = fs::read_to_string(path.join(TEMPLATE)).ok();
    let source = own.or_else(|| tokenizer["chat_template"].as_str().map(str::to_owned));
    let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
    let template = source.map(|source| Template::new(source, text(bos), text(eos)));
    template.transpose().map_err(Fault::Away)
}

fn names(decoder: &Value) -> Names {
    let name = |kind: &str, key: &str, usual: &str| {
        decoder[kind][key].as_str().unwrap_or(usual).to_owned()
    };
    Names {
        input_ids: name("inputs", "input_ids", "input_ids"),
        attention_mask: name("inputs", "attention_mask", "attention_mask"),
        position_ids: name("inputs", "position_ids", "position_ids"),
        past: [
            name("inputs", "past_key_names", "past_key_values.%d.key"),
            name("inputs", "past_value_names", "past_key_values.%d.value"),
        ],
        logits: name("outputs", "logits", "logits"),
        present: [
            name("outputs", "present_key_names", "present.%d.key"),
            name("outputs", "present_value_names", "present.%d.value"),
        ],
    }
}
