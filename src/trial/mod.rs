//! The trial of a changed configuration: its models answer a prompt and the golden sets beside those in
//! force, before an application meets them.

mod golden;
mod probe;

pub use self::golden::{GoldenScore, score};
pub use self::probe::probe;
