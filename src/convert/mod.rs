//! Converts a model to an ONNX folder: a GGUF file, so that both engines can run the same model, or the
//! folder of a sentence encoder. An offline tool: the running service does not use it.

mod bert;
mod builder;
mod gguf;
mod llama;
mod proto;
mod tokenizer;
mod weights;

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use prost::Message;
use serde_json::{Value as Json, json};

use self::builder::DATA;
use self::gguf::Gguf;
use self::llama::LlamaSizes;
pub use self::weights::OnnxWeights;
use crate::engines::onnx::encoder::{LENGTH_CONFIG, POOLING_CONFIG};
use crate::engines::onnx::files::{CONFIG, MODEL, MODEL_CONFIG, ORIGIN, Origin, TOKENIZER};
use crate::engines::onnx::folder::TOKENIZER_CONFIG;
use crate::engines::worker::sha256;

/// Converts `from`, a GGUF file or the folder of a sentence encoder, to the folder `to`, atomically:
/// `to` is complete or absent. `progress` is called with the number of converted layers and of all
/// layers.
///
/// # Errors
/// If the model is damaged or not supported (the error names what is), or if the folder can't be
/// written.
pub fn convert(
    from: &Path,
    to: &Path,
    weights: OnnxWeights,
    mut progress: impl FnMut(usize, usize),
) -> Result<()> {
    if to.exists() {
        bail!("{} is already there; remove it first, or choose another name", to.display());
    }
    let part = to.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part).with_context(|| format!("{} cannot be created", part.display()))?;
    let written = if from.is_dir() {
        encoder(from, &part, weights, &mut progress)
    } else {
        llama(from, &part, weights, &mut progress)
    };
    let origin = match written.with_context(|| format!("{} cannot be converted", from.display())) {
        Ok(origin) => origin,
        Err(error) => {
            fs::remove_dir_all(&part)?;
            return Err(error);
        }
    };
    let files = [MODEL, DATA, TOKENIZER];
    let digests = files.iter().map(|&name| Ok((name.to_owned(), sha256(&part.join(name))?)));
    let quantization = weights.name().to_owned();
    let origin = Origin { quantization, sha256: digests.collect::<Result<_>>()?, ..origin };
    write_json(&part.join(ORIGIN), &serde_json::to_value(origin)?)?;
    fs::rename(&part, to).with_context(|| format!("{} cannot be written", to.display()))
}

/// Converts a Llama-family decoder; returns its origin.
fn llama(
    from: &Path,
    part: &Path,
    weights: OnnxWeights,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Origin> {
    let model = Gguf::open(from)?;
    let sizes = LlamaSizes::of(&model)?;
    let tokenizer = tokenizer::tokenizer(&model)?;
    let data = File::create(part.join(DATA))?;
    let graph = llama::build(&model, &sizes, weights, data, |done| progress(done, sizes.layers))?;
    write(&part.join(MODEL), &graph.encode_to_vec())?;
    write_json(&part.join(TOKENIZER), &tokenizer)?;
    write_json(&part.join(TOKENIZER_CONFIG), &tokenizer_config(&model))?;
    write_json(&part.join(CONFIG), &config(&model, &sizes))?;
    let text = |key: &str| model.text(key).filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Origin {
        name: text("general.basename").or_else(|| text("general.name")),
        version: text("general.version"),
        provider: text("general.organization"),
        licence: text("general.license"),
        ..Origin::default()
    })
}

/// Converts a BERT-family sentence encoder; returns its origin.
fn encoder(
    from: &Path,
    part: &Path,
    weights: OnnxWeights,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Origin> {
    let config: Json = serde_json::from_slice(&read(&from.join(MODEL_CONFIG))?)
        .with_context(|| format!("{MODEL_CONFIG} is not valid JSON"))?;
    let sizes = bert::BertSizes::of(&config)?;
    let data = File::create(part.join(DATA))?;
    let graph = bert::build(from, &sizes, weights, data, |done| progress(done, sizes.layers))?;
    write(&part.join(MODEL), &graph.encode_to_vec())?;
    for name in [MODEL_CONFIG, TOKENIZER] {
        write(&part.join(name), &read(&from.join(name))?)?;
    }
    for name in [LENGTH_CONFIG, POOLING_CONFIG] {
        let (from, to) = (from.join(name), part.join(name));
        if from.exists() {
            to.parent().map_or(Ok(()), fs::create_dir_all)?;
            write(&to, &read(&from)?)?;
        }
    }
    let name = config["_name_or_path"].as_str().map(str::to_owned);
    Ok(Origin { name, ..Origin::default() })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes)
        .and_then(|()| File::open(path)?.sync_all())
        .with_context(|| format!("{} cannot be written", path.display()))
}

