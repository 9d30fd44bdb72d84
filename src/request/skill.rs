//! Names of the skills that a model can state (`talents` in a `ModelContext`).

/// Generation of text.
pub const GENERATE: &str = "generate";
/// Choice of a label with its confidence.
pub const CLASSIFY: &str = "classify";
/// Embeddings of texts.
pub const EMBED: &str = "embed";
/// Log-probabilities of the generated tokens.
pub const LOGPROBS: &str = "logprobs";
/// Answers that depend on the request alone.
pub const DETERMINISTIC: &str = "deterministic";
