//! The file of a saved prefix: its tokens, and the keys and values that llama.cpp has computed for them.
//!
//! A format of our own, all numbers in little-endian order: `PLPREFIX`, the version (4 bytes), the length of the
//! head (4 bytes), the head as JSON, the state, and the SHA-256 of all before. llama.cpp reads a state without
//! checks that could be relied on, so it gets only one whose digest is right.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::engine::{PREFIX_FOLDER_BYTES_MAX, PREFIX_HEAD_BYTES_MAX};
use crate::store::files;

const MAGIC: &[u8; 8] = b"PLPREFIX";
const VERSION: u32 = 1;
/// Bytes before the head.
const START_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;

/// What a saved prefix is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrefixHead {
    /// The weights, the engine and the code that have computed it. Another engine does not use it.
    pub(super) engine: String,
    /// Whose prompts begin with it; see [`PrefixScope`](crate::engines::worker::PrefixScope).
    pub(super) group: String,
    pub(super) tokens: Vec<u32>,
}

/// The bytes of a file.
///
/// # Errors
/// If the head is too long.
pub(super) fn encode(head: &PrefixHead, state: &[u8]) -> io::Result<Vec<u8>> {
    let head = serde_json::to_vec(head)?;
    let length = u32::try_from(head.len()).ok().filter(|length| *length <= PREFIX_HEAD_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("too many tokens"))?;
    let mut bytes = Vec::with_capacity(START_BYTES + head.len() + state.len() + DIGEST_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(state);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    Ok(bytes)
}

/// The head of a file. It is not checked against the digest, so it says only what [`read`] is to be asked for.
///
/// # Errors
/// If the file can't be read, or is none.
pub(super) fn read_head(path: &Path) -> io::Result<PrefixHead> {
    let mut file = File::open(path)?;
    let mut start = [0; START_BYTES];
    file.read_exact(&mut start)?;
    let mut head = vec![0; head_bytes(&start)?];
    file.read_exact(&mut head)?;
    files::parse(&head)
}

/// The state of a file with this head.
///
/// # Errors
/// If the file can't be read, is damaged, or has another head.
pub(super) fn read(path: &Path, expected: &PrefixHead) -> io::Result<Vec<u8>> {
    let mut bytes = files::read(path, PREFIX_FOLDER_BYTES_MAX)?;
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
    let content = bytes.len().checked_sub(DIGEST_BYTES).ok_or_else(damaged)?;
    if Sha256::digest(&bytes[..content]).as_slice() != &bytes[content..] {
        return Err(damaged());
    }
    let start = bytes.first_chunk().ok_or_else(damaged)?;
    let state = START_BYTES + head_bytes(start)?;
    let head = bytes.get(START_BYTES..state).filter(|_| state <= content).ok_or_else(damaged)?;
    if files::parse::<PrefixHead>(head)? != *expected {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is another prefix"));
    }
    bytes.truncate(content);
    bytes.drain(..state);
    Ok(bytes)
}

/// The length of the head.
fn head_bytes(start: &[u8; START_BYTES]) -> io::Result<usize> {
    let wrong = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| start[at + n]));
    if !start.starts_with(MAGIC) || number(8) != VERSION {
        return Err(wrong("it is no saved prefix of this version"));
    }
    let length = Some(number(12)).filter(|length| *length <= PREFIX_HEAD_BYTES_MAX);
    length.map(|length| length as usize).ok_or_else(|| wrong("its head is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> PrefixHead {
        PrefixHead { engine: "e".to_owned(), group: "app".to_owned(), tokens: vec![1, 70_000] }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        for state in [&b""[..], b"state"] {
            std::fs::write(&path, encode(&head(), state).unwrap()).unwrap();
            assert_eq!(read_head(&path).unwrap(), head());
            assert_eq!(read(&path, &head()).unwrap(), state);
        }
        let other = PrefixHead { tokens: vec![1, 2], ..head() };
        assert_eq!(read(&path, &other).unwrap_err().to_string(), "it is another prefix");
        let long = PrefixHead { tokens: vec![70_000; 60_000], ..head() };
        assert_eq!(encode(&long, b"").unwrap_err().to_string(), "too many tokens");
    }

    /// One byte that differs, and one that is missing or too many.
    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        let whole = encode(&head(), b"state").unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            read(&path, &head()).unwrap_err();
            std::fs::write(&path, &whole[..at]).unwrap();
            read(&path, &head()).unwrap_err();
        }
        std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        read(&path, &head()).unwrap_err();
        let mut huge = whole;
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        std::fs::write(&path, huge).unwrap();
        assert_eq!(read_head(&path).unwrap_err().to_string(), "its head is too long");
    }
}
