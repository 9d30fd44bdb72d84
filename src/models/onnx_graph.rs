//! External data of an ONNX graph, found without loading it: the file is read as a stream of protobuf
//! fields, of which those are entered that can hold a tensor.
//!
//! Source: `onnx.proto` of the ONNX project, IR version 3 to 13, and the protobuf encoding.

use std::fs::File;
use std::io::{self, BufReader, Read};

use crate::limits::models::{MODEL_SHOWN_BYTES_MAX, ONNX_DEPTH_MAX, ONNX_FIELDS_MAX};
use crate::request::refusal::one_line;

/// Longest location of external data, in bytes.
const LOCATION_BYTES_MAX: u64 = 4096;

/// Data of a tensor in another file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ExternalData {
    pub(super) location: String,
    pub(super) offset: u64,
    /// The length; none means up to the end of the file.
    pub(super) length: Option<u64>,
}

/// The messages of a model that can hold a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnnxMessage {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
    Entry,
}

impl OnnxMessage {
    /// The message in a field, if it can hold a tensor.
    fn field(self, number: u64) -> Option<OnnxMessage> {
        Some(match (self, number) {
            (OnnxMessage::Model, 7)
            | (OnnxMessage::Training, 1 | 2)
            | (OnnxMessage::Attribute, 6 | 11) => OnnxMessage::Graph,
            (OnnxMessage::Model, 20) => OnnxMessage::Training,
            (OnnxMessage::Model, 25) => OnnxMessage::Function,
            (OnnxMessage::Function, 7) | (OnnxMessage::Graph, 1) => OnnxMessage::Node,
            (OnnxMessage::Function, 11) | (OnnxMessage::Node, 5) => OnnxMessage::Attribute,
            (OnnxMessage::Graph, 5)
            | (OnnxMessage::Attribute, 5 | 10)
            | (OnnxMessage::Sparse, 1 | 2) => OnnxMessage::Tensor,
            (OnnxMessage::Graph, 15) | (OnnxMessage::Attribute, 22 | 23) => OnnxMessage::Sparse,
            (OnnxMessage::Tensor, 13) => OnnxMessage::Entry,
            _ => return None,
        })
    }
}

/// Reads a model of this length and passes on the external data of each tensor; returns the number of its
/// graphs.
///
/// # Errors
/// What is wrong with the encoding, or what `each` returns.
pub(super) fn read(
    file: &File,
    bytes: u64,
    each: &mut dyn FnMut(&ExternalData) -> Result<(), String>,
) -> Result<u64, String> {
    let mut reader = GraphReader { from: BufReader::new(file), at: 0, fields: 0, graphs: 0, each };
    reader.message(OnnxMessage::Model, bytes, 0)?;
    Ok(reader.graphs)
}

struct GraphReader<'g> {
    from: BufReader<&'g File>,
    at: u64,
    fields: u64,
    graphs: u64,
    each: &'g mut dyn FnMut(&ExternalData) -> Result<(), String>,
}

