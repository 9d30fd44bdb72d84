//! The vocabulary of a model as the library of grammars sees it.

use std::sync::Arc;

use toktrie::{TokTrie, TokenizerEnv};

/// The model's tokenizer: the tokens of a text, without control tokens.
pub(crate) type Tokenize = Arc<dyn Fn(&str) -> Vec<u32> + Send + Sync>;

/// A text before the one that is tokenized, for tokenizers that put a blank before each text.
const BEFORE: &str = "\n";
/// Most tokens of [`BEFORE`], the blank included.
const BEFORE_TOKENS_MAX: usize = 3;

/// Tokens by their bytes, and the tokenizer, if there is one.
pub(super) struct GrammarVocabulary {
    trie: TokTrie,
    tokenize: Option<Tokenize>,
}

impl GrammarVocabulary {
    pub(super) fn new(trie: TokTrie, tokenize: Option<Tokenize>) -> GrammarVocabulary {
        GrammarVocabulary { trie, tokenize }
    }

    /// The tokens of a text as the model's tokenizer has them within a text; the longest ones from the left if it
    /// changes the text.
    fn tokens(&self, text: &str) -> Vec<u32> {
        let is_same = |tokens: &[u32]| self.trie.decode_raw(tokens) == text.as_bytes();
        let greedy = || self.trie.greedy_tokenize(text.as_bytes());
        let Some(tokenize) = &self.tokenize else { return greedy() };
        let tokens = tokenize(text);
        if is_same(&tokens) {
            return tokens;
        }
        let after = tokenize(&format!("{BEFORE}{text}"));
        let starts = 1..=BEFORE_TOKENS_MAX.min(after.len());
        let found = starts.map(|start| &after[start..]).find(|tokens| is_same(tokens));
        found.map_or_else(greedy, <[u32]>::to_vec)
    }
}

impl TokenizerEnv for GrammarVocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokens(text))
    }

    /// Whether bytes are forced as tokens: those of another tokenization than the model's own are unlikely to it, and
    /// make its answer worse.
    fn tokenize_is_canonical(&self) -> bool {
        self.tokenize.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::worker::constraint::{VocabToken, trie};

    fn vocabulary(
        tokenize: impl Fn(&str) -> Vec<u32> + Send + Sync + 'static,
    ) -> GrammarVocabulary {
        let texts = ["a", "b", "c", "ab", "bc", " ", "\n"];
        let texts = texts.map(|text| VocabToken::Text(text.as_bytes().to_vec()));
        let trie = trie(texts.into_iter().chain([VocabToken::Control(b"<end>".to_vec())]), &[7]);
        GrammarVocabulary::new(trie, Some(Arc::new(tokenize)))
    }

    /// A tokenizer that prefers the last tokens of the vocabulary.
    fn from_the_right(text: &str) -> Vec<u32> {
        match text {
            "abc" => vec![0, 4],
            "\nabc" => vec![6, 0, 4],
            _ => Vec::new(),
        }
    }

    #[test]
    fn tokens_are_those_of_the_model() {
        assert_eq!(vocabulary(from_the_right).tokens("abc"), [0, 4]);
        // a blank before each text
        let blank = |text: &str| [&[5][..], &from_the_right(text)].concat();
        assert_eq!(vocabulary(blank).tokens("abc"), [0, 4]);
    }

    #[test]
    fn a_text_that_the_tokenizer_changes_has_the_longest_tokens() {
        assert_eq!(vocabulary(|_| vec![1]).tokens("abc"), [3, 2]);
        assert_eq!(vocabulary(|_| Vec::new()).tokens("abc"), [3, 2]);
        assert!(vocabulary(|_| Vec::new()).tokenize_bytes(b"").is_empty());
    }
}