fn write_json(path: &Path, value: &Json) -> Result<()> {
    write(path, serde_json::to_string_pretty(value)?.as_bytes())
}

/// Id and text of a special token, by the prefix of its metadata key.
fn special(model: &Gguf, key: &str) -> Option<(usize, String)> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an id")]
    let id = model.number(&format!("tokenizer.ggml.{key}_token_id"))? as usize;
    Some((id, model.texts("tokenizer.ggml.tokens").ok()?.get(id)?.clone()))
}

fn tokenizer_config(model: &Gguf) -> Json {
    let text = |key: &str| special(model, key).map(|(_, text)| text);
    let add_bos = matches!(
        model.value("tokenizer.ggml.add_bos_token"),
        Some(gguf::Value::Real(yes)) if *yes > 0.0
    );
    json!({
        "bos_token": text("bos"),
        "eos_token": text("eos"),
        "add_bos_token": add_bos,
        "chat_template": model.text("tokenizer.chat_template"),
    })
}

/// The configuration in the format of onnxruntime-genai.
fn config(model: &Gguf, sizes: &LlamaSizes) -> Json {
    let id = |key: &str| special(model, key).map(|(id, _)| id);
    json!({
        "model": {
            "type": "llama",
            "bos_token_id": id("bos"),
            "eos_token_id": id("eos"),
            "pad_token_id": id("padding").or_else(|| id("eos")),
            "context_length": sizes.context,
            "vocab_size": sizes.vocabulary,
            "decoder": {
                "filename": MODEL,
                "head_size": sizes.head,
                "hidden_size": sizes.hidden,
                "num_attention_heads": sizes.heads,
                "num_hidden_layers": sizes.layers,
                "num_key_value_heads": sizes.kv_heads,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value"
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value"
                }
            }
        },
        "search": {"max_length": sizes.context, "past_present_share_buffer": true}
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::proto::{DimensionProto, ModelProto};
    use super::*;
    use crate::engines::onnx::{OnnxOptions, load};
    use crate::engines::worker::{Decoder as _, StepPart};
    use crate::sandbox::memory::EngineBounds;

    fn options(path: &Path) -> OnnxOptions {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        OnnxOptions {
            context_tokens: 512,
            threads: 1,
            runtime: Some(here.join(".tools/onnxruntime")),
            ..OnnxOptions::of(path)
        }
    }

    /// The converted graph with logits of every token instead of the last one.
    fn with_all_logits(graph: &[u8]) -> Vec<u8> {
        let mut model = ModelProto::decode(graph).unwrap();
        let graph = model.graph.as_mut().unwrap();
        graph.node.retain(|node| node.output != ["normed_last"]);
        let inputs = graph.node.iter_mut().flat_map(|node| &mut node.input);
        for input in inputs.filter(|input| *input == "normed_last") {
            "normed".clone_into(input);
        }
        let logits = graph.output.iter_mut().find(|output| output.name == "logits").unwrap();
        let shape = logits.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        let rows = &mut shape.shape.as_mut().unwrap().dim[1];
        *rows = DimensionProto { dim_value: None, dim_param: Some("tokens".to_owned()) };
        model.encode_to_vec()
    }

    /// Graphs of onnxruntime-genai's builder return the logits of every token.
    #[test]
    fn graphs_with_the_logits_of_every_token_give_the_same_result() {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-onnx-int8");
        let work = tempfile::tempdir().unwrap();
        for name in ["model.onnx.data", "tokenizer.json", "tokenizer_config.json", CONFIG] {
            fs::hard_link(ours.join(name), work.path().join(name)).unwrap();
        }
        let graph = with_all_logits(&fs::read(ours.join(MODEL)).unwrap());
        fs::write(work.path().join(MODEL), graph).unwrap();
        let mut one = load::load(&options(&ours), &EngineBounds::default()).unwrap().0;
        let mut other = load::load(&options(work.path()), &EngineBounds::default()).unwrap().0;
        // batches of several lengths: two parts of a prompt, then single tokens
        for tokens in [&[1, 2, 3, 4, 5, 6, 7][..], &[8, 9, 10], &[11], &[12]] {
            for model in [&mut one, &mut other] {
                model.eval(&[StepPart { sequence: 0, tokens }]).unwrap();
            }
            let pairs = one.logits(0).iter().zip(other.logits(0));
            let apart = pairs.map(|(a, b)| (*a - *b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-2, "{apart} after {tokens:?}");
        }
    }
}
