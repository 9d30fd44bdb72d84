//! Graph of a BERT-family sentence encoder with ONNX Runtime's contrib operators, from a folder of
//! sentence-transformers.
//!
//! Source: Devlin et al. 2018, arXiv:1810.04805. Each layer: packed query-key-value projection,
//! attention over all tokens but padding, output projection, residual and norm, up projection, GELU,
//! down projection, residual and norm. The output is a vector for each token; pooling is outside of the
//! graph.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

use super::builder::{Builder, CONTRIB};
use super::gguf::{Stored, TensorKind};
use super::proto::{FLOAT, INT32, INT64, ModelProto, Size, float, int, value_info};
use super::weights::{OnnxWeights, Rows, numbers};

/// File of the weights.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// Sizes of a model.
#[derive(Debug, Clone)]
pub(super) struct BertSizes {
    pub(super) layers: usize,
    hidden: usize,
    heads: usize,
    vocabulary: usize,
    positions: usize,
    epsilon: f32,
}

impl BertSizes {
    pub(super) fn of(config: &Json) -> Result<BertSizes> {
        let kind = config["model_type"].as_str().unwrap_or("unknown");
        ensure!(kind == "bert", "the model type {kind} is not supported, only bert is");
        let gelu = config["hidden_act"].as_str().unwrap_or("gelu");
        ensure!(gelu == "gelu", "the activation {gelu} is not supported, only gelu is");
        let position_type = config["position_embedding_type"].as_str().unwrap_or("absolute");
        ensure!(
            position_type == "absolute",
            "{position_type} positions are not supported, only absolute ones"
        );
        let of = |key: &str| {
            let n = config[key].as_u64().filter(|n| (1..=1 << 20).contains(n));
            let n = n.and_then(|n| usize::try_from(n).ok());
            n.with_context(|| format!("the configuration has no key {key}"))
        };
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let epsilon = config["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32;
        Ok(BertSizes {
            layers: of("num_hidden_layers")?,
            hidden: of("hidden_size")?,
            heads: of("num_attention_heads")?,
            vocabulary: of("vocab_size")?,
            positions: of("max_position_embeddings")?,
            epsilon,
        })
    }
}

/// The stored weights.
struct Tensors<'b> {
    all: SafeTensors<'b>,
}

impl Tensors<'_> {
    /// A matrix with this number of columns; a vector is one row.
    fn get(&self, name: &str, columns: usize) -> Result<Stored> {
        // some exports prefix each name with the model type
        let view = self.all.tensor(name).or_else(|_| self.all.tensor(&format!("bert.{name}")));
        let view = view.with_context(|| format!("there is no tensor {name}"))?;
        let known = [(Dtype::F32, TensorKind::F32), (Dtype::F16, TensorKind::F16)];
        let found = view.dtype();
        let kind = known.into_iter().find(|(dtype, _)| *dtype == found).map(|(_, kind)| kind);
        let kind = kind
            .with_context(|| format!("{name} is stored as {found:?}; F32 and F16 are supported"))?;
        let (rows, found) = match view.shape() {
            [columns] => (1, *columns),
            [rows, columns] => (*rows, *columns),
            shape => bail!("{name} has the shape {shape:?}, which is not a matrix"),
        };
        ensure!(found == columns, "{name} has {found} columns, {columns} were expected");
        Ok(Stored { kind, rows, columns, bytes: view.data().to_vec() })
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let stored = self.get(name, length)?;
        ensure!(stored.rows == 1, "{name} is a matrix, a vector was expected");
        Ok(numbers(stored.kind, &stored.bytes))
    }
}

/// Writes the weights to `data` and returns the graph that refers to them.
///
/// # Errors
/// If a tensor is missing, of another size, or can't be written.
pub(super) fn build(
    from: &Path,
    sizes: &BertSizes,
    weights: OnnxWeights,
    data: File,
    mut progress: impl FnMut(usize),
) -> Result<ModelProto> {
    let path = from.join(WEIGHTS);
    let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let all = SafeTensors::deserialize(&bytes)
        .with_context(|| format!("{} is damaged", path.display()))?;
    let graph = Builder::new("bert", weights, data);
    let mut bert = Bert { tensors: Tensors { all }, sizes, graph };
    bert.head_of_graph()?;
    let mut flow = "embedded".to_owned();
    for layer in 0..sizes.layers {
        flow = bert.layer(layer, &flow)?;
        progress(layer + 1);
    }
    bert.graph.node("Identity", "", &[&flow], &["last_hidden_state"], &[]);
    bert.graph.finish()
}

struct Bert<'b> {
    tensors: Tensors<'b>,
    sizes: &'b BertSizes,
    graph: Builder,
}

