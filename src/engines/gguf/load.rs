//! Loads a GGUF file after checks of its header and of the available memory, and describes the model.

use std::path::Path;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use super::{GgufOptions, cpu_variant};
use crate::engines::template::ChatTemplate;
use crate::engines::worker::memory::WORK_BYTES;
use crate::engines::worker::{memory, sha256_of, template_digest};
use crate::gguf::file::ModelFile;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context::{
    Capabilities, Identification, InferenceSettings, ModelContext, Runtime, Tokenizer,
};
use crate::model::generate::Fault;
use crate::request::skill;
use crate::sandbox::memory::EngineBounds;

/// Tokens of one batch. A larger batch needs more working memory and is hardly faster.
pub(super) const BATCH_TOKENS: u32 = 256;

/// A model in memory.
pub(super) struct Loaded {
    pub(super) model: LlamaModel,
    /// Weights, KV cache and working memory, bytes.
    pub(super) memory_bytes: u64,
    pub(super) file: ModelFile,
    /// SHA-256 of the file, if it was pinned.
    pub(super) digest: Option<String>,
}

/// Checks and loads the file.
///
/// # Errors
/// [`Fault::Unavailable`] that says what is wrong and what to do.
pub(super) fn load(
    backend: &LlamaBackend,
    options: &GgufOptions,
    bounds: &EngineBounds,
) -> Result<Loaded, Fault> {
    let path = &options.path;
    let shown = path.display();
    memory::check_context(options.context_tokens)?;
    let file = ModelFile::open(path)?;
    let memory_bytes = needed_bytes(&file, options.context_tokens);
    memory::check_model(path, memory_bytes)?;
    let digest = bounds.digest.as_deref().map(|pinned| check_digest(&file, path, pinned));
    let digest = digest.transpose()?;
    if options.gpu_layers == 0 {
        // weights may be copied into another order
        bounds.memory.set(memory_bytes, 2);
    }
    let params =
        LlamaModelParams::default().with_use_mmap(true).with_n_gpu_layers(options.gpu_layers);
    let model = LlamaModel::load_from_file(backend, file.path(), &params).map_err(|e| {
        Fault::unavailable(format!("llama.cpp cannot load {shown}: {e}; see its log above"))
    })?;
    Ok(Loaded { model, memory_bytes, file, digest })
}

/// Checks the digest of the file and returns it.
fn check_digest(file: &ModelFile, path: &Path, pinned: &str) -> Result<String, Fault> {
    let shown = path.display();
    let digest = file
        .reader()
        .and_then(sha256_of)
        .map_err(|e| Fault::unavailable(format!("the model file {shown} cannot be read: {e}")))?;
    if digest == pinned {
        return Ok(digest);
    }
    Err(Fault::unavailable(format!(
        "{shown} has the SHA-256 {digest} and {pinned} is pinned: it is not loaded; restore the \
         file, or change pilotlight.servers.NAME.digest"
    )))
}

/// Bytes of weights, KV cache and working memory.
fn needed_bytes(file: &ModelFile, context: u32) -> u64 {
    let arch = file.head.text("general.architecture").unwrap_or_default();
    let of = |key: &str| file.head.number(&format!("{arch}.{key}"));
    let layers = of("block_count").unwrap_or(0);
    let heads = of("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = of("attention.head_count_kv").unwrap_or(heads);
    let head =
        of("attention.key_length").unwrap_or_else(|| of("embedding_length").unwrap_or(0) / heads);
    // the context is bounded by the length that the model was trained for
    let context = u64::from(context).min(of("context_length").unwrap_or(u64::MAX));
    // keys and values, two bytes each; what can't be counted does not fit
    let cache = [kv_heads, head, 2 * 2, context]
        .iter()
        .try_fold(layers, |all, n| all.checked_mul(*n))
        .unwrap_or(u64::MAX);
    file.bytes().saturating_add(cache).saturating_add(WORK_BYTES)
}

/// Describes the model by the metadata of the file; the measured rates are added later.
pub(super) fn describe(
    Loaded { model, memory_bytes, .. }: &Loaded,
    template: Option<&ChatTemplate>,
    options: &GgufOptions,
    digest: Option<String>,
    context_tokens: u32,
) -> ModelContext {
    let meta = |key: &str| model.meta_val_str(key).ok().filter(|value| !value.is_empty());
    let file_name = options.path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let name = options.name.clone().or(file_name).unwrap_or_else(|| "gguf".to_owned());
    let vocab = model.vocab();
    let text_of = |token| {
        let bytes = vocab.token_to_piece(token, true, None);
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let special = [("bos", vocab.bos()), ("eos", vocab.eos()), ("eot", vocab.eot())];
    let special = special.into_iter().filter(|(_, token)| token.0 >= 0);
    ModelContext {
        identification: Identification {
            name,
            family: meta("general.architecture").unwrap_or_default(),
            version: meta("general.version"),
            provider: meta("general.organization"),
            digest,
            licence: meta("general.license"),
        },
        capabilities: Capabilities {
            context_tokens,
            max_output_tokens: OUTPUT_TOKENS_MAX.min(context_tokens),
            modalities: vec!["text".to_owned()],
            languages: meta("general.languages").into_iter().collect(),
            json_schema: true,
            streaming: true,
            logprobs: true,
            deterministic: true,
            skills: vec![skill::GENERATE.to_owned(), skill::CLASSIFY.to_owned()],
            ..Capabilities::default()
        },
        inference_settings: InferenceSettings::default(),
        tokenizer: Tokenizer {
            kind: meta("tokenizer.ggml.model").unwrap_or_default(),
            vocab_size: u32::try_from(model.n_vocab()).unwrap_or(0),
            special_tokens: special
                .filter_map(|(name, token)| Some((name.to_owned(), text_of(token)?)))
                .collect(),
            chat_template_digest: template.map(template_digest),
            template_adaptations: template.map_or_else(Vec::new, ChatTemplate::adaptation_names),
        },
        runtime: Runtime {
            backend: "llama.cpp".to_owned(),
            version: "llama-cpp-2 0.1.160".to_owned(),
            cpu_variant: cpu_variant().map(str::to_owned),
            quantization: quantization(meta("general.file_type")),
            location: "device".to_owned(),
            threads: options.threads,
            accelerator: (options.gpu_layers > 0).then(|| "cuda".to_owned()),
            slots: 1,
            memory_bytes: *memory_bytes,
            ..Runtime::default()
        },
    }
}

/// Name of a `general.file_type` (GGUF specification), or its number.
fn quantization(file_type: Option<String>) -> String {
    let known = [
        ("0", "F32"),
        ("1", "F16"),
        ("2", "Q4_0"),
        ("3", "Q4_1"),
        ("7", "Q8_0"),
        ("8", "Q5_0"),
        ("9", "Q5_1"),
        ("15", "Q4_K_M"),
        ("17", "Q5_K_M"),
        ("18", "Q6_K"),
    ];
    let number = file_type.unwrap_or_else(|| "unknown".to_owned());
    let name = known.iter().find(|(n, _)| *n == number).map(|(_, name)| (*name).to_owned());
    name.unwrap_or(number)
}
