//! Names of the skills that a model can state (`skills` in a `ModelContext`).

/// The talent of writing text.
pub const GENERATE: &str = "generate";
/// The talent of choosing one of some labels and saying how sure it is.
pub const CLASSIFY: &str = "classify";
/// The talent of saying what a text means as a vector.
pub const EMBED: &str = "embed";
/// The talent of saying how likely each token was.
pub const LOGPROBS: &str = "logprobs";
