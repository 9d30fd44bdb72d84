//! Configuration of a decoder's model folder.
//!
//! Folders are those of `pilotlight model convert`, of onnxruntime-genai's builder
//! (`genai_config.json`) and of optimum (`config.json`).

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::files::{CONFIG, FolderFiles, MODEL, MODEL_CONFIG, json};
use crate::engines::template::ChatTemplate;
use crate::model::generate::Fault;

/// File with special tokens and chat template.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// File with the chat template, in folders of recent tools.
const TEMPLATE: &str = "chat_template.jinja";

/// Names of the graph's inputs and outputs; `%d` is the index of the layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Names {
    pub(super) input_ids: String,
    pub(super) attention_mask: String,
    pub(super) position_ids: String,
    pub(super) past: [String; 2],
    pub(super) logits: String,
    pub(super) present: [String; 2],
}

/// Sizes, names, special tokens and chat template of a model.
pub(super) struct Folder {
    pub(super) files: FolderFiles,
    pub(super) family: String,
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) context: u32,
    /// End-of-generation tokens, the most common one first.
    pub(super) ends: Vec<u32>,
    /// Whether past and present keys and values may share a buffer.
    pub(super) shared: bool,
    pub(super) names: Names,
    pub(super) bos: Option<String>,
    pub(super) eos: Option<String>,
    pub(super) add_bos: bool,
    pub(super) template: Option<ChatTemplate>,
}

impl Folder {
    /// Reads all files but the weights.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that names the file and the defect.
    pub(super) fn read(path: &Path) -> Result<Folder, Fault> {
        let files = FolderFiles::read(path, MODEL)?;
        let genai = json(&path.join(CONFIG))?;
        let (model, decoder) = match &genai {
            Some(genai) => (genai["model"].clone(), genai["model"]["decoder"].clone()),
            None => {
                let own = json(&path.join(MODEL_CONFIG))?.ok_or_else(|| {
                    let shown = path.display();
                    Fault::unavailable(format!("{shown} has neither {CONFIG} nor {MODEL_CONFIG}"))
                })?;
                (own.clone(), own)
            }
        };
        let size = |key: &str| {
            let n = decoder[key].as_u64().filter(|n| (1..=1 << 20).contains(n));
            let n = n.and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| Fault::unavailable(format!("{} has no key {key}", path.display())))
        };
        let heads = size("num_attention_heads")?;
        let head = size("head_size").or_else(|_| size("head_dim"));
        let head = head.or_else(|_| size("hidden_size").map(|hidden| hidden / heads))?;
        let context = ["context_length", "max_position_embeddings"];
        let context = context.iter().find_map(|key| model[*key].as_u64()).unwrap_or(2048);
        let tokenizer = json(&path.join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let (bos, eos) = (token(&tokenizer["bos_token"]), token(&tokenizer["eos_token"]));
        let template = template(path, &tokenizer, bos.as_deref(), eos.as_deref())?;
        let graph = path.join(decoder["filename"].as_str().unwrap_or(MODEL));
        Ok(Folder {
            files: FolderFiles { graph, ..files },
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
            shared: genai.is_some_and(|genai| genai["search"]["past_present_share_buffer"] == true),
            names: names(&decoder),
            bos,
            eos,
            add_bos: tokenizer["add_bos_token"] == true,
            template,
        })
    }
}

/// One token id, or a list.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(all) => all.iter().filter_map(id).collect(),
        None => id(value).into_iter().collect(),
    }
}

/// The text of a special token, which is a string or an object with `content`.
fn token(value: &Value) -> Option<String> {
    value.as_str().or(value["content"].as_str()).map(str::to_owned)
}

fn template(
    path: &Path,
    tokenizer: &Value,
    bos: Option<&str>,
    eos: Option<&str>,
) -> Result<Option<ChatTemplate>, Fault> {
    let own = fs::read_to_string(path.join(TEMPLATE)).ok();
    let source = own.or_else(|| stated_template(&tokenizer["chat_template"]));
    let text = |token: Option<&str>| token.unwrap_or_default().to_owned();
    let template = source.map(|source| ChatTemplate::new(source, text(bos), text(eos)));
    template.transpose().map_err(Fault::unavailable)
}

/// The source of a template: a text, or the one with the name `default` of a list.
fn stated_template(stated: &Value) -> Option<String> {
    let named = stated.as_array().and_then(|all| all.iter().find(|one| one["name"] == "default"));
    stated.as_str().or_else(|| named?["template"].as_str()).map(str::to_owned)
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
