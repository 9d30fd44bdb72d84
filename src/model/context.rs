//! What a model states of itself: the `ModelContext` with its five parts.

use serde::{Deserialize, Serialize};

use crate::request::skill::{EMBED, GENERATE, LOGPROBS};

/// All that the rest of the service, and anybody who asks, knows of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelContext {
    /// Who it is.
    pub identification: Identification,
    /// What it can do.
    pub capabilities: Capabilities,
    /// How it is asked.
    pub inference_settings: InferenceSettings,
    /// How it reads.
    pub tokenizer: Tokenizer,
    /// Where and how it runs.
    pub runtime: Runtime,
}

/// Who a model is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Identification {
    /// The name by which it is asked for.
    pub name: String,
    /// Its architecture or family, as its file says.
    pub family: String,
    /// The version its maker gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Who made or serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// SHA-256 of its weights, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The licence its file states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

/// What a model can do.
#[expect(clippy::struct_excessive_bools, reason = "each is a capability of its own")]
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Most tokens of an answer.
    pub max_output_tokens: u32,
    /// What it reads: `text`, `image`, `audio`.
    pub modalities: Vec<String>,
    /// Languages it was made for, BCP 47; empty is unknown.
    #[serde(default)]
    pub languages: Vec<String>,
    /// It calls tools.
    #[serde(default)]
    pub tools: bool,
    /// It can be held to a JSON Schema.
    #[serde(default)]
    pub json_schema: bool,
    /// It can be held to a grammar.
    #[serde(default)]
    pub grammar: bool,
    /// It answers token by token.
    #[serde(default)]
    pub streaming: bool,
    /// It gives embeddings.
    #[serde(default)]
    pub embeddings: bool,
    /// It gives log-probabilities.
    #[serde(default)]
    pub logprobs: bool,
    /// What it is good at: `generate`, `classify`, `embed`, and words of whoever runs it.
    #[serde(rename = "talents", default)]
    pub skills: Vec<String>,
}

impl Capabilities {
    /// Whether it states this talent. A model that can write tokens generates, and one that gives
    /// embeddings embeds, and so on, whether it says so among its talents or not.
    pub fn has(&self, skill: &str) -> bool {
        self.skills.iter().any(|stated| stated == skill)
            || (skill == GENERATE && self.max_output_tokens > 0)
            || (skill == EMBED && self.embeddings)
            || (skill == LOGPROBS && self.logprobs)
    }
}

/// How a model is asked: defaults, and the range that is accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferenceSettings {
    /// Most tokens of an answer if the request says nothing.
    pub max_tokens: u32,
    /// See [`crate::request::job::Sampling`].
    pub temperature: Setting,
    /// See [`crate::request::job::Sampling`].
    pub top_p: Setting,
    /// See [`crate::request::job::Sampling`].
    pub top_k: Setting,
    /// See [`crate::request::job::Sampling`].
    pub min_p: Setting,
    /// See [`crate::request::job::Sampling`].
    pub repeat_penalty: Setting,
    /// Stop strings of its own.
    #[serde(default)]
    pub stop: Vec<String>,
    /// It repeats itself for the same seed.
    #[serde(default)]
    pub seed: bool,
}

/// One number that a request may set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// If the request says nothing.
    pub default: f32,
    /// Least.
    pub min: f32,
    /// Most.
    pub max: f32,
}

impl Default for InferenceSettings {
    fn default() -> Self {
        let setting = |default, min, max| Setting { default, min, max };
        InferenceSettings {
            max_tokens: 256,
            temperature: setting(0.0, 0.0, 2.0),
            top_p: setting(1.0, 0.0, 1.0),
            top_k: setting(0.0, 0.0, 1000.0),
            min_p: setting(0.0, 0.0, 1.0),
            repeat_penalty: setting(1.0, 1.0, 2.0),
            stop: Vec::new(),
            seed: true,
        }
    }
}

/// How a model reads text.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tokenizer {
    /// Its kind, as the file names it.
    pub kind: String,
    /// How many tokens it knows.
    pub vocab_size: u32,
    /// The texts of its special tokens, by what they are for.
    #[serde(default)]
    pub special_tokens: std::collections::BTreeMap<String, String>,
    /// SHA-256 of its chat template, hexadecimal; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_digest: Option<String>,
}

/// Where and how a model runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Runtime {
    /// The software that runs it.
    pub backend: String,
    /// That software's version.
    #[serde(default)]
    pub version: String,
    /// How its weights are stored.
    #[serde(default)]
    pub quantization: String,
    /// `device`, `peer` or `cloud`, as its own server sees it.
    #[serde(default, rename = "where")]
    pub location: String,
    /// Processor threads it uses.
    #[serde(default)]
    pub threads: u32,
    /// The accelerator it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Why an accelerator that was asked for is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Prompts it answers at once.
    pub slots: u32,
    /// Of the prompts that it has, it works on the most urgent only, and goes back to the others
    /// when that is done.
    #[serde(rename = "urgent_first", default)]
    pub preemptive: bool,
    /// Memory it takes, in bytes: weights, cache and work space.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Milliseconds it took to load.
    #[serde(default)]
    pub load_ms: u64,
    /// Prompt tokens a second, measured at start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens_per_s: Option<f64>,
    /// Answer tokens a second, measured at start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens_per_s: Option<f64>,
}

/// How far from here a model is: what the configuration says, not what the model claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// On this board.
    Device,
    /// On a device beside this one.
    Peer,
    /// Anywhere else.
    #[default]
    Cloud,
}

impl Locality {
    /// The word for it in replies.
    pub fn name(self) -> &'static str {
        match self {
            Locality::Device => "device",
            Locality::Peer => "peer",
            Locality::Cloud => "cloud",
        }
    }
}
