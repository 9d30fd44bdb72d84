//! Checks the head of a GGUF file before llama.cpp reads it: all counts, lengths, sizes and offsets, in
//! checked arithmetic and against the size of the file.
//!
//! Source: the GGUF specification in the ggml project, versions 2 and 3.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};

use anyhow::{Context, Result, bail, ensure};

use crate::limits::engine::{
    GGUF_ALIGNMENT_MAX, GGUF_ENTRIES_MAX, GGUF_HEAD_BYTES_MAX, GGUF_LAYERS_MAX, TEMPLATE_BYTES_MAX,
};

/// Most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;
/// Longest name of a key or a tensor, in bytes; the latter is ggml's own.
const KEY_BYTES_MAX: u64 = 1024;
const TENSOR_NAME_BYTES_MAX: u64 = 63;
/// Longest text that is kept, in bytes: the names of an architecture are short.
const KEPT_BYTES_MAX: u64 = 256;
/// Alignment of tensors by default, bytes.
const ALIGNMENT: u64 = 32;

/// Type numbers of metadata values.
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// Each storage format of ggml: its number, the values of a block and the bytes of a block.
const FORMATS: [(u32, u64, u64); 35] = [
    (0, 1, 4),      // F32
    (1, 1, 2),      // F16
    (2, 32, 18),    // Q4_0
    (3, 32, 20),    // Q4_1
    (6, 32, 22),    // Q5_0
    (7, 32, 24),    // Q5_1
    (8, 32, 34),    // Q8_0
    (9, 32, 36),    // Q8_1
    (10, 256, 84),  // Q2_K
    (11, 256, 110), // Q3_K
    (12, 256, 144), // Q4_K
    (13, 256, 176), // Q5_K
    (14, 256, 210), // Q6_K
    (15, 256, 292), // Q8_K
    (16, 256, 66),  // IQ2_XXS
    (17, 256, 74),  // IQ2_XS
    (18, 256, 98),  // IQ3_XXS
    (19, 256, 50),  // IQ1_S
    (20, 32, 18),   // IQ4_NL
    (21, 256, 110), // IQ3_S
    (22, 256, 82),  // IQ2_S
    (23, 256, 136), // IQ4_XS
    (24, 1, 1),     // I8
    (25, 1, 2),     // I16
    (26, 1, 4),     // I32
    (27, 1, 8),     // I64
    (28, 1, 8),     // F64
    (29, 256, 56),  // IQ1_M
    (30, 1, 2),     // BF16
    (34, 256, 54),  // TQ1_0
    (35, 256, 66),  // TQ2_0
    (39, 32, 17),   // MXFP4
    (40, 64, 36),   // NVFP4
    (41, 128, 18),  // Q1_0
    (42, 64, 18),   // Q2_0
];

/// The metadata of a checked file that its memory is computed from.
#[derive(Debug, Default)]
pub(crate) struct GgufHead {
    numbers: BTreeMap<String, u64>,
    texts: BTreeMap<String, String>,
}

