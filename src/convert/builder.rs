//! Graph builder for all architectures: nodes, and weights in a file beside the graph.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result};

use super::proto::{
    AttributeProto, FLOAT, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, UINT8, constant,
    external, int,
};
use super::weights::{BLOCK, OnnxWeights, Packed};

/// File of the weights, beside the graph.
pub(super) const DATA: &str = "model.onnx.data";
/// Domain of ONNX Runtime's contrib operators.
pub(super) const CONTRIB: &str = "com.microsoft";
/// Alignment of tensors in the file, bytes: a page, so that they can be mapped.
const ALIGNMENT: u64 = 4096;

/// A graph under construction.
pub(super) struct Builder {
    weights: OnnxWeights,
    data: BufWriter<File>,
    end: u64,
    pub(super) graph: GraphProto,
}

/// Offset and length of each part of a packed matrix in the file of the weights, bytes.
pub(super) struct PackedOffsets {
    data: (u64, u64),
    scales: (u64, u64),
    zeros: (u64, u64),
}

impl Builder {
    pub(super) fn new(name: &str, weights: OnnxWeights, data: File) -> Builder {
        let graph = GraphProto { name: name.to_owned(), ..GraphProto::default() };
        Builder { weights, data: BufWriter::new(data), end: 0, graph }
    }

    /// Syncs the weights to disk and returns the model.
    ///
    /// # Errors
    /// If the weights can't be written.
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

    /// Concatenates matrices by rows and quantizes them in blocks.
    ///
    /// # Errors
    /// If their widths differ or are no multiple of a block.
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

    /// Adds a constant of one integer.
    pub(super) fn integer(&mut self, name: &str, n: i64, shape: &[usize]) {
        let bytes = n.to_le_bytes().to_vec();
        self.graph.initializer.push(constant(name, super::proto::INT64, shape, bytes));
    }

    /// Adds a constant vector.
    pub(super) fn vector(&mut self, name: &str, numbers: &[f32]) {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.graph.initializer.push(constant(name, FLOAT, &[numbers.len()], bytes));
    }

    /// Adds a constant table in the file beside the graph.
    ///
    /// # Errors
    /// If the table can't be written.
    pub(super) fn table(&mut self, name: &str, shape: &[usize], numbers: &[u8]) -> Result<()> {
        let place = self.write(numbers)?;
        self.graph.initializer.push(external(name, FLOAT, shape, DATA, place));
        Ok(())
    }

    /// Adds a lookup of rows in a quantized table.
    pub(super) fn embedding(
        &mut self,
        ids: &str,
        output: &str,
        packed: &Packed,
        offsets: &PackedOffsets,
    ) {
        let row = packed.columns * self.weights.bits() / 8;
        self.initializers("embedding", packed, offsets, vec![packed.rows, row]);
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

    /// Adds a product with weights, which are written to the file.
    ///
    /// # Errors
    /// If the weights can't be written.
    pub(super) fn product(&mut self, input: &str, output: &str, packed: &Packed) -> Result<()> {
        let offsets = self.write_packed(packed)?;
        self.product_with(input, output, packed, &offsets);
        Ok(())
    }

    /// Adds a product with weights that the file has already.
    pub(super) fn product_with(
        &mut self,
        input: &str,
        output: &str,
        packed: &Packed,
        offsets: &PackedOffsets,
    ) {
        let block = BLOCK * self.weights.bits() / 8;
        self.initializers(output, packed, offsets, vec![packed.rows, packed.blocks(), block]);
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
                // 8-bit activations; without them, decoding is ten times slower
                int("accuracy_level", 4),
            ],
        );
    }

    fn initializers(
        &mut self,
        name: &str,
        packed: &Packed,
        offsets: &PackedOffsets,
        shape: Vec<usize>,
    ) {
        let parts = [
            ("q", UINT8, shape, offsets.data),
            ("scales", FLOAT, vec![packed.rows, packed.blocks()], offsets.scales),
            ("zeros", UINT8, vec![packed.rows, packed.zero_bytes()], offsets.zeros),
        ];
        for (part, kind, shape, place) in parts {
            let name = format!("{name}.{part}");
            self.graph.initializer.push(external(&name, kind, &shape, DATA, place));
        }
    }

    /// Writes a packed matrix to the file.
    ///
    /// # Errors
    /// If the file can't be written.
    pub(super) fn write_packed(&mut self, packed: &Packed) -> Result<PackedOffsets> {
        let scales: Vec<u8> = packed.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        Ok(PackedOffsets {
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
