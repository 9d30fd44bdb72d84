//! Reads a GGUF file: metadata and tensors.
//!
//! Source: the GGUF specification in the ggml project, versions 2 and 3.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Most metadata entries, and most tensors, of a header.
const ENTRIES_MAX: u64 = 65_536;
const DIMENSIONS_MAX: u32 = 4;
/// Longest text, bytes, and longest list, values.
const TEXT_BYTES_MAX: u64 = 1 << 20;
const LIST_MAX: u64 = 1 << 21;
/// Alignment of tensors by default, bytes.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Real(f64),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f64>),
}

/// Storage format of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TensorKind {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q8_0,
}

impl TensorKind {
    /// Each format's number and name, and the numbers and bytes of a block.
    const ALL: [(u32, TensorKind, usize, usize); 5] = [
        (0, TensorKind::F32, 1, 4),
        (1, TensorKind::F16, 1, 2),
        (2, TensorKind::Q4_0, 32, 18),
        (3, TensorKind::Q4_1, 32, 20),
        (8, TensorKind::Q8_0, 32, 34),
    ];

    fn sizes(self) -> (usize, usize) {
        let row = TensorKind::ALL.iter().find(|row| row.1 == self);
        row.map_or((1, 4), |row| (row.2, row.3))
    }
}

/// Location of a tensor; `rows` × `columns`, each row contiguous.
#[derive(Debug, Clone)]
struct TensorLocation {
    kind: u32,
    rows: usize,
    columns: usize,
    offset: u64,
}

/// A tensor in its storage format.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) kind: TensorKind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bytes: Vec<u8>,
}

impl Stored {
    /// The bytes of row `n`.
    pub(super) fn row(&self, n: usize) -> &[u8] {
        let length = self.row_bytes();
        &self.bytes[n * length..(n + 1) * length]
    }

    fn row_bytes(&self) -> usize {
        let (block, bytes) = self.kind.sizes();
        self.columns / block * bytes
    }
}

/// An open GGUF file.
pub(super) struct Gguf {
    file: File,
    head: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorLocation>,
    data: u64,
    length: u64,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Gguf> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("{shown} cannot be read"))?;
        let length = file.metadata()?.len();
        let mut reader = GgufReader(BufReader::new(&file));
        let (head, tensors) =
            reader.head().with_context(|| format!("the GGUF header of {shown} is damaged"))?;
        let at = reader.0.stream_position()?;
        let alignment = match head.get("general.alignment") {
            Some(Value::Whole(n)) if *n > 0 && *n <= 4096 => *n,
            _ => ALIGNMENT,
        };
        Ok(Gguf { head, tensors, data: at.next_multiple_of(alignment), length, file })
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.head.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        if let Value::Text(text) = self.head.get(key)? { Some(text) } else { None }
    }

    pub(super) fn texts(&self, key: &str) -> Result<&[String]> {
        match self.head.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            _ => bail!("the file has no key {key}"),
        }
    }

    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.head.get(key)? {
            #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
            Value::Whole(n) => Some(*n as f64),
            Value::Real(x) => Some(*x),
            Value::Text(_) | Value::Texts(_) | Value::Numbers(_) => None,
        }
    }

    /// A required size, 1 to 2^24.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        match self.head.get(key) {
            Some(Value::Whole(n)) if *n > 0 && *n <= 1 << 24 => Ok(usize::try_from(*n)?),
            _ => bail!("the file has no key {key}"),
        }
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// If the tensor is missing, truncated, or of an unsupported format.
    pub(super) fn tensor(&self, name: &str) -> Result<Stored> {
        let place =
            self.tensors.get(name).with_context(|| format!("the model has no tensor {name}"))?;
        let Some(&(_, kind, block, block_bytes)) =
            TensorKind::ALL.iter().find(|row| row.0 == place.kind)
        else {
            bail!(
                "tensor {name} is stored as GGML type {}; supported are F32, F16, Q4_0, Q4_1 and \
                 Q8_0 (`pilotlight model quantize` makes Q8_0 of the others)",
                place.kind
            );
        };
        ensure!(
            place.columns.is_multiple_of(block),
            "the rows of tensor {name} are not a multiple of the block size"
        );
        let bytes = place.rows.checked_mul(place.columns / block * block_bytes);
        let bytes = bytes.with_context(|| format!("tensor {name} is too large"))?;
        let from = self.data.saturating_add(place.offset);
        let end = from.saturating_add(bytes as u64);
        ensure!(end <= self.length, "the file ends before tensor {name} does");
        let mut stored =
            Stored { kind, rows: place.rows, columns: place.columns, bytes: vec![0; bytes] };
        self.file.read_exact_at(&mut stored.bytes, from)?;
        Ok(stored)
    }
}

