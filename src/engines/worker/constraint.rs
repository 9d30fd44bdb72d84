//! Constrained decoding: a grammar from JSON or a JSON Schema masks the tokens that may come next.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokRxInfo, TokTrie};

use crate::model::generate::Fault;
use crate::request::format::Format;
use crate::request::refusal::{Code, Refusal};

/// Compiles grammars for one vocabulary; building the factory takes about 100 ms.
pub(super) struct Factory(ParserFactory);

/// The grammar of one answer, with its state.
pub(super) struct Constraint(Matcher);

impl Factory {
    pub(super) fn new(trie: TokTrie) -> Result<Factory, Fault> {
        let environment = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&(environment as _)).map_err(|e| {
            Fault::ProtocolError(format!("the vocabulary cannot be constrained: {e}"))
        })?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Factory(factory))
    }

    /// Compiles the grammar of a format; `None` for text.
    ///
    /// # Errors
    /// [`Fault::Rejected`] if the schema can't be satisfied or is not supported.
    pub(super) fn constrain(&self, format: &Format) -> Result<Option<Constraint>, Fault> {
        let schema = match format {
            Format::Text | Format::Label(_) | Format::Embedding => return Ok(None),
            Format::Json => json!({"type": "object"}),
            Format::Schema(schema) => (**schema).clone(),
        };
        let grammar = TopLevelGrammar::from_json_schema(compact(schema));
        let matcher = Matcher::new(self.0.create_parser(grammar));
        match matcher.get_error() {
            None => Ok(Some(Constraint(matcher))),
            Some(error) => {
                let message =
                    format!("this schema cannot be used as a constraint: {}", first_line(&error));
                Err(Fault::Rejected(Refusal::field(Code::Invalid, "schema", message)))
            }
        }
    }
}

impl Constraint {
    /// The mask of the tokens that may come next; it contains the end-of-generation tokens when the
    /// answer may end.
    pub(super) fn allowed(&mut self) -> Result<SimpleVob, Fault> {
        self.0.compute_mask_or_eos().map_err(|e| {
            Fault::ProtocolError(format!(
                "the schema has no valid continuation: {}",
                first_line(&e.to_string())
            ))
        })
    }

    /// Advances the grammar by the sampled token.
    pub(super) fn accept(&mut self, token: u32) -> Result<(), Fault> {
        self.0.consume_token(token).map_err(|e| {
            Fault::ProtocolError(format!(
                "the output violates the schema: {}",
                first_line(&e.to_string())
            ))
        })
    }

    /// Whether no further token is allowed.
    pub(super) fn is_done(&self) -> bool {
        self.0.is_stopped()
    }
}

/// Disables flexible white space unless the schema sets it: small models write it without end.
fn compact(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        map.entry("x-guidance").or_insert_with(|| json!({"whitespace_flexible": false}));
    }
    schema
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One token of a vocabulary.
pub enum VocabToken {
    /// The bytes that it adds to a text.
    Text(Vec<u8>),
    /// A control token, by its name; no text matches it.
    Control(Vec<u8>),
}

/// Builds the trie of a vocabulary in the order of its ids. `ends` are the end-of-generation tokens,
/// the most common one first.
pub fn trie(tokens: impl Iterator<Item = VocabToken>, ends: &[u32]) -> TokTrie {
    let tokens: Vec<Vec<u8>> = tokens
        .map(|token| match token {
            VocabToken::Text(bytes) => bytes,
            VocabToken::Control(name) => {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_slice()].concat()
            }
        })
        .collect();
    let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let info = TokRxInfo::new(count, ends.first().copied().unwrap_or_default());
    TokTrie::from(&info, &tokens).with_eos_tokens(ends)
}
