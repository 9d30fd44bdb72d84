//! Block quantization in the layout of ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized`.
//!
//! Source: the documentation of ONNX Runtime's contrib operators. A row is split into blocks of 32
//! numbers, each with a scale and an integer zero point: `w = (q - zero) * scale`.

use anyhow::{Result, ensure};
use half::f16;

use super::gguf::{Stored, TensorKind};

/// Numbers of a block.
pub(super) const BLOCK: usize = 32;

/// Bits of a quantized weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnnxWeights {
    /// 8 bits: lossless from `Q8_0`.
    Int8,
    /// 4 bits: two thirds of the size and faster decoding, less accurate.
    Int4,
}

impl OnnxWeights {
    pub(super) fn bits(self) -> usize {
        match self {
            OnnxWeights::Int8 => 8,
            OnnxWeights::Int4 => 4,
        }
    }

    /// Name in a `ModelContext`.
    pub(super) fn name(self) -> &'static str {
        match self {
            OnnxWeights::Int8 => "int8",
            OnnxWeights::Int4 => "int4",
        }
    }
}

/// A block-quantized matrix.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) weights: OnnxWeights,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) data: Vec<u8>,
    pub(super) scales: Vec<f32>,
    pub(super) zeros: Vec<u8>,
}

impl Packed {
    /// Concatenates matrices by rows and quantizes them.
    ///
    /// # Errors
    /// If their widths differ or are no multiple of a block.
    pub(super) fn of(parts: &[Rows<'_>], weights: OnnxWeights) -> Result<Packed> {
        let columns = parts.first().map_or(0, |part| part.stored.columns);
        ensure!(
            columns > 0 && columns.is_multiple_of(BLOCK),
            "{columns} columns are not a multiple of the block size"
        );
        let mut packed = Packed {
            weights,
            rows: 0,
            columns,
            data: Vec::new(),
            scales: Vec::new(),
            zeros: Vec::new(),
        };
        for part in parts {
            ensure!(
                part.stored.columns == columns,
                "matrices of different widths cannot be packed"
            );
            for n in 0..part.stored.rows {
                packed.row(part.stored.kind, part.stored.row(part.place(n)));
            }
        }
        Ok(packed)
    }

    fn row(&mut self, kind: TensorKind, bytes: &[u8]) {
        self.rows += 1;
        let zeros_before = self.zeros.len();
        if kind == TensorKind::Q8_0 && self.weights == OnnxWeights::Int8 {
            for block in bytes.chunks_exact(34) {
                self.scales.push(f16::from_le_bytes([block[0], block[1]]).to_f32());
                self.zeros.push(128);
                // a signed byte, offset by 128
                self.data.extend(block[2..].iter().map(|q| q ^ 0x80));
            }
            return;
        }
        let values = numbers(kind, bytes);
        for block in values.chunks_exact(BLOCK) {
            self.block(block);
        }
        if self.weights == OnnxWeights::Int4 {
            let zeros = pairs(&self.zeros.split_off(zeros_before));
            self.zeros.extend(zeros);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to 0 up to the highest step"
    )]
    fn block(&mut self, values: &[f32]) {
        let steps = if self.weights == OnnxWeights::Int8 { 255.0_f32 } else { 15.0 };
        // zero is always representable
        let least = values.iter().copied().fold(0.0, f32::min);
        let most = values.iter().copied().fold(0.0, f32::max);
        let scale = (most - least) / steps;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        let zero = (-least / scale).round().clamp(0.0, steps);
        let steps = values.iter().map(|w| (w / scale + zero).round().clamp(0.0, steps) as u8);
        let steps: Vec<u8> = steps.collect();
        self.scales.push(scale);
        self.zeros.push(zero as u8);
        if self.weights == OnnxWeights::Int4 {
            self.data.extend(pairs(&steps));
        } else {
            self.data.extend(steps);
        }
    }

    /// Blocks of a row.
    pub(super) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// Bytes of the zero points of a row.
    pub(super) fn zero_bytes(&self) -> usize {
        match self.weights {
            OnnxWeights::Int8 => self.blocks(),
            OnnxWeights::Int4 => self.blocks().div_ceil(2),
        }
    }
}

/// Packs two 4-bit numbers into a byte, the first in the lower half.
fn pairs(numbers: &[u8]) -> Vec<u8> {
    numbers.chunks(2).map(|pair| pair[0] | pair.get(1).copied().unwrap_or(0) << 4).collect()
}

/// A stored matrix with the order of its rows.
pub(super) struct Rows<'s> {
    stored: &'s Stored,
    /// Dimensions of an attention head, if the rows are in llama.cpp's order of rotary embeddings.
    head: Option<usize>,
}