struct GgufReader<'f>(BufReader<&'f File>);

impl GgufReader<'_> {
    fn head(&mut self) -> Result<(BTreeMap<String, Value>, BTreeMap<String, TensorLocation>)> {
        ensure!(&self.bytes::<4>()? == b"GGUF", "it is not a GGUF file");
        let version = self.u32()?;
        ensure!(matches!(version, 2 | 3), "version {version} is not known, only 2 and 3");
        let (tensors, entries) = (self.u64()?, self.u64()?);
        ensure!(
            tensors <= ENTRIES_MAX && entries <= ENTRIES_MAX,
            "the header has too many tensors or keys"
        );
        let mut head = BTreeMap::new();
        for _ in 0..entries {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).with_context(|| format!("in {key}"))?;
            head.insert(key, value);
        }
        let mut places = BTreeMap::new();
        for _ in 0..tensors {
            let name = self.text()?;
            let dimensions = self.u32()?;
            ensure!(dimensions <= DIMENSIONS_MAX, "{name} has {dimensions} dimensions");
            let mut sizes = [1_u64; DIMENSIONS_MAX as usize];
            for size in sizes.iter_mut().take(dimensions as usize) {
                *size = self.u64()?;
            }
            let rows = sizes[1..].iter().try_fold(1_u64, |all, n| all.checked_mul(*n));
            let rows = rows.with_context(|| format!("{name} is too large"))?;
            let place = TensorLocation {
                columns: usize::try_from(sizes[0])?,
                rows: usize::try_from(rows)?,
                kind: self.u32()?,
                offset: self.u64()?,
            };
            places.insert(name, place);
        }
        Ok((head, places))
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            8 => Value::Text(self.text()?),
            9 => {
                let kind = self.u32()?;
                let count = self.u64()?;
                ensure!(count <= LIST_MAX, "a list of {count} is too long");
                if kind == 8 {
                    Value::Texts((0..count).map(|_| self.text()).collect::<Result<_>>()?)
                } else {
                    Value::Numbers((0..count).map(|_| self.number(kind)).collect::<Result<_>>()?)
                }
            }
            4 => Value::Whole(self.u32()?.into()),
            10 => Value::Whole(self.u64()?),
            _ => Value::Real(self.number(kind)?),
        })
    }

    fn number(&mut self, kind: u32) -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "such numbers are never that large")]
        Ok(match kind {
            0 | 7 => f64::from(self.bytes::<1>()?[0]),
            1 => f64::from(i8::from_le_bytes(self.bytes()?)),
            2 => f64::from(u16::from_le_bytes(self.bytes()?)),
            3 => f64::from(i16::from_le_bytes(self.bytes()?)),
            4 => f64::from(self.u32()?),
            5 => f64::from(i32::from_le_bytes(self.bytes()?)),
            6 => f64::from(f32::from_le_bytes(self.bytes()?)),
            10 => self.u64()? as f64,
            11 => i64::from_le_bytes(self.bytes()?) as f64,
            12 => f64::from_le_bytes(self.bytes()?),
            other => bail!("a value of type {other} is not known"),
        })
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        ensure!(length <= TEXT_BYTES_MAX, "a text of {length} bytes is too long");
        let mut bytes = vec![0; usize::try_from(length)?];
        self.0.read_exact(&mut bytes)?;
        Ok(String::from_utf8(bytes)?)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
