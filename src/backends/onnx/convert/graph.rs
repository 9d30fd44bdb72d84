//! The graph of a Llama-family model in ONNX Runtime's own operators.
//!
//! Per layer: norm, packed query-key-value product, attention with rotation and shared key-value
//! buffers, output product, norm with residual, packed gate-up product, `SiLU`, down product. Only
//! the last position goes through the head.

use std::f64::consts::TAU;
use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result, bail, ensure};

use super::gguf::Gguf;
use super::proto::{
    AttributeProto, FLOAT, GraphProto, INT32, INT64, ModelProto, NodeProto, OperatorSetIdProto,
    Size, UINT8, constant, external, float, int, value_info,
};
use super::weights::{BLOCK, Packed, Rows, Weights, numbers};

/// The file of the weights, beside the graph.
pub(super) const DATA: &str = "model.onnx.data";
/// Where a tensor may begin in it: a page, so that it can be mapped.
const ALIGNMENT: u64 = 4096;
const CONTRIB: &str = "com.microsoft";

/// The sizes of a model.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
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

impl Sizes {
    pub(super) fn of(model: &Gguf) -> Result<Sizes> {
        let arch = model.text("general.architecture").unwrap_or("unknown");
        ensure!(arch == "llama", "the architecture {arch} is not supported, only llama");
        let of = |key: &str| model.size(&format!("llama.{key}"));
        let number = |key: &str| model.number(&format!("llama.{key}"));
        if let Some(scaling) = model.text("llama.rope.scaling.type")
            && scaling != "none"
        {
            bail!("rotation scaled by {scaling:?} is not supported");
        }
        let (hidden, heads) = (of("embedding_length")?, of("attention.head_count")?);
        let head = of("attention.key_length").unwrap_or(hidden / heads);
        let rotated = of("rope.dimension_count").unwrap_or(head);
        ensure!(rotated == head, "a rotation of {rotated} of {head} dimensions is not supported");
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
            bail!("the tensor {other} has no place in a plain Llama model: not supported");
        }
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let epsilon = number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32;
        Ok(Sizes {
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

/// Writes the weights to `data` and gives the graph that uses them.
///
/// # Errors
/// If a tensor is missing, of another size, or can't be written.
pub(super) fn build(
    model: &Gguf,
    sizes: &Sizes,
    weights: Weights,
    data: File,
    mut progress: impl FnMut(usize),
) -> Result<ModelProto> {
    let mut builder = Builder {
        model,
        sizes,
        weights,
        data: BufWriter::new(data),
        end: 0,
        graph: GraphProto { name: "llama".to_owned(), ..GraphProto::default() },
    };
    builder.head_of_graph()?;
    let mut flow = Flow { normed: String::new(), residual: "embedded".to_owned() };
    for layer in 0..sizes.layers {
        flow = builder.layer(layer, &flow)?;
        progress(layer + 1);
    }
    builder.tail_of_graph(&flow)?;
    let file = builder.data.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
    Ok(ModelProto {
        ir_version: 10,
        producer_name: "pilotlight".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(builder.graph),
        opset_import: vec![opset("", 18), opset(CONTRIB, 1)],
    })
}

/// What goes from one layer to the next.
struct Flow {
    /// The output of the layer before, not yet added and normed; none before the first.
    normed: String,
    residual: String,
}

struct Builder<'m> {
    model: &'m Gguf,
    sizes: &'m Sizes,
    weights: Weights,
    data: BufWriter<File>,
    end: u64,
    graph: GraphProto,
}

impl Builder<'_> {
    fn head_of_graph(&mut self) -> Result<()> {
        let s = self.sizes.clone();
        let (batch, read, total) = (
            Size::Named("batch_size"),
            Size::Named("sequence_length"),
            Size::Named("total_length"),
        );
        self.graph.input.push(value_info("input_ids", INT64, &[batch, read]));
        self.graph.input.push(value_info("attention_mask", INT64, &[batch, total]));
        let logits = [batch, Size::Fixed(1), Size::Fixed(s.vocabulary)];
        self.graph.output.push(value_info("logits", FLOAT, &logits));
        for layer in 0..s.layers {
            for part in ["key", "value"] {
                let shape = |length| {
                    [batch, Size::Fixed(s.kv_heads), Size::Named(length), Size::Fixed(s.head)]
                };
                let past = format!("past_key_values.{layer}.{part}");
                self.graph.input.push(value_info(&past, FLOAT, &shape("past_length")));
                let present = format!("present.{layer}.{part}");
                self.graph.output.push(value_info(&present, FLOAT, &shape("total_length")));
            }
        }
        let whole = |name: &str, n: i64, shape: &[usize]| {
            constant(name, INT64, shape, n.to_le_bytes().to_vec())
        };
        self.graph.initializer.push(whole("one", 1, &[1]));
        self.graph.initializer.push(whole("at_one", 1, &[]));
        self.graph.initializer.push(whole("last", -1, &[1]));
        self.node("ReduceSum", "", &["attention_mask", "one"], &["seen"], &[int("keepdims", 0)]);
        self.node("Sub", "", &["seen", "one"], &["seen_before"], &[]);
        self.node("Cast", "", &["seen_before"], &["seqlens_k"], &[int("to", INT32)]);
        self.node("Shape", "", &["attention_mask"], &["mask_shape"], &[]);
        self.node("Gather", "", &["mask_shape", "at_one"], &["total"], &[int("axis", 0)]);
        self.node("Cast", "", &["total"], &["total_length"], &[int("to", INT32)]);
        self.rotation()?;
        let embedding = self.model.tensor("token_embd.weight")?;
        ensure!(
            (embedding.rows, embedding.columns) == (s.vocabulary, s.hidden),
            "the embedding is of another size than the model"
        );
        let packed = Packed::of(&[Rows::plain(&embedding)], self.weights)?;
        let places = self.write_packed(&packed)?;
        self.embedding(&packed, &places);
        if !self.model.has("output.weight") {
            self.head(&packed, &places);
        }
        Ok(())
    }

    /// Cosines and sines for each position, Su et al. 2021, arXiv:2104.09864, equation 15.
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
            let place = self.write(table)?;
            let shape = [self.sizes.context, half];
            self.graph.initializer.push(external(name, FLOAT, &shape, DATA, place));
        }
        Ok(())
    }

    fn embedding(&mut self, packed: &Packed, places: &Places) {
        let bits = self.weights.bits();
        let blocks = packed.blocks();
        let zeros = if bits == 8 { blocks } else { blocks.div_ceil(2) };
        let rows = packed.rows;
        let parts = [
            ("embedding.q", UINT8, vec![rows, packed.columns * bits / 8], places.data),
            ("embedding.scales", FLOAT, vec![rows, blocks], places.scales),
            ("embedding.zeros", UINT8, vec![rows, zeros], places.zeros),
        ];
        for (name, kind, shape, place) in parts {
            self.graph.initializer.push(external(name, kind, &shape, DATA, place));
        }
        self.node(
            "GatherBlockQuantized",
            CONTRIB,
            &["embedding.q", "input_ids", "embedding.scales", "embedding.zeros"],
            &["embedded"],
            &[
                int("bits", self.weights.bits()),
                int("block_size", BLOCK),
                int("gather_axis", 0),
                int("quantize_axis", 1),
            ],
        );
    }

    /// The initializers of the last product; a tied one lies where the embedding lies.
    fn head(&mut self, packed: &Packed, places: &Places) {
        self.initializers("lm_head", packed, places);
    }

    fn layer(&mut self, n: usize, flow: &Flow) -> Result<Flow> {
        let s = self.sizes.clone();
        let name = |part: &str| format!("layer.{n}.{part}");
        let tensor = |part: &str| self.model.tensor(&format!("blk.{n}.{part}.weight"));
        let parts = [tensor("attn_q")?, tensor("attn_k")?, tensor("attn_v")?];
        let width = (s.heads + 2 * s.kv_heads) * s.head;
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        ensure!(rows == width, "layer {n}: attention is of another size");
        let [query, key, value] = &parts;
        let qkv = [Rows::rotated(query, s.head), Rows::rotated(key, s.head), Rows::plain(value)];
        let qkv = Packed::of(&qkv, self.weights)?;
        let out = Packed::of(&[Rows::plain(&tensor("attn_output")?)], self.weights)?;
        let (gate, up) = (tensor("ffn_gate")?, tensor("ffn_up")?);
        let wide = Packed::of(&[Rows::plain(&gate), Rows::plain(&up)], self.weights)?;
        ensure!(wide.rows == 2 * s.feed_forward, "layer {n}: feed-forward is of another size");
        let down = Packed::of(&[Rows::plain(&tensor("ffn_down")?)], self.weights)?;

        let normed = name("attention_norm");
        let residual = self.norm(flow, &format!("blk.{n}.attn_norm.weight"), &normed)?;
        self.product(&normed, &name("qkv"), &qkv)?;
        self.attention(n, &name("qkv"), &name("attended"));
        self.product(&name("attended"), &name("attention_out"), &out)?;

        let flow = Flow { normed: name("attention_out"), residual };
        let normed = name("feed_forward_norm");
        let residual = self.norm(&flow, &format!("blk.{n}.ffn_norm.weight"), &normed)?;
        self.product(&normed, &name("gate_up"), &wide)?;
        let (gate, up, open, gated) = (name("gate"), name("up"), name("open"), name("gated"));
        let halves = [int("axis", -1), int("num_outputs", 2)];
        self.node("Split", "", &[&name("gate_up")], &[&gate, &up], &halves);
        self.node("QuickGelu", CONTRIB, &[&gate], &[&open], &[float("alpha", 1.0)]);
        self.node("Mul", "", &[&open, &up], &[&gated], &[]);
        self.product(&gated, &name("feed_forward_out"), &down)?;
        Ok(Flow { normed: name("feed_forward_out"), residual })
    }

    fn attention(&mut self, n: usize, qkv: &str, attended: &str) {
        let past = |part: &str| format!("past_key_values.{n}.{part}");
        let present = |part: &str| format!("present.{n}.{part}");
        self.node(
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

    fn tail_of_graph(&mut self, flow: &Flow) -> Result<()> {
        self.norm(flow, "output_norm.weight", "normed")?;
        self.node("Gather", "", &["normed", "last"], &["normed_last"], &[int("axis", 1)]);
        if self.model.has("output.weight") {
            let output = self.model.tensor("output.weight")?;
            let packed = Packed::of(&[Rows::plain(&output)], self.weights)?;
            let places = self.write_packed(&packed)?;
            self.head(&packed, &places);
        }
        self.matmul("normed_last", "lm_head", "logits", self.sizes.hidden, self.sizes.vocabulary);
        Ok(())
    }

    /// A norm over the sum of what flows; gives the name of the sum.
    fn norm(&mut self, flow: &Flow, weight: &str, normed: &str) -> Result<String> {
        let stored = self.model.tensor(weight)?;
        ensure!(
            stored.rows * stored.columns == self.sizes.hidden,
            "{weight} is of another size than the model"
        );
        let bytes: Vec<u8> =
            numbers(stored.kind, &stored.bytes).iter().flat_map(|w| w.to_le_bytes()).collect();
        self.graph.initializer.push(constant(weight, FLOAT, &[self.sizes.hidden], bytes));
        let epsilon = float("epsilon", self.sizes.epsilon);
        if flow.normed.is_empty() {
            let attributes = [epsilon, int("axis", -1), int("stash_type", 1)];
            let inputs = [flow.residual.as_str(), weight];
            self.node("SimplifiedLayerNormalization", "", &inputs, &[normed], &attributes);
            return Ok(flow.residual.clone());
        }
        let sum = format!("{normed}.sum");
        self.node(
            "SkipSimplifiedLayerNormalization",
            CONTRIB,
            &[&flow.normed, &flow.residual, weight],
            &[normed, "", "", &sum],
            &[epsilon],
        );
        Ok(sum)
    }

    /// A product with weights of its own.
    fn product(&mut self, input: &str, output: &str, packed: &Packed) -> Result<()> {
        let places = self.write_packed(packed)?;
        self.initializers(output, packed, &places);
        self.matmul(input, output, output, packed.columns, packed.rows);
        Ok(())
    }

    fn initializers(&mut self, name: &str, packed: &Packed, places: &Places) {
        let bits = self.weights.bits();
        let (rows, blocks) = (packed.rows, packed.blocks());
        let zeros = if bits == 8 { blocks } else { blocks.div_ceil(2) };
        let parts = [
            ("q", UINT8, vec![rows, blocks, BLOCK * bits / 8], places.data),
            ("scales", FLOAT, vec![rows, blocks], places.scales),
            ("zeros", UINT8, vec![rows, zeros], places.zeros),
        ];
        for (part, kind, shape, place) in parts {
            let name = format!("{name}.{part}");
            self.graph.initializer.push(external(&name, kind, &shape, DATA, place));
        }
    }

    fn matmul(&mut self, input: &str, weights: &str, output: &str, columns: usize, rows: usize) {
        let part = |part: &str| format!("{weights}.{part}");
        self.node(
            "MatMulNBits",
            CONTRIB,
            &[input, &part("q"), &part("scales"), &part("zeros")],
            &[output],
            &[
                int("K", columns),
                int("N", rows),
                int("bits", self.weights.bits()),
                int("block_size", BLOCK),
                // computes with 8-bit activations; without it, writing is ten times slower
                int("accuracy_level", 4),
            ],
        );
    }

    fn node(
        &mut self,
        op: &str,
        domain: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[AttributeProto],
    ) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.graph.node.push(NodeProto {
            input: owned(inputs),
            output: owned(outputs),
            name: format!("{op}.{}", outputs.first().copied().unwrap_or_default()),
            op_type: op.to_owned(),
            attribute: attributes.to_vec(),
            domain: domain.to_owned(),
        });
    }

    fn write_packed(&mut self, packed: &Packed) -> Result<Places> {
        let scales: Vec<u8> = packed.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        Ok(Places {
            data: self.write(&packed.data)?,
            scales: self.write(&scales)?,
            zeros: self.write(&packed.zeros)?,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(u64, u64)> {
        let at = self.end.next_multiple_of(ALIGNMENT);
        let gap = usize::try_from(at - self.end)?;
        let written = self.data.write_all(&vec![0; gap]).and_then(|()| self.data.write_all(bytes));
        written.context("the weights can't be written")?;
        self.end = at + bytes.len() as u64;
        Ok((at, bytes.len() as u64))
    }
}

/// Where the parts of a matrix lie in the file of the weights: offset and length.
struct Places {
    data: (u64, u64),
    scales: (u64, u64),
    zeros: (u64, u64),
}
