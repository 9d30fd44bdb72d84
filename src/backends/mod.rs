//! What answers prompts.

#[cfg(feature = "gguf")]
pub mod gguf;
pub mod sampler;
pub mod scripted;
pub mod supervise;
pub mod template;
pub mod text;
