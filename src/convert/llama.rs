//! Graph of a Llama-family model with ONNX Runtime's contrib operators.
//!
//! Each layer: norm, packed query-key-value projection, attention with rotary embeddings and shared KV
//! buffers, output projection, norm with residual, packed gate-up projection, `SiLU`, down projection.
//! Logits are computed for the last position only.

use std::f64::consts::TAU;
use std::fs::File;

use anyhow::{Result, bail, ensure};

use super::builder::{Builder, CONTRIB, PackedOffsets};
use super::gguf::Gguf;
use super::proto::{FLOAT, INT32, INT64, ModelProto, Size, float, int, value_info};
use super::weights::{OnnxWeights, Packed, Rows, numbers};

/// Sizes of a model.
#[derive(Debug, Clone)]
pub(super) struct LlamaSizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) vocabulary: usize,
    pub(super) context: usize,
    feed_forward: usize,
    epsilon: f32,
    theta: f64,
}

impl LlamaSizes {
    pub(super) fn of(model: &Gguf) -> Result<LlamaSizes> {
        let arch = model.text("general.architecture").unwrap_or("unknown");
        ensure!(arch == "llama", "the architecture {arch} is not supported, only llama");
        let of = |key: &str| model.size(&format!("llama.{key}"));
        let number = |key: &str| model.number(&format!("llama.{key}"));
        if let Some(scaling) = model.text("llama.rope.scaling.type")
            && scaling != "none"
        {
            bail!("the rope scaling {scaling:?} is not supported");
        }
        let (hidden, heads) = (of("embedding_length")?, of("attention.head_count")?);
        let head = of("attention.key_length").unwrap_or(hidden / heads);
        let rotated = of("rope.dimension_count").unwrap_or(head);
        ensure!(
            rotated == head,
            "rotary embeddings of {rotated} of {head} dimensions are not supported"
        );
        let supported = |name: &str| {
            let part = name.rsplit_once('.').map_or(name, |(part, _)| part);
            let part = part.rsplit('.').next().unwrap_or_default();
            let parts = [
                "token_embd",
                "output",
                "output_norm",
                "attn_norm",
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            ];
            name.ends_with(".weight") && parts.contains(&part)
        };
        if let Some(other) = model.names().find(|name| !supported(name)) {
            bail!("unknown tensor {other}: not a plain Llama model");
        }
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let epsilon = number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32;
        Ok(LlamaSizes {
            layers: of("block_count")?,
            hidden,
            heads,
            kv_heads: of("attention.head_count_kv").unwrap_or(heads),
            head,
            vocabulary: model.texts("tokenizer.ggml.tokens")?.len(),
            context: of("context_length")?,
            feed_forward: of("feed_forward_length")?,
            epsilon,
            theta: number("rope.freq_base").unwrap_or(10_000.0),
        })
    }
}

/// Writes the weights to `data` and returns the graph that refers to them.
///
/// # Errors
/// If a tensor is missing, of another size, or can't be written.
pub(super) fn build(
    model: &Gguf,
    sizes: &LlamaSizes,
    weights: OnnxWeights,
    data: File,
    mut progress: impl FnMut(usize),
) -> Result<ModelProto> {
    let mut llama =
        LlamaGraph { model, sizes, graph: Builder::new("llama", weights, data), tied: None };
    llama.head_of_graph()?;
    let mut flow = GraphFlow { normed: String::new(), residual: "embedded".to_owned() };
    for layer in 0..sizes.layers {
        flow = llama.layer(layer, &flow)?;
        progress(layer + 1);
    }
    llama.tail_of_graph(&flow)?;
    llama.graph.finish()
}

/// Names of the values between two layers.
struct GraphFlow {
    /// Output of the previous layer before residual and norm; `None` before the first layer.
    normed: String,
    residual: String,
}

struct LlamaGraph<'m> {
    model: &'m Gguf,
    sizes: &'m LlamaSizes,
    graph: Builder,
    /// Table of the embedding, if the output projection shares it.
    tied: Option<(Packed, PackedOffsets)>,
}

