//! Tokens and numbers as llama.cpp takes them.

use llama_cpp_2::token::LlamaToken;

/// A place or a sequence.
pub(super) fn number_i32(at: usize) -> i32 {
    i32::try_from(at).unwrap_or(0)
}

/// The token of this id.
pub(super) fn token(id: u32) -> LlamaToken {
    LlamaToken(i32::try_from(id).unwrap_or(i32::MAX))
}

/// The id of a token.
pub(super) fn id(token: LlamaToken) -> u32 {
    u32::try_from(token.0).unwrap_or(0)
}
