//! Converts a GGUF vocabulary to the `tokenizer.json` of the `tokenizers` library.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json, json};

use super::gguf::{Gguf, Value};

/// GGUF's token type of control tokens.
const CONTROL: f64 = 3.0;
/// GGUF's token type of user-defined tokens.
const ADDED: f64 = 4.0;

/// Converts the tokenizer of a model.
///
/// # Errors
/// If the kind of tokenizer is not supported; the error names the supported ones.
pub(super) fn tokenizer(model: &Gguf) -> Result<Json> {
    let kind = model.text("tokenizer.ggml.model").unwrap_or("unknown");
    ensure!(
        kind == "gpt2",
        "tokenizers of kind {kind} are not supported, only gpt2 (byte-level BPE)"
    );
    let split = model.text("tokenizer.ggml.pre").unwrap_or("unknown");
    let pre_tokenizer = pre_tokenizer(split)?;
    let tokens = model.texts("tokenizer.ggml.tokens")?;
    let merges = model.texts("tokenizer.ggml.merges")?;
    let kinds = match model.value("tokenizer.ggml.token_type") {
        Some(Value::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
        _ => bail!("the file has no token types"),
    };
    let pair = |merge: &String| {
        merge.split_once(' ').map(|(a, b)| json!([a, b])).context("a tokenizer merge is not a pair")
    };
    let merges: Vec<Json> = merges.iter().map(pair).collect::<Result<_>>()?;
    let vocabulary: Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    ensure!(vocabulary.len() == tokens.len(), "two tokens have the same text");
    let added: Vec<Json> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == CONTROL || **kind == ADDED)
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": merges}
    }))
}

/// The pre-tokenizer with this name in llama.cpp.
fn pre_tokenizer(name: &str) -> Result<Json> {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": true});
    Ok(match name {
        "gpt-2" => bytes,
        "smollm" => json!({"type": "Sequence", "pretokenizers":
            [{"type": "Digits", "individual_digits": true}, bytes]}),
        _ => bail!("the pre-tokenizer {name:?} is not supported, only gpt-2 and smollm"),
    })
}