impl GraphReader<'_> {
    /// Reads the message that ends at this position.
    fn message(&mut self, kind: OnnxMessage, end: u64, depth: u32) -> Result<(), String> {
        if depth > ONNX_DEPTH_MAX {
            return Err(format!("its messages are nested deeper than {ONNX_DEPTH_MAX}"));
        }
        self.graphs += u64::from(kind == OnnxMessage::Graph);
        let (mut data, mut is_external) = (ExternalData::default(), false);
        // bounded by the length of the message and by the number of fields
        while self.at < end {
            let (number, wire) = self.tag(end)?;
            match wire {
                0 => {
                    let value = self.varint(end)?;
                    is_external |= kind == OnnxMessage::Tensor && number == 14 && value == 1;
                }
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let length = self.varint(end)?;
                    let inner = self.at.checked_add(length).filter(|inner| *inner <= end);
                    let inner = inner.ok_or_else(|| self.beyond())?;
                    match kind.field(number) {
                        Some(OnnxMessage::Entry) => {
                            is_external = true;
                            self.entry(&mut data, inner)?;
                        }
                        Some(kind) => self.message(kind, inner, depth + 1)?,
                        None => self.skip(length, end)?,
                    }
                }
                _ => return Err(format!("wire type {wire} at byte {}", self.at)),
            }
        }
        if is_external { (self.each)(&data) } else { Ok(()) }
    }

    /// Reads one key and its value.
    fn entry(&mut self, data: &mut ExternalData, end: u64) -> Result<(), String> {
        let (mut key, mut value) = (String::new(), String::new());
        // bounded by the length of the message and by the number of fields
        while self.at < end {
            let tag = self.tag(end)?;
            let length = self.varint(end)?;
            let text = match tag {
                (1, 2) => &mut key,
                (2, 2) => &mut value,
                _ => return Err(format!("an unknown part of external data at byte {}", self.at)),
            };
            *text = self.text(length, end)?;
        }
        let number = || {
            let shown = || one_line(&value, MODEL_SHOWN_BYTES_MAX);
            value.parse().map_err(|_| format!("{key} of external data is {:?}", shown()))
        };
        match key.as_str() {
            "location" if data.location.is_empty() => data.location = value,
            "location" => return Err("external data with two locations".to_owned()),
            "offset" => data.offset = number()?,
            "length" => data.length = Some(number()?),
            // of no effect on what is read, such as `checksum`
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, length: u64, end: u64) -> Result<String, String> {
        let is_within = self.at.checked_add(length).is_some_and(|inner| inner <= end);
        if !is_within || length > LOCATION_BYTES_MAX {
            return Err(self.beyond());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|e| e.to_string())?];
        self.from.read_exact(&mut bytes).map_err(|e| unreadable(&e))?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| "the text of external data is not UTF-8".to_owned())
    }

    /// Reads the number and the wire type of a field.
    fn tag(&mut self, end: u64) -> Result<(u64, u64), String> {
        self.fields += 1;
        if self.fields > ONNX_FIELDS_MAX {
            return Err(format!("it has more than {ONNX_FIELDS_MAX} fields"));
        }
        let tag = self.varint(end)?;
        // of a longer tag protobuf's C++ library reads 32 bits: it would find a field that is skipped here
        if !(1 << 3..1 << 32).contains(&tag) {
            return Err(format!("a field of the invalid number {} at byte {}", tag >> 3, self.at));
        }
        Ok((tag >> 3, tag & 7))
    }

    fn varint(&mut self, end: u64) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                return Err(self.beyond());
            }
            let mut byte = [0];
            self.from.read_exact(&mut byte).map_err(|e| unreadable(&e))?;
            self.at += 1;
            let [byte] = byte;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("a number of more than 64 bits at byte {}", self.at))
    }

    fn skip(&mut self, bytes: u64, end: u64) -> Result<(), String> {
        let next = self.at.checked_add(bytes).filter(|next| *next <= end);
        let next = next.ok_or_else(|| self.beyond())?;
        let far = i64::try_from(bytes).map_err(|e| e.to_string())?;
        self.from.seek_relative(far).map_err(|e| unreadable(&e))?;
        self.at = next;
        Ok(())
    }

    fn beyond(&self) -> String {
        format!("a field at byte {} goes beyond the end of its message", self.at)
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("it cannot be read: {error}")
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = varint(u64::from(number) << 3 | 2);
        bytes.extend(varint(content.len() as u64));
        bytes.extend(content);
        bytes
    }

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        bytes.push(u8::try_from(value).unwrap());
        bytes
    }

    fn entry(key: &str, value: &str) -> Vec<u8> {
        field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    }

    fn tensor(location: &str) -> Vec<u8> {
        // name, raw data, a data type and the location EXTERNAL
        [
            field(8, b"w"),
            field(9, &[0; 300]),
            vec![0x10, 1],
            entry("location", location),
            entry("offset", "4096"),
            entry("length", "8"),
            vec![0x70, 1],
        ]
        .concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<(u64, Vec<ExternalData>), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let mut found = Vec::new();
        let graphs = read(&file, bytes.len() as u64, &mut |data| {
            let ExternalData { location, offset, length } = data;
            let location = location.clone();
            found.push(ExternalData { location, offset: *offset, length: *length });
            Ok(())
        })?;
        Ok((graphs, found))
    }

    #[test]
    fn external_data_is_found_wherever_a_tensor_can_be() {
        let sparse = |content: &[u8]| field(1, content);
        let tensors: [(&str, Vec<u8>); 10] = [
            ("initializer", field(7, &field(5, &tensor("x")))),
            ("sparse initializer", field(7, &field(15, &sparse(&tensor("x"))))),
            ("attribute", field(7, &field(1, &field(5, &field(5, &tensor("x")))))),
            ("attributes", field(7, &field(1, &field(5, &field(10, &tensor("x")))))),
            ("subgraph", field(7, &field(1, &field(5, &field(6, &field(5, &tensor("x"))))))),
            ("subgraphs", field(7, &field(1, &field(5, &field(11, &field(5, &tensor("x"))))))),
            ("sparse attribute", field(7, &field(1, &field(5, &field(22, &sparse(&tensor("x"))))))),
            ("function", field(25, &field(7, &field(5, &field(5, &tensor("x")))))),
            ("default of a function", field(25, &field(11, &field(5, &tensor("x"))))),
            ("training", field(20, &field(1, &field(5, &tensor("x"))))),
        ];
        for (what, bytes) in tensors {
            let (_, found) = read_bytes(&bytes).unwrap();
            let expected = ExternalData { location: "x".to_owned(), offset: 4096, length: Some(8) };
            assert_eq!(found, [expected], "{what}");
        }
    }

    #[test]
    fn damaged_encodings_are_refused() {
        let mut deep = Vec::new();
        for _ in 0..30 {
            deep = field(1, &field(5, &field(6, &deep)));
        }
        for (what, bytes) in [
            ("longer than the file", vec![0x3a, 0x7f]),
            ("longer than its message", field(7, &[0x2a, 0x7f])),
            ("a length of 2^64-1", [vec![0x3a], varint(u64::MAX)].concat()),
            ("a number of 80 bits", vec![0x80; 12]),
            ("a number that ends early", vec![0x80]),
            ("a group", vec![0x0b]),
            ("field 0", vec![0, 0]),
            // field 7 for a reader of 32 bits
            ("a tag of 33 bits", [varint(0x3a | 1 << 32), vec![0]].concat()),
            ("deep", field(7, &deep)),
            ("two locations", field(7, &field(5, &[entry("location", "a"), tensor("b")].concat()))),
            ("an offset that is no number", field(7, &field(5, &entry("offset", "-1")))),
            ("no text", field(7, &field(5, &field(13, &field(2, &[0xff]))))),
        ] {
            assert!(read_bytes(&bytes).is_err(), "{what}");
        }
        // no flipped bit and no end makes it read beyond the file, or overflow
        let good = field(7, &field(5, &tensor("x")));
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = read_bytes(&flipped);
        }
        for end in 1..good.len() {
            assert!(read_bytes(&good[..end]).is_err(), "{end}");
        }
        assert_eq!(read_bytes(&[]), Ok((0, Vec::new())));
        // the parts of an entry are fields too
        let mut file = tempfile::tempfile().unwrap();
        let parts = [0x0a, 0].repeat(10);
        file.write_all(&parts).unwrap();
        for (left, is_read) in [(10, true), (9, false)] {
            file.rewind().unwrap();
            let (from, fields) = (BufReader::new(&file), ONNX_FIELDS_MAX - left);
            let mut reader = GraphReader { from, at: 0, fields, graphs: 0, each: &mut |_| Ok(()) };
            let read = reader.entry(&mut ExternalData::default(), parts.len() as u64);
            assert_eq!(read.is_ok(), is_read, "{read:?}");
        }
        // external without a location
        let (_, found) = read_bytes(&field(7, &field(5, &[0x70, 1]))).unwrap();
        assert_eq!(found, [ExternalData::default()]);
    }
}
