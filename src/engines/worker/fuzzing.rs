//! Entry point of the fuzz target `grammar`: a schema as the constraint of an answer.

use std::sync::Arc;

use super::constraint::{Factory, VocabToken, trie};
use super::grammar_vocabulary::Tokenize;
use super::watchdog::GrammarStop;
use crate::model::generate::Fault;
use crate::request::format::Format;
use crate::request::schema::Schema;

/// Compiles grammars for a vocabulary of all bytes and some words.
pub struct Grammars(Factory);

impl Grammars {
    /// Builds the factory.
    ///
    /// # Errors
    /// As when a model is loaded.
    pub fn new() -> Result<Grammars, Fault> {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let words = ["{\"", "\":", "true", "null", "\", \"", "  ", "00", "ab", "\u{e4}", "}]"];
        let texts = bytes.chain(words.map(|word| word.as_bytes().to_vec())).map(VocabToken::Text);
        let end = VocabToken::Control(b"<end>".to_vec());
        let tokens: Vec<VocabToken> = texts.chain([end]).collect();
        let end = u32::try_from(tokens.len() - 1).unwrap_or_default();
        // the first tokens are the bytes
        let tokenize: Tokenize = Arc::new(|text| text.bytes().map(u32::from).collect());
        Factory::new(trie(tokens.into_iter(), &[end]), Some(tokenize)).map(Grammars)
    }

    /// Compiles a schema, and takes one of the allowed tokens for each choice, and those without a choice. Returns the
    /// tokens.
    ///
    /// # Errors
    /// As for a prompt with this schema.
    pub fn walk(&mut self, schema: Schema, choices: &[u8]) -> Result<Vec<u32>, Fault> {
        let format = Format::Schema(schema);
        let Some(mut constraint) = self.0.constrain(&format, &GrammarStop::new(), None)? else {
            return Ok(Vec::new());
        };
        let mut tokens = constraint.take_forced()?;
        for choice in choices {
            if constraint.is_done() {
                break;
            }
            let allowed: Vec<u32> = constraint.allowed()?.iter().collect();
            let Some(token) = allowed.get(usize::from(*choice) % allowed.len().max(1)) else {
                return Err(Fault::ProtocolError("no token is allowed".to_owned()));
            };
            constraint.accept(*token)?;
            tokens.push(*token);
            tokens.extend(constraint.take_forced()?);
        }
        Ok(tokens)
    }
}