impl Bert<'_> {
    /// Inputs and outputs, the mask, and the sum of token, position and segment embeddings.
    fn head_of_graph(&mut self) -> Result<()> {
        let BertSizes { hidden, vocabulary, positions, .. } = *self.sizes;
        let (batch, length) = (Size::Named("batch_size"), Size::Named("sequence_length"));
        for name in ["input_ids", "attention_mask"] {
            self.graph.graph.input.push(value_info(name, INT64, &[batch, length]));
        }
        let output = value_info("last_hidden_state", FLOAT, &[batch, length, Size::Fixed(hidden)]);
        self.graph.graph.output.push(output);
        self.graph.node("Cast", "", &["attention_mask"], &["mask"], &[int("to", INT32)]);

        let words = self.tensors.get("embeddings.word_embeddings.weight", hidden)?;
        ensure!(words.rows == vocabulary, "the embedding matrix has the wrong size");
        let packed = self.graph.pack(&[Rows::plain(&words)])?;
        let offsets = self.graph.write_packed(&packed)?;
        self.graph.embedding("input_ids", "words", &packed, &offsets);

        let at = self.tensors.get("embeddings.position_embeddings.weight", hidden)?;
        ensure!(at.rows == positions, "the position matrix has the wrong size");
        // a single text has segment 0 only: its vector is added to the positions
        let kinds = self.tensors.get("embeddings.token_type_embeddings.weight", hidden)?;
        let first = numbers(kinds.kind, kinds.row(0));
        let table = numbers(at.kind, &at.bytes);
        let sums = table.chunks(hidden).flat_map(|row| row.iter().zip(&first).map(|(a, b)| a + b));
        let bytes: Vec<u8> = sums.flat_map(f32::to_le_bytes).collect();
        self.graph.table("positions", &[positions, hidden], &bytes)?;
        self.graph.integer("zero", 0, &[]);
        self.graph.integer("one", 1, &[]);
        self.graph.node("Shape", "", &["input_ids"], &["shape"], &[]);
        self.graph.node("Gather", "", &["shape", "one"], &["length"], &[int("axis", 0)]);
        self.graph.node("Range", "", &["zero", "length", "one"], &["places"], &[]);
        let axis = [int("axis", 0)];
        self.graph.node("Gather", "", &["positions", "places"], &["placed"], &axis);
        self.graph.node("Add", "", &["words", "placed"], &["summed"], &[]);
        let norm = self.norm("embeddings.LayerNorm")?;
        let attributes = [int("axis", -1), float("epsilon", self.sizes.epsilon)];
        let inputs = ["summed", &norm[0], &norm[1]];
        self.graph.node("LayerNormalization", "", &inputs, &["embedded"], &attributes);
        Ok(())
    }

    fn layer(&mut self, n: usize, flow: &str) -> Result<String> {
        let hidden = self.sizes.hidden;
        let name = |part: &str| format!("encoder.layer.{n}.{part}");
        let get = |part: &str, columns| self.tensors.get(&name(&format!("{part}.weight")), columns);
        let query = get("attention.self.query", hidden)?;
        let key = get("attention.self.key", hidden)?;
        let value = get("attention.self.value", hidden)?;
        let out = get("attention.output.dense", hidden)?;
        let wide = get("intermediate.dense", hidden)?;
        let narrow = get("output.dense", wide.rows)?;
        let squares = [&query, &key, &value, &out, &narrow];
        ensure!(squares.iter().all(|part| part.rows == hidden), "layer {n} has the wrong size");

        let parts = [Rows::plain(&query), Rows::plain(&key), Rows::plain(&value)];
        let packed = self.graph.pack(&parts)?;
        let qkv = name("qkv");
        self.graph.product(flow, &qkv, &packed)?;
        let split = ["q", "k", "v"].map(name);
        let split = [split[0].as_str(), &split[1], &split[2]];
        let thirds = [int("axis", -1), int("num_outputs", 3)];
        self.graph.node("Split", "", &[&qkv], &split, &thirds);
        let bias = self.biases(&name("qkv.bias"), n)?;
        let attended = name("attended");
        self.graph.node(
            "MultiHeadAttention",
            CONTRIB,
            &[split[0], split[1], split[2], &bias, "mask"],
            &[&attended],
            &[int("num_heads", self.sizes.heads)],
        );
        let projected = self.linear(&attended, &name("attention.output.dense"), &out)?;
        let middle = self.sum(&projected, flow, &name("attention.output"))?;

        let grown = self.linear(&middle, &name("intermediate.dense"), &wide)?;
        let (bias, opened) = (name("intermediate.dense.bias"), name("opened"));
        self.graph.vector(&bias, &self.tensors.vector(&bias, wide.rows)?);
        self.graph.node("BiasGelu", CONTRIB, &[&grown, &bias], &[&opened], &[]);
        let shrunk = self.linear(&opened, &name("output.dense"), &narrow)?;
        self.sum(&shrunk, &middle, &name("output"))
    }

    fn linear(&mut self, input: &str, output: &str, weights: &Stored) -> Result<String> {
        let packed = self.graph.pack(&[Rows::plain(weights)])?;
        self.graph.product(input, output, &packed)?;
        Ok(output.to_owned())
    }

    /// The concatenated biases of query, key and value.
    fn biases(&mut self, into: &str, n: usize) -> Result<String> {
        let mut all = Vec::new();
        for part in ["query", "key", "value"] {
            let name = format!("encoder.layer.{n}.attention.self.{part}.bias");
            all.extend(self.tensors.vector(&name, self.sizes.hidden)?);
        }
        self.graph.vector(into, &all);
        Ok(into.to_owned())
    }

    /// The norm over the sum of a product, its bias, and the residual.
    fn sum(&mut self, product: &str, around: &str, part: &str) -> Result<String> {
        let norm = self.norm(&format!("{part}.LayerNorm"))?;
        let bias = format!("{part}.dense.bias");
        self.graph.vector(&bias, &self.tensors.vector(&bias, self.sizes.hidden)?);
        let normed = format!("{part}.normed");
        self.graph.node(
            "SkipLayerNormalization",
            CONTRIB,
            &[product, around, &norm[0], &norm[1], &bias],
            &[&normed],
            &[float("epsilon", self.sizes.epsilon)],
        );
        Ok(normed)
    }

    /// Adds a norm's weight and bias; returns their names.
    fn norm(&mut self, part: &str) -> Result<[String; 2]> {
        let names = [format!("{part}.weight"), format!("{part}.bias")];
        for name in &names {
            self.graph.vector(name, &self.tensors.vector(name, self.sizes.hidden)?);
        }
        Ok(names)
    }
}
