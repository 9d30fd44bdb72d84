//! Loads a GGUF file after checks of its header and of the available memory, and describes the model.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use llama_cpp_2::gguf::GgufContext;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use super::GgufOptions;
use crate::engines::template::ChatTemplate;
use crate::engines::worker::memory;
use crate::engines::worker::memory::WORK_BYTES;
use crate::engines::worker::template_digest;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context::{
    Capabilities, Identification, InferenceSettings, ModelContext, Runtime, Tokenizer,
};
use crate::model::generate::Fault;
use crate::request::skill;

/// Tokens of one batch. A larger batch needs more working memory and is hardly faster.
pub(super) const BATCH_TOKENS: u32 = 256;

/// A model in memory.
pub(super) struct Loaded {
    pub(super) model: LlamaModel,
    /// Weights, KV cache and working memory, bytes.
    pub(super) memory_bytes: u64,
}

/// Checks and loads the file.
///
/// # Errors
/// [`Fault::Unavailable`] that says what is wrong and what to do.
pub(super) fn load(backend: &LlamaBackend, options: &GgufOptions) -> Result<Loaded, Fault> {
    let path = &options.path;
    let shown = path.display();
    memory::check_context(options.context_tokens)?;
    let bytes = std::fs::metadata(path)
        .map_err(|e| Fault::unavailable(format!("the model file {shown} cannot be read: {e}")))?
        .len();
    let memory_bytes = needed_bytes(path, bytes, options.context_tokens)?;
    memory::check_model(path, memory_bytes)?;
    let params =
        LlamaModelParams::default().with_use_mmap(true).with_n_gpu_layers(options.gpu_layers);
    let model = LlamaModel::load_from_file(backend, path, &params).map_err(|e| {
        Fault::unavailable(format!("llama.cpp cannot load {shown}: {e}; the file may be truncated"))
    })?;
    Ok(Loaded { model, memory_bytes })
}

/// Bytes of weights, KV cache and working memory.
fn needed_bytes(path: &Path, file_bytes: u64, context: u32) -> Result<u64, Fault> {
    let shown = path.display();
    let mut magic = [0_u8; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_err() || &magic != b"GGUF" {
        return Err(Fault::unavailable(format!("{shown} is not a GGUF file")));
    }
    let file = GgufContext::from_file(path)
        .ok_or_else(|| Fault::unavailable(format!("the GGUF head of {shown} is damaged")))?;
    let number = |key: &str| -> Option<u64> {
        let at = file.find_key(key);
        // 4 is the format's number for a 32-bit unsigned integer
        (at >= 0 && file.kv_type(at) == 4).then(|| u64::from(file.val_u32(at)))
    };
    let at = file.find_key("general.architecture");
    let arch = if at >= 0 { file.val_str(at).unwrap_or_default() } else { "" }.to_owned();
    let of = |key: &str| number(&format!("{arch}.{key}"));
    let layers = of("block_count").unwrap_or(0);
    let heads = of("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = of("attention.head_count_kv").unwrap_or(heads);
    let head =
        of("attention.key_length").unwrap_or_else(|| of("embedding_length").unwrap_or(0) / heads);
    // the context is bounded by the length that the model was trained for
    let context = u64::from(context).min(of("context_length").unwrap_or(u64::MAX));
    // keys and values, two bytes each
    let cache = layers * kv_heads * head * 2 * 2 * context;
    Ok(file_bytes + cache + WORK_BYTES)
}

/// Describes the model by the metadata of the file; the measured rates are added later.
pub(super) fn describe(
    Loaded { model, memory_bytes }: &Loaded,
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
        },
        runtime: Runtime {
            backend: "llama.cpp".to_owned(),
            version: "llama-cpp-2 0.1.160".to_owned(),
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
