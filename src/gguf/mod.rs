//! GGUF files: checked before a library reads them, and opened once.

pub mod file;
mod head;
#[cfg(test)]
mod tests;