impl GgufHead {
    /// Reads and checks the head of an open file of this length; leaves the file's position behind it.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(crate) fn read(file: &File, length: u64) -> Result<GgufHead> {
        let bound = length.min(GGUF_HEAD_BYTES_MAX);
        let mut reader = HeadReader { from: BufReader::new(file), at: 0, bound };
        let mut magic = [0; 4];
        if reader.bytes(&mut magic).is_err() || &magic != b"GGUF" {
            return Err(NotGguf.into());
        }
        let version = reader.u32()?;
        ensure!(matches!(version, 2 | 3), "version {version} is not known, only 2 and 3");
        let (tensors, entries) = (reader.u64()?, reader.u64()?);
        for (count, what) in [(tensors, "tensors"), (entries, "keys")] {
            ensure!(count <= GGUF_ENTRIES_MAX, "{count} {what}, at most {GGUF_ENTRIES_MAX}");
        }
        let mut head = GgufHead::default();
        let mut keys = BTreeSet::new();
        for n in 0..entries {
            let key = reader.text(KEY_BYTES_MAX).with_context(|| format!("key {n}"))?;
            head.value(&key, &mut reader).with_context(|| format!("key {key}"))?;
            ensure!(!key.is_empty() && keys.insert(key.clone()), "key {key:?} is there twice");
        }
        let alignment = head.alignment()?;
        let mut places = Places { tensors: Vec::new(), names: BTreeSet::new() };
        for n in 0..tensors {
            places.read(&mut reader, alignment).with_context(|| format!("tensor {n}"))?;
        }
        let data = reader.at.next_multiple_of(alignment);
        places.check(data, length)?;
        head.check_model()?;
        Ok(head)
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.numbers.get(key).copied()
    }

    /// A short text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.texts.get(key).map(String::as_str)
    }

    fn value(&mut self, key: &str, reader: &mut HeadReader<'_>) -> Result<()> {
        match reader.u32()? {
            STRING => {
                let length = reader.u64()?;
                let is_template = key.starts_with("tokenizer.chat_template");
                ensure!(
                    !is_template || length <= TEMPLATE_BYTES_MAX as u64,
                    "the chat template has {length} bytes, at most {TEMPLATE_BYTES_MAX}"
                );
                if length > KEPT_BYTES_MAX {
                    return reader.skip(length);
                }
                let mut text = vec![0; usize::try_from(length)?];
                reader.bytes(&mut text)?;
                let text = String::from_utf8_lossy(&text).into_owned();
                self.texts.insert(key.to_owned(), text);
            }
            ARRAY => {
                let kind = reader.u32()?;
                let count = reader.u64()?;
                if kind == STRING {
                    // each text has at least its length
                    ensure!(count <= reader.left() / 8, "{count} texts do not fit into the file");
                    for _ in 0..count {
                        let length = reader.u64()?;
                        reader.skip(length)?;
                    }
                } else {
                    let bytes = count.checked_mul(size_of_number(kind)?);
                    reader.skip(bytes.with_context(|| format!("{count} values are too many"))?)?;
                }
            }
            kind => {
                let mut bytes = [0; 8];
                let size = size_of_number(kind)?;
                reader.bytes(&mut bytes[..usize::try_from(size)?])?;
                let number = u64::from_le_bytes(bytes);
                // 1, 3, 5, 11: signed; 6, 12: real
                let sign = 1_u64 << (8 * size - 1);
                let is_natural = !matches!(kind, 6 | 12)
                    && (!matches!(kind, 1 | 3 | 5 | 11) || number & sign == 0);
                if is_natural {
                    self.numbers.insert(key.to_owned(), number);
                }
            }
        }
        Ok(())
    }

    fn alignment(&self) -> Result<u64> {
        let alignment = self.number("general.alignment").unwrap_or(ALIGNMENT);
        ensure!(
            alignment.is_power_of_two() && alignment <= GGUF_ALIGNMENT_MAX,
            "general.alignment is {alignment}, must be a power of two up to {GGUF_ALIGNMENT_MAX}"
        );
        Ok(alignment)
    }

    /// Checks the sizes of the model that llama.cpp divides by or asserts.
    fn check_model(&self) -> Result<()> {
        if let Some(count @ 2..) = self.number("split.count") {
            bail!("it is one of {count} parts; merge them (`llama-gguf-split --merge`)");
        }
        let arch = self.text("general.architecture").unwrap_or_default();
        for (key, most) in [
            ("block_count", GGUF_LAYERS_MAX),
            ("attention.head_count", 1 << 16),
            ("attention.head_count_kv", 1 << 16),
            ("attention.key_length", 1 << 20),
            ("embedding_length", 1 << 20),
            ("context_length", u64::from(u32::MAX)),
        ] {
            let key = format!("{arch}.{key}");
            if let Some(n) = self.number(&key) {
                ensure!((1..=most).contains(&n), "{key} is {n}, must be 1 to {most}");
            }
        }
        Ok(())
    }
}

