//! What the weights' width costs: readings of one text by quantized graphs beside that of the GGUF
//! file they were made of.
//!
//! `cargo bench --bench quality`; a folder that another tool made of the same model is read besides:
//! `PEER_FOLDER=… cargo bench --bench quality`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::path::Path;

use pilotlight::benchmark::loss::WeightsLoss;
use pilotlight::convert::{OnnxWeights, convert};
use pilotlight::engines::worker::{Calibration, PromptProgress};
use pilotlight::engines::{gguf, onnx};
use support::{mean, model_file, print_machine, runtime};

/// Bytes of a text that are read.
const TEXT_BYTES: usize = 6_000;
const TEXTS: [&str; 3] = [
    include_str!("../README.md"),
    include_str!("../src/scheduler/offload.rs"),
    include_str!("../docs/measurements.md"),
];

fn texts() -> Vec<String> {
    TEXTS.iter().map(|text| text.chars().take(TEXT_BYTES).collect()).collect()
}

async fn by_graph(path: &Path) -> Vec<PromptProgress> {
    let options = onnx::OnnxOptions {
        context_tokens: 4096,
        threads: 2,
        runtime: Some(runtime()),
        ..onnx::OnnxOptions::of(path)
    };
    let model = onnx::open(options).await.unwrap();
    let mut all = Vec::new();
    for text in texts() {
        all.push(model.read(&text).await.unwrap());
    }
    all
}

async fn by_file() -> Vec<PromptProgress> {
    let options = gguf::GgufOptions {
        path: model_file(),
        name: None,
        context_tokens: 4096,
        threads: 2,
        decode_threads: 2,
        gpu_layers: 0,
        calibration: Calibration::default(),
        prefixes: None,
    };
    let model = gguf::open(options).await.unwrap();
    let mut all = Vec::new();
    for text in texts() {
        all.push(model.read(&text).await.unwrap());
    }
    all
}

#[tokio::main]
async fn main() {
    print_machine();
    let reference = by_file().await;
    let tokens: usize = reference.iter().map(|reading| reading.tokens.len()).sum();
    println!("{tokens} tokens of {} texts, against {}", TEXTS.len(), model_file().display());
    println!("weights      size MB   same likeliest   divergence   perplexity ratio");
    let work = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for (name, weights) in [("int8", OnnxWeights::Int8), ("int4", OnnxWeights::Int4)] {
        let folder = work.path().join(name);
        convert(&model_file(), &folder, weights, |_, _| ()).unwrap();
        folders.push((name, folder));
    }
    if let Ok(peer) = std::env::var("PEER_FOLDER") {
        folders.push(("the peer's", peer.into()));
    }
    for (name, folder) in folders {
        let size = std::fs::metadata(folder.join("model.onnx.data")).unwrap().len();
        let readings = by_graph(&folder).await;
        let same = |(one, other): &(&PromptProgress, &PromptProgress)| one.tokens == other.tokens;
        if !reference.iter().zip(&readings).all(|pair| same(&pair)) {
            println!(
                "{name:12} {:7.1}   its tokenizer splits the texts in another way",
                size as f64 / 1e6
            );
            continue;
        }
        let pairs = reference.iter().zip(&readings);
        let near: Vec<_> = pairs.map(|(one, other)| WeightsLoss::of(one, other).unwrap()).collect();
        let of = |what: fn(&WeightsLoss) -> f64| mean(&near.iter().map(what).collect::<Vec<f64>>());
        println!(
            "{name:12} {:7.1}   {:14.3}   {:10.4}   {:16.3}",
            size as f64 / 1e6,
            of(|near| near.same_first),
            of(|near| near.divergence),
            of(|near| near.perplexity.ln()).exp(),
        );
    }
}