impl<'s> Rows<'s> {
    pub(super) fn plain(stored: &'s Stored) -> Rows<'s> {
        Rows { stored, head: None }
    }

    /// The rows of a query or key matrix in the order of ONNX Runtime: it rotates halves (i, i + half a
    /// head), llama.cpp neighbours (2i, 2i + 1).
    pub(super) fn rotated(stored: &'s Stored, head: usize) -> Rows<'s> {
        Rows { stored, head: Some(head) }
    }

    fn place(&self, n: usize) -> usize {
        let Some(head) = self.head else {
            return n;
        };
        let (start, within) = (n / head * head, n % head);
        let half = head / 2;
        start + 2 * (within % half) + within / half
    }
}

/// Dequantizes a row.
pub(super) fn numbers(kind: TensorKind, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
    let low = |q: &u8| f32::from(q & 0x0F);
    let high = |q: &u8| f32::from(q >> 4);
    match kind {
        TensorKind::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        TensorKind::F16 => bytes.chunks_exact(2).map(half).collect(),
        TensorKind::Q8_0 => bytes
            .chunks_exact(34)
            .flat_map(|b| {
                let scale = half(b);
                b[2..].iter().map(move |q| scale * f32::from(q.cast_signed()))
            })
            .collect(),
        TensorKind::Q4_0 => bytes
            .chunks_exact(18)
            .flat_map(|b| {
                let scale = half(b);
                let steps = b[2..].iter().map(low).chain(b[2..].iter().map(high));
                steps.map(move |q| scale * (q - 8.0))
            })
            .collect(),
        TensorKind::Q4_1 => bytes
            .chunks_exact(20)
            .flat_map(|b| {
                let (scale, least) = (half(b), half(&b[2..]));
                let steps = b[4..].iter().map(low).chain(b[4..].iter().map(high));
                steps.map(move |q| scale * q + least)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dequantized(packed: &Packed) -> Vec<f32> {
        let eight = packed.weights == OnnxWeights::Int8;
        let unpack = |bytes: &[u8]| -> Vec<u8> {
            if eight {
                return bytes.to_vec();
            }
            bytes.iter().flat_map(|b| [b & 0x0F, b >> 4]).collect()
        };
        let (steps, zeros) = (unpack(&packed.data), unpack(&packed.zeros));
        steps
            .iter()
            .enumerate()
            .map(|(n, q)| {
                let block = n / BLOCK;
                (f32::from(*q) - f32::from(zeros[block])) * packed.scales[block]
            })
            .collect()
    }

    fn row(seed: u64, columns: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..columns).map(|_| random.f32() * 3.0 - 1.0).collect()
    }

    #[test]
    fn q8_0_is_kept_without_loss_and_others_within_half_a_step() {
        let mut bytes = f16::from_f32(0.25).to_le_bytes().to_vec();
        bytes.extend((0..32_i8).map(|q| (q * 7 - 100).cast_unsigned()));
        let expected = numbers(TensorKind::Q8_0, &bytes);
        assert!((expected[0] + 25.0).abs() < 1e-6);
        let stored = Stored { kind: TensorKind::Q8_0, rows: 1, columns: 32, bytes };
        let packed = Packed::of(&[Rows::plain(&stored)], OnnxWeights::Int8).unwrap();
        assert_eq!(dequantized(&packed), expected);

        for (weights, steps) in [(OnnxWeights::Int8, 255.0), (OnnxWeights::Int4, 15.0)] {
            let values = row(3, 64);
            let bytes = values.iter().flat_map(|w| w.to_le_bytes()).collect();
            let stored = Stored { kind: TensorKind::F32, rows: 1, columns: 64, bytes };
            let packed = Packed::of(&[Rows::plain(&stored)], weights).unwrap();
            for (got, want) in dequantized(&packed).iter().zip(&values) {
                // an integer zero point shifts the range by up to half a step
                assert!((got - want).abs() <= 3.0 / steps * 1.01, "{weights:?}: {got} for {want}");
            }
        }
    }

    #[test]
    fn rows_of_rotary_embeddings_are_reordered_to_halves() {
        let stored =
            Stored { kind: TensorKind::F32, rows: 8, columns: 32, bytes: vec![0; 8 * 128] };
        let rows = Rows::rotated(&stored, 4);
        let order: Vec<usize> = (0..8).map(|n| rows.place(n)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn four_bit_blocks_of_ggml_are_dequantized() {
        let mut bytes = f16::from_f32(0.5).to_le_bytes().to_vec();
        bytes.extend(f16::from_f32(-1.0).to_le_bytes());
        bytes.extend([0x21; 16]);
        let numbers = numbers(TensorKind::Q4_1, &bytes);
        assert_eq!((numbers[0], numbers[15], numbers[16], numbers[31]), (-0.5, -0.5, 0.0, 0.0));
    }
}