/// The places of all tensors in the data, relative to its start.
struct Places {
    /// Offset, bytes and name.
    tensors: Vec<(u64, u64, String)>,
    names: BTreeSet<String>,
}

impl Places {
    fn read(&mut self, reader: &mut HeadReader<'_>, alignment: u64) -> Result<()> {
        let name = reader.text(TENSOR_NAME_BYTES_MAX)?;
        ensure!(self.names.insert(name.clone()), "{name} is there twice");
        let dimensions = reader.u32()?;
        ensure!(dimensions <= DIMENSIONS_MAX, "{name} has {dimensions} dimensions");
        let (mut columns, mut rows) = (1_u64, 1_u64);
        for n in 0..dimensions {
            let size = reader.u64()?;
            ensure!(size > 0, "dimension {n} of {name} is 0");
            let all = if n == 0 { &mut columns } else { &mut rows };
            *all = all.checked_mul(size).with_context(|| format!("{name} is too large"))?;
        }
        let kind = reader.u32()?;
        let format = FORMATS.iter().find(|format| format.0 == kind);
        let Some((_, block, bytes)) = format else {
            bail!("{name} is stored as GGML type {kind}, which is not known");
        };
        ensure!(columns.is_multiple_of(*block), "the rows of {name} are no multiple of {block}");
        let size = (columns / block).checked_mul(*bytes).and_then(|row| row.checked_mul(rows));
        let size = size.filter(|size| i64::try_from(*size).is_ok());
        let size = size.with_context(|| format!("{name} is too large"))?;
        let offset = reader.u64()?;
        ensure!(
            offset.is_multiple_of(alignment),
            "the offset {offset} of {name} is no multiple of {alignment}"
        );
        self.tensors.push((offset, size, name));
        Ok(())
    }

    /// Checks that the tensors lie one behind the other within the file.
    fn check(mut self, data: u64, length: u64) -> Result<()> {
        self.tensors.sort();
        let mut free = 0;
        for (offset, size, name) in &self.tensors {
            ensure!(*offset >= free, "{name} overlaps another tensor");
            let end = offset.checked_add(*size).with_context(|| format!("{name} is too large"))?;
            let in_file = data.checked_add(end).filter(|end| *end <= length);
            if in_file.is_none() {
                return Err(Truncated(name.clone()).into());
            }
            free = end;
        }
        Ok(())
    }
}

/// The file is of another format.
#[derive(Debug)]
pub(super) struct NotGguf;

impl std::fmt::Display for NotGguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it is not a GGUF file")
    }
}

impl std::error::Error for NotGguf {}

/// The file ends before this tensor does.
#[derive(Debug)]
pub(super) struct Truncated(String);

impl std::fmt::Display for Truncated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the file ends before tensor {} does", self.0)
    }
}

impl std::error::Error for Truncated {}

/// Bytes of a number of this type.
fn size_of_number(kind: u32) -> Result<u64> {
    Ok(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        other => bail!("a value of type {other} is not known"),
    })
}

/// Reads the head and counts: nothing is read or allocated beyond its bound.
struct HeadReader<'f> {
    from: BufReader<&'f File>,
    at: u64,
    bound: u64,
}

impl HeadReader<'_> {
    fn left(&self) -> u64 {
        self.bound - self.at
    }

    fn take(&mut self, bytes: u64) -> Result<()> {
        ensure!(bytes <= self.left(), "{bytes} bytes go beyond the end of the head");
        self.at += bytes;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.take(bytes)?;
        self.from.seek_relative(i64::try_from(bytes)?)?;
        Ok(())
    }

    fn bytes(&mut self, into: &mut [u8]) -> Result<()> {
        self.take(into.len() as u64)?;
        Ok(self.from.read_exact(into)?)
    }

    fn text(&mut self, most: u64) -> Result<String> {
        let length = self.u64()?;
        ensure!(length <= most, "a name of {length} bytes, at most {most}");
        let mut bytes = vec![0; usize::try_from(length)?];
        self.bytes(&mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
