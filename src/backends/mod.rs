//! What answers prompts.

pub mod classifier;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "gguf")]
pub mod gguf;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod provider;
pub mod sampler;
pub mod scripted;
pub mod supervise;
pub mod template;
pub mod text;
