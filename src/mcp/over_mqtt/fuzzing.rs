//! What the fuzz target `parts` calls: texts in several messages.

use bytes::Bytes;

use super::parts::{Numbers, Parts};
use super::{MORE, SEQ};

/// The text of an answer in messages of at most `most` bytes, as they are sent, and what is read of them
/// if each comes twice.
///
/// # Errors
/// As for an answer.
pub fn there_and_back(text: &Bytes, most: usize) -> Result<Option<Bytes>, String> {
    let mut parts = Parts::default();
    let mut whole = None;
    for (payload, properties) in Numbers::default().split(text.clone(), most) {
        let read = parts.take(&payload, &properties)?;
        whole = whole.or(read);
        if parts.take(&payload, &properties)?.is_some() {
            return Err("a repeated message counts twice".to_owned());
        }
    }
    Ok(whole)
}

/// A message of a stranger.
#[derive(Debug, Clone)]
pub struct PartMessage {
    /// Its number, as it is stated.
    pub seq: String,
    /// Whether more of the text follows.
    pub has_more: bool,
    /// Its part of the text.
    pub payload: Bytes,
}

/// The texts that are read of these messages.
///
/// # Errors
/// As for an answer.
pub fn joined(messages: Vec<PartMessage>) -> Result<Vec<Bytes>, String> {
    let mut parts = Parts::default();
    let mut whole = Vec::new();
    for PartMessage { seq, has_more, payload } in messages {
        let mut properties = vec![(SEQ.to_owned(), seq)];
        if has_more {
            properties.push((MORE.to_owned(), "1".to_owned()));
        }
        whole.extend(parts.take(&payload, &properties)?);
    }
    Ok(whole)
}
