//! `ModelContext`: what a model states of itself, in five parts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::batch::BatchRates;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::request::skill::{DETERMINISTIC, EMBED, GENERATE, LOGPROBS};

/// All that the service and its clients know of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelContext {
    /// Name, maker and licence.
    pub identification: Identification,
    /// What the model can do.
    pub capabilities: Capabilities,
    /// Sampling settings: defaults and accepted ranges.
    pub inference_settings: InferenceSettings,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Where and how the model runs.
    pub runtime: Runtime,
}

impl ModelContext {
    /// Most tokens of an answer to a request that asks for so many.
    pub fn output_tokens_max(&self, asked: Option<u32>) -> u32 {
        let own = Some(self.capabilities.max_output_tokens).filter(|most| *most > 0);
        asked.unwrap_or(u32::MAX).min(own.unwrap_or(OUTPUT_TOKENS_MAX))
    }
}

/// The identity of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Identification {
    /// The name by which requests select it.
    pub name: String,
    /// Its architecture or family, as in its file.
    pub family: String,
    /// The version its maker gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The organisation that made or serves it.
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
    /// The kinds of input: `text`, `image`, `audio`.
    pub modalities: Vec<String>,
    /// Languages it was made for, BCP 47; empty is unknown.
    #[serde(default)]
    pub languages: Vec<String>,
    /// It calls tools.
    #[serde(default)]
    pub tools: bool,
    /// It supports output constrained by a JSON Schema.
    #[serde(default)]
    pub json_schema: bool,
    /// It supports output constrained by a grammar.
    #[serde(default)]
    pub grammar: bool,
    /// It streams its answer token by token.
    #[serde(default)]
    pub streaming: bool,
    /// It gives embeddings.
    #[serde(default)]
    pub embeddings: bool,
    /// It gives log-probabilities.
    #[serde(default)]
    pub logprobs: bool,
    /// The same request has the same answer each time, if the request asks for that.
    #[serde(default)]
    pub deterministic: bool,
    /// Its skills (`talents` on the wire): `generate`, `classify`, `embed`, and names from the configuration.
    #[serde(rename = "talents", default)]
    pub skills: Vec<String>,
}

impl Capabilities {
    /// Whether it has this skill. The skills that follow from the other capabilities, such as embeddings,
    /// need not be stated.
    pub fn has(&self, skill: &str) -> bool {
        self.skills.iter().any(|stated| stated == skill)
            || (skill == GENERATE && self.max_output_tokens > 0)
            || (skill == EMBED && self.embeddings)
            || (skill == LOGPROBS && self.logprobs)
            || (skill == DETERMINISTIC && self.deterministic)
    }
}

/// Sampling settings of a model: defaults, and accepted ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferenceSettings {
    /// Most tokens of an answer if the request sets no limit.
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
    /// The model's own stop strings.
    #[serde(default)]
    pub stop: Vec<String>,
    /// The same seed gives the same answer.
    #[serde(default)]
    pub seed: bool,
}

/// One number that a request may set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The default.
    pub default: f32,
    /// The least accepted value.
    pub min: f32,
    /// The greatest accepted value.
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

/// The tokenizer of a model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tokenizer {
    /// Its kind, as the file names it.
    pub kind: String,
    /// The size of its vocabulary.
    pub vocab_size: u32,
    /// The texts of its special tokens, by purpose.
    #[serde(default)]
    pub special_tokens: std::collections::BTreeMap<String, String>,
    /// SHA-256 of its chat template, hexadecimal; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_digest: Option<String>,
    /// What is changed in a conversation, because the chat template does not render it otherwise: `content_parts`
    /// (a text is given as a list of typed parts), `system_in_user` (a system message is the beginning of the
    /// user's), `joined_turns` (neighbouring messages of one role are joined).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub template_adaptations: Vec<String>,
}

/// Where and how a model runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Runtime {
    /// The software that runs it.
    pub backend: String,
    /// That software's version.
    #[serde(default)]
    pub version: String,
    /// The variant of that software's code for the processor, if it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_variant: Option<String>,
    /// The quantization of its weights.
    #[serde(default)]
    pub quantization: String,
    /// `device`, `peer` or `cloud`, as its own server states it.
    #[serde(default, rename = "where")]
    pub location: String,
    /// Processor threads it uses.
    #[serde(default)]
    pub threads: u32,
    /// Processor threads that write one answer alone, if they are not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_threads: Option<u32>,
    /// The accelerator it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Why a requested accelerator is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Prompts that it answers at once.
    pub slots: u32,
    /// Whether a more urgent prompt preempts the one it works on, which it resumes afterwards.
    #[serde(rename = "urgent_first", default)]
    pub preemptive: bool,
    /// Memory that it uses, in bytes: weights, key-value cache and work space.
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
    /// Speeds of several answers that it decodes in one batch, measured at start.
    #[serde(default, skip_serializing_if = "BatchRates::is_empty")]
    pub batch: BatchRates,
}

/// Where a model runs, seen from this device: from the configuration, not from the model's context.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// On this board.
    Device,
    /// On another device of the same owner.
    Peer,
    /// At a provider.
    #[default]
    Cloud,
}

impl Locality {
    /// All, the nearest first.
    pub const ALL: [Locality; 3] = [Locality::Device, Locality::Peer, Locality::Cloud];

    /// Its name in replies.
    pub fn name(self) -> &'static str {
        match self {
            Locality::Device => "device",
            Locality::Peer => "peer",
            Locality::Cloud => "cloud",
        }
    }
}
