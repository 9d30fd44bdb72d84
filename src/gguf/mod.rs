//! GGUF files: checked before a library reads them, and opened once.

pub mod file;
#[cfg(fuzzing)]
pub mod fuzzing;
mod head;
#[cfg(test)]
mod tests;
