//! Graphs of a model folder, in the folder and in one below it, with the file's own length, and as if much
//! more followed; and the configurations that name graphs.
//!
//! External data of a graph that passes the check is a file of the entry. [`walk`] reads the graph for this
//! property: an independent reader, with tags of 32 bits as in protobuf's C++ library, which ONNX Runtime uses.
#![no_main]

use std::fs::File;
use std::io::Write;

use nix::sys::memfd::{MFdFlags, memfd_create};
use pilotlight::models::fuzzing::check;
use pilotlight_fuzz::{shown, target};

/// The files of each entry.
const GRAPH_NAME: &str = "model.onnx";
const DATA: &str = "w.data";
const DATA_BYTES: u64 = 64;
/// Messages of `onnx.proto`, by the numbers below: the fields whose messages can hold a tensor, and the
/// messages in them.
const FIELDS: [&[(u32, usize)]; 9] = [
    &[(7, GRAPH), (20, TRAINING), (25, FUNCTION)],
    &[(1, GRAPH), (2, GRAPH)],
    &[(7, NODE), (11, ATTRIBUTE)],
    &[(1, NODE), (5, TENSOR), (15, SPARSE)],
    &[(5, ATTRIBUTE)],
    &[(5, TENSOR), (10, TENSOR), (6, GRAPH), (11, GRAPH), (22, SPARSE), (23, SPARSE)],
    &[(1, TENSOR), (2, TENSOR)],
    &[(13, ENTRY)],
    &[],
];
const MODEL: usize = 0;
const TRAINING: usize = 1;
const FUNCTION: usize = 2;
const GRAPH: usize = 3;
const NODE: usize = 4;
const ATTRIBUTE: usize = 5;
const SPARSE: usize = 6;
const TENSOR: usize = 7;
const ENTRY: usize = 8;

target!(|bytes| {
    let mut file = File::from(memfd_create("onnx", MFdFlags::MFD_CLOEXEC).expect("a file"));
    file.write_all(bytes).expect("a file");
    let length = bytes.len() as u64;
    for folder in ["", "onnx/"] {
        let data = format!("{folder}{DATA}");
        for name in [GRAPH_NAME, "config.json"] {
            let name = format!("{folder}{name}");
            let files = |length| [(name.as_str(), length), (data.as_str(), DATA_BYTES)];
            match check(&file, &files(length)) {
                Ok(()) if name.ends_with(GRAPH_NAME) => inspect(bytes),
                Ok(()) => {}
                Err(message) => shown(&message),
            }
            if let Err(message) = check(&file, &files(length + (1 << 32))) {
                shown(&message);
            }
        }
    }
});

/// Checks the external data that a loader finds in an accepted graph.
fn inspect(bytes: &[u8]) {
    let mut tensors = Vec::new();
    // a loader refuses a graph with a wrong encoding
    let Some(()) = walk(MODEL, bytes, &mut tensors) else { return };
    for entries in tensors {
        let last = |key: &[u8]| entries.iter().rev().find(|entry| entry.0 == key).map(|e| e.1);
        for (_, location) in entries.iter().filter(|entry| entry.0 == b"location") {
            let path = location.strip_prefix(b"./").unwrap_or(location);
            let is_known = [b"", GRAPH_NAME.as_bytes(), DATA.as_bytes()].contains(&path);
            assert!(is_known, "external data at {}", location.escape_ascii());
        }
        for number in [last(b"offset"), last(b"length")].into_iter().flatten() {
            let number = str::from_utf8(number).ok().and_then(|text| text.parse::<u64>().ok());
            let most = DATA_BYTES.max(bytes.len() as u64);
            assert!(number.is_some_and(|number| number <= most), "external data at {number:?}");
        }
    }
}

/// Key and value of an entry.
type Entry<'b> = (&'b [u8], &'b [u8]);

/// Collects the external data of each tensor; none if the encoding is wrong.
fn walk<'b>(kind: usize, mut bytes: &'b [u8], tensors: &mut Vec<Vec<Entry<'b>>>) -> Option<()> {
    let mut entry: Entry = (b"", b"");
    if kind == TENSOR {
        tensors.push(Vec::new());
    }
    while !bytes.is_empty() {
        // a tag has 32 bits, whatever more its bytes have
        let tag = varint(&mut bytes)? as u32;
        let (number, wire) = (tag >> 3, tag & 7);
        let length = match wire {
            0 => varint(&mut bytes).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let inner = bytes.split_off(..length)?;
        match (kind, number, wire) {
            (_, 0, _) => return None,
            (ENTRY, 1, 2) => entry.0 = inner,
            (ENTRY, 2, 2) => entry.1 = inner,
            (_, _, 2) => {
                if let Some((_, kind)) = FIELDS[kind].iter().find(|field| field.0 == number) {
                    walk(*kind, inner, tensors)?;
                }
            }
            _ => {}
        }
    }
    if kind == ENTRY {
        tensors.last_mut()?.push(entry);
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
