//! What this board has and how it is doing.

pub mod memory;
