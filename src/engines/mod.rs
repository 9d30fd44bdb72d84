//! Engines: local models, each run by its own worker thread in a child process.

#[cfg(feature = "onnx")]
mod classifier;
#[cfg(all(feature = "engine", fuzzing))]
pub mod fuzzing;
#[cfg(feature = "gguf")]
pub mod gguf;
#[cfg(feature = "onnx")]
pub mod onnx;
#[cfg(feature = "engine")]
pub mod sampler;
#[cfg(feature = "engine")]
mod template;
pub mod text;
#[cfg(feature = "engine")]
pub mod worker;
