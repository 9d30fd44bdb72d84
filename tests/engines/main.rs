//! Tests with real models; `scripts/test` fetches them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a test ends at the first surprise"
)]

mod bench;
mod bounds;
mod deterministic;
mod fleet;
mod gguf;
#[cfg(feature = "onnx")]
mod onnx;
mod prefixes;
#[cfg(feature = "onnx")]
mod specialists;
#[path = "../support/mod.rs"]
mod support;