impl LlamaGraph<'_> {
    fn head_of_graph(&mut self) -> Result<()> {
        let s = self.sizes.clone();
        let (batch, read, total) = (
            Size::Named("batch_size"),
            Size::Named("sequence_length"),
            Size::Named("total_length"),
        );
        self.graph.graph.input.push(value_info("input_ids", INT64, &[batch, read]));
        self.graph.graph.input.push(value_info("attention_mask", INT64, &[batch, total]));
        let logits = [batch, Size::Fixed(1), Size::Fixed(s.vocabulary)];
        self.graph.graph.output.push(value_info("logits", FLOAT, &logits));
        for layer in 0..s.layers {
            for part in ["key", "value"] {
                let shape = |length| {
                    [batch, Size::Fixed(s.kv_heads), Size::Named(length), Size::Fixed(s.head)]
                };
                let past = format!("past_key_values.{layer}.{part}");
                self.graph.graph.input.push(value_info(&past, FLOAT, &shape("past_length")));
                let present = format!("present.{layer}.{part}");
                self.graph.graph.output.push(value_info(&present, FLOAT, &shape("total_length")));
            }
        }
        self.graph.integer("one", 1, &[1]);
        self.graph.integer("at_one", 1, &[]);
        self.graph.integer("last", -1, &[1]);
        self.graph.node(
            "ReduceSum",
            "",
            &["attention_mask", "one"],
            &["seen"],
            &[int("keepdims", 0)],
        );
        self.graph.node("Sub", "", &["seen", "one"], &["seen_before"], &[]);
        self.graph.node("Cast", "", &["seen_before"], &["seqlens_k"], &[int("to", INT32)]);
        self.graph.node("Shape", "", &["attention_mask"], &["mask_shape"], &[]);
        self.graph.node("Gather", "", &["mask_shape", "at_one"], &["total"], &[int("axis", 0)]);
        self.graph.node("Cast", "", &["total"], &["total_length"], &[int("to", INT32)]);
        self.rotation()?;
        let embedding = self.model.tensor("token_embd.weight")?;
        ensure!(
            (embedding.rows, embedding.columns) == (s.vocabulary, s.hidden),
            "the embedding matrix has the wrong size"
        );
        let packed = self.graph.pack(&[Rows::plain(&embedding)])?;
        let offsets = self.graph.write_packed(&packed)?;
        self.graph.embedding("input_ids", "embedded", &packed, &offsets);
        self.tied = (!self.model.has("output.weight")).then_some((packed, offsets));
        Ok(())
    }

    /// Rotary embeddings: cosines and sines of each position, Su et al. 2021, arXiv:2104.09864,
    /// equation 15.
    fn rotation(&mut self) -> Result<()> {
        let half = self.sizes.head / 2;
        let mut tables = [Vec::new(), Vec::new()];
        for position in 0..self.sizes.context {
            for pair in 0..half {
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    reason = "positions and pairs are small; the table is of f32"
                )]
                {
                    let turn = self.sizes.theta.powf(-(pair as f64) / half as f64);
                    let angle = (position as f64 * turn) % TAU;
                    tables[0].extend((angle.cos() as f32).to_le_bytes());
                    tables[1].extend((angle.sin() as f32).to_le_bytes());
                }
            }
        }
        for (name, table) in ["cos_cache", "sin_cache"].iter().zip(&tables) {
            self.graph.table(name, &[self.sizes.context, half], table)?;
        }
        Ok(())
    }

    fn layer(&mut self, n: usize, flow: &GraphFlow) -> Result<GraphFlow> {
        let s = self.sizes.clone();
        let name = |part: &str| format!("layer.{n}.{part}");
        let tensor = |part: &str| self.model.tensor(&format!("blk.{n}.{part}.weight"));
        let parts = [tensor("attn_q")?, tensor("attn_k")?, tensor("attn_v")?];
        let width = (s.heads + 2 * s.kv_heads) * s.head;
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        ensure!(rows == width, "layer {n}: the attention matrices have the wrong size");
        let [query, key, value] = &parts;
        let qkv = [Rows::rotated(query, s.head), Rows::rotated(key, s.head), Rows::plain(value)];
        let qkv = self.graph.pack(&qkv)?;
        let out = self.graph.pack(&[Rows::plain(&tensor("attn_output")?)])?;
        let (gate, up) = (tensor("ffn_gate")?, tensor("ffn_up")?);
        let wide = self.graph.pack(&[Rows::plain(&gate), Rows::plain(&up)])?;
        ensure!(
            wide.rows == 2 * s.feed_forward,
            "layer {n}: the feed-forward matrices have the wrong size"
        );
        let down = self.graph.pack(&[Rows::plain(&tensor("ffn_down")?)])?;

        let normed = name("attention_norm");
        let residual = self.norm(flow, &format!("blk.{n}.attn_norm.weight"), &normed)?;
        self.graph.product(&normed, &name("qkv"), &qkv)?;
        self.attention(n, &name("qkv"), &name("attended"));
        self.graph.product(&name("attended"), &name("attention_out"), &out)?;

        let flow = GraphFlow { normed: name("attention_out"), residual };
        let normed = name("feed_forward_norm");
        let residual = self.norm(&flow, &format!("blk.{n}.ffn_norm.weight"), &normed)?;
        self.graph.product(&normed, &name("gate_up"), &wide)?;
        let (gate, up, open, gated) = (name("gate"), name("up"), name("open"), name("gated"));
        let halves = [int("axis", -1), int("num_outputs", 2)];
        self.graph.node("Split", "", &[&name("gate_up")], &[&gate, &up], &halves);
        self.graph.node("QuickGelu", CONTRIB, &[&gate], &[&open], &[float("alpha", 1.0)]);
        self.graph.node("Mul", "", &[&open, &up], &[&gated], &[]);
        self.graph.product(&gated, &name("feed_forward_out"), &down)?;
        Ok(GraphFlow { normed: name("feed_forward_out"), residual })
    }

    fn attention(&mut self, n: usize, qkv: &str, attended: &str) {
        let past = |part: &str| format!("past_key_values.{n}.{part}");
        let present = |part: &str| format!("present.{n}.{part}");
        self.graph.node(
            "GroupQueryAttention",
            CONTRIB,
            &[
                qkv,
                "",
                "",
                &past("key"),
                &past("value"),
                "seqlens_k",
                "total_length",
                "cos_cache",
                "sin_cache",
            ],
            &[attended, &present("key"), &present("value")],
            &[
                int("num_heads", self.sizes.heads),
                int("kv_num_heads", self.sizes.kv_heads),
                int("do_rotary", 1),
                int("rotary_interleaved", 0),
            ],
        );
    }

    fn tail_of_graph(&mut self, flow: &GraphFlow) -> Result<()> {
        self.norm(flow, "output_norm.weight", "normed")?;
        let last = [int("axis", 1)];
        self.graph.node("Gather", "", &["normed", "last"], &["normed_last"], &last);
        let (packed, offsets) = match self.tied.take() {
            Some(tied) => tied,
            None => {
                let output = self.model.tensor("output.weight")?;
                let packed = self.graph.pack(&[Rows::plain(&output)])?;
                let offsets = self.graph.write_packed(&packed)?;
                (packed, offsets)
            }
        };
        ensure!(
            (packed.rows, packed.columns) == (self.sizes.vocabulary, self.sizes.hidden),
            "the output matrix has the wrong size"
        );
        self.graph.product_with("normed_last", "logits", &packed, &offsets);
        Ok(())
    }

    /// Adds a norm over the residual sum; returns the name of the sum.
    fn norm(&mut self, flow: &GraphFlow, weight: &str, normed: &str) -> Result<String> {
        let stored = self.model.tensor(weight)?;
        ensure!(stored.rows * stored.columns == self.sizes.hidden, "{weight} has the wrong size");
        self.graph.vector(weight, &numbers(stored.kind, &stored.bytes));
        let epsilon = float("epsilon", self.sizes.epsilon);
        if flow.normed.is_empty() {
            let attributes = [epsilon, int("axis", -1), int("stash_type", 1)];
            let inputs = [flow.residual.as_str(), weight];
            self.graph.node("SimplifiedLayerNormalization", "", &inputs, &[normed], &attributes);
            return Ok(flow.residual.clone());
        }
        let sum = format!("{normed}.sum");
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            CONTRIB,
            &[&flow.normed, &flow.residual, weight],
            &[normed, "", "", &sum],
            &[epsilon],
        );
        Ok(sum)
    }
}
