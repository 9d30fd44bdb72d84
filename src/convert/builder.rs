//! What the graphs of all architectures are made of: nodes, and weights in a file beside the graph.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result};

use super::proto::{
    AttributeProto, FLOAT, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, UINT8, constant,
    external, int,
};
use super::weights::{BLOCK, OnnxWeights, Packed};

/// The file of the weights, beside the graph.
pub(super) const DATA: &str = "model.onnx.data";
/// The domain of ONNX Runtime's own operators.
pub(super) const CONTRIB: &str = "com.microsoft";
/// Where a tensor may begin in the file: a page, so that it can be mapped.
const ALIGNMENT: u64 = 4096;

/// A graph as it grows.
pub(super) struct Builder {
    weights: OnnxWeights,
    data: BufWriter<File>,
    end: u64,
    pub(super) graph: GraphProto,
}

/// Where the parts of a matrix lie in the file of the weights: offset and length.
pub(super) struct Places {
    data: (u64, u64),
    scales: (u64, u64),
    zeros: (u64, u64),
}

impl Builder {
    pub(super) fn new(name: &str, weights: OnnxWeights, data: File) -> Builder {
        let graph = GraphProto { name: name.to_owned(), ..GraphProto::default() };
        Builder { weights, data: BufWriter::new(data), end: 0, graph }
    }

    /// The whole model; its weights are on the disk.
    ///
    /// # Errors
    /// If they can't be written.
    pub(super) fn finish(self) -> Result<ModelProto> {
        let file = self.data.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let opset =
            |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        Ok(ModelProto {
            ir_version: 10,
            producer_name: "pilotlight".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(self.graph),
            opset_import: vec![opset("", 18), opset(CONTRIB, 1)],
        })
    }

    /// Puts matrices of one width below each other, in the blocks of this graph.
    ///
    /// # Errors
    /// If their widths differ or are no whole blocks.
    pub(super) fn pack(&self, parts: &[super::weights::Rows<'_>]) -> Result<Packed> {
        Packed::of(parts, self.weights)
    }

    pub(super) fn node(
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

    /// A small constant of whole numbers.
    pub(super) fn whole(&mut self, name: &str, n: i64, shape: &[usize]) {
        let bytes = n.to_le_bytes().to_vec();
        self.graph.initializer.push(constant(name, super::proto::INT64, shape, bytes));
    }

    /// A small constant of numbers.
    pub(super) fn vector(&mut self, name: &str, numbers: &[f32]) {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.graph.initializer.push(constant(name, FLOAT, &[numbers.len()], bytes));
    }

    /// A table of numbers in the file beside the graph.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn table(&mut self, name: &str, shape: &[usize], numbers: &[u8]) -> Result<()> {
        let place = self.write(numbers)?;
        self.graph.initializer.push(external(name, FLOAT, shape, DATA, place));
        Ok(())
    }

    /// The rows of a quantized table by their numbers.
    pub(super) fn embedding(&mut self, ids: &str, output: &str, packed: &Packed, places: &Places) {
        let row = packed.columns * self.weights.bits() / 8;
        self.initializers("embedding", packed, places, vec![packed.rows, row]);
        self.node(
            "GatherBlockQuantized",
            CONTRIB,
            &["embedding.q", ids, "embedding.scales", "embedding.zeros"],
            &[output],
            &[
                int("bits", self.weights.bits()),
                int("block_size", BLOCK),
                int("gather_axis", 0),
                int("quantize_axis", 1),
            ],
        );
    }

    /// A product with weights of its own.
    ///
    /// # Errors
    /// If they can't be written.
    pub(super) fn product(&mut self, input: &str, output: &str, packed: &Packed) -> Result<()> {
        let places = self.write_packed(packed)?;
        self.product_with(input, output, packed, &places);
        Ok(())
    }

    /// A product with weights that are in the file already.
    pub(super) fn product_with(
        &mut self,
        input: &str,
        output: &str,
        packed: &Packed,
        places: &Places,
    ) {
        let block = BLOCK * self.weights.bits() / 8;
        self.initializers(output, packed, places, vec![packed.rows, packed.blocks(), block]);
        let part = |part: &str| format!("{output}.{part}");
        self.node(
            "MatMulNBits",
            CONTRIB,
            &[input, &part("q"), &part("scales"), &part("zeros")],
            &[output],
            &[
                int("K", packed.columns),
                int("N", packed.rows),
                int("bits", self.weights.bits()),
                int("block_size", BLOCK),
                // computes with 8-bit activations; without it, writing is ten times slower
                int("accuracy_level", 4),
            ],
        );
    }

    fn initializers(&mut self, name: &str, packed: &Packed, places: &Places, shape: Vec<usize>) {
        let parts = [
            ("q", UINT8, shape, places.data),
            ("scales", FLOAT, vec![packed.rows, packed.blocks()], places.scales),
            ("zeros", UINT8, vec![packed.rows, packed.zero_bytes()], places.zeros),
        ];
        for (part, kind, shape, place) in parts {
            let name = format!("{name}.{part}");
            self.graph.initializer.push(external(&name, kind, &shape, DATA, place));
        }
    }

    /// Writes a matrix to the file.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn write_packed(&mut self, packed: &Packed) -> Result<Places> {
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
        written.context("the weights cannot be written")?;
        self.end = at + bytes.len() as u64;
        Ok((at, bytes.len() as u64))
    }
}
