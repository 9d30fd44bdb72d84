//! Tokenizer of a folder: conversations to tokens, tokens to bytes.

use std::collections::BTreeSet;
use std::path::Path;

use tokenizers::{ModelWrapper, Tokenizer};
use toktrie::TokTrie;

use crate::engines::template::{ChatTemplate, parts};
use crate::engines::worker::constraint::{VocabToken, trie};
use crate::model::generate::Fault;
use crate::request::job::Message;
use crate::request::refusal::{Code, Refusal};

/// A tokenizer with its special tokens.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    /// Number of tokens; the graph may have logits for more.
    size: u32,
    special: BTreeSet<u32>,
    bytes: ByteEncoding,
    bos: Option<u32>,
    /// End-of-generation tokens, the most common one first.
    ends: Vec<u32>,
}

/// Encoding of bytes in the texts of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteEncoding {
    /// Byte-level BPE: each byte is a printable character, as in GPT-2.
    Level,
    /// Byte fallback: blanks are `▁`, other bytes `<0x0A>`, as in `SentencePiece`.
    Fallback,
}

impl Vocabulary {
    /// Reads `tokenizer.json`. `bos` is prepended to each prompt if it is given. `ends` are the
    /// end-of-generation tokens; without any it is `eos`.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the file can't be read or the tokenizer is not supported.
    pub(super) fn read(
        path: &Path,
        bos: Option<&str>,
        ends: &[u32],
        eos: Option<&str>,
    ) -> Result<Vocabulary, Fault> {
        let shown = path.display();
        let mut tokenizer = Tokenizer::from_file(path).map_err(|e| {
            Fault::unavailable(format!("the tokenizer {shown} cannot be read: {e}"))
        })?;
        tokenizer.with_truncation(None).map_err(|e| Fault::unavailable(format!("{shown}: {e}")))?;
        tokenizer.with_padding(None);
        let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
        let bytes = if decoder.contains("\"ByteLevel\"") {
            ByteEncoding::Level
        } else if decoder.contains("\"ByteFallback\"") {
            ByteEncoding::Fallback
        } else {
            return Err(Fault::unavailable(format!(
                "the tokenizer {shown} is not supported, only byte-level BPE and byte fallback are"
            )));
        };
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let own = u32::try_from(tokenizer.get_vocab_size(false)).unwrap_or(u32::MAX);
        let size = added.keys().map(|last| last + 1).fold(own, u32::max);
        let bos = bos.and_then(|bos| tokenizer.token_to_id(bos));
        let ends = if ends.is_empty() {
            eos.and_then(|eos| tokenizer.token_to_id(eos)).into_iter().collect()
        } else {
            ends.to_vec()
        };
        Ok(Vocabulary { tokenizer, size, special, bytes, bos, ends })
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Name of the tokenizer's model.
    pub(super) fn kind(&self) -> String {
        let kind = match self.tokenizer.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => "Unigram",
        };
        kind.to_owned()
    }

    /// Whether this is an end-of-generation token.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// The tokens of a conversation: control tokens are recognized only in text that the template
    /// wrote.
    pub(super) fn conversation(
        &mut self,
        template: Option<&ChatTemplate>,
        messages: &[Message],
    ) -> Result<Vec<u32>, Refusal> {
        let mut tokens = Vec::new();
        for part in parts(template, messages)? {
            let (text, control) = part.text();
            tokens.extend(self.encode(text, control)?);
        }
        Ok(self.begin(tokens))
    }

    /// Prepends the beginning-of-text token if there is one and it is missing.
    pub(super) fn begin(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.bos
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        tokens
    }

    /// The tokens of a text; with `control`, control tokens are recognized.
    pub(super) fn encode(&mut self, text: &str, control: bool) -> Result<Vec<u32>, Refusal> {
        self.tokenizer.set_encode_special_tokens(!control);
        let encoded = self.tokenizer.encode_fast(text, false);
        let encoded = encoded.map_err(|e| {
            Refusal::field(Code::Invalid, "prompt", format!("the text cannot be tokenized: {e}"))
        })?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The bytes that a token adds to an answer; none for a control token.
    pub(super) fn token_bytes(&self, token: u32) -> Vec<u8> {
        if self.special.contains(&token) {
            return Vec::new();
        }
        let text = self.tokenizer.id_to_token(token).unwrap_or_default();
        match self.bytes {
            ByteEncoding::Level => byte_level(&text),
            ByteEncoding::Fallback => byte_fallback(&text),
        }
    }

    /// The vocabulary as a trie of bytes.
    pub(super) fn trie(&self) -> TokTrie {
        let tokens = (0..self.size).map(|token| {
            let bytes = self.token_bytes(token);
            if bytes.is_empty() {
                VocabToken::Control(
                    self.tokenizer.id_to_token(token).unwrap_or_default().into_bytes(),
                )
            } else {
                VocabToken::Text(bytes)
            }
        });
        trie(tokens, &self.ends)
    }
}

/// Decodes byte-level BPE: a byte that can't be printed is a character from U+0100 on.
fn byte_level(text: &str) -> Vec<u8> {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let moved: Vec<u8> = (0..=255_u8).filter(|&b| !printable(b)).collect();
    let mut bytes = Vec::with_capacity(text.len());
    for letter in text.chars() {
        let code = u32::from(letter);
        let plain = u8::try_from(code).ok().filter(|&b| printable(b));
        let up = || moved.get(usize::try_from(code.checked_sub(256)?).ok()?).copied();
        match plain.or_else(up) {
            Some(byte) => bytes.push(byte),
            // an added token is plain text
            None => bytes.extend(letter.to_string().bytes()),
        }
    }
    bytes
}

/// Decodes byte fallback.
fn byte_fallback(text: &str) -> Vec<u8> {
    let code = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
        Some(byte) => vec![byte],
        None => text.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_encodings_are_decoded() {
        assert_eq!(byte_level("Ġhello"), b" hello");
        assert_eq!(byte_level("Ċ"), b"\n");
        assert_eq!(byte_level("Ã©"), "é".as_bytes());
        assert_eq!(byte_level("ł"), [0xA0]);
        assert_eq!(byte_fallback("<0x0A>"), b"\n");
        assert_eq!(byte_fallback("▁hello"), b" hello");
    }
}
