//! GGUF files: checked before a library reads them, and opened once.

#[cfg(feature = "gguf")]
pub mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod head;
#[cfg(test)]
mod tests;
