//! What a model is, how it is asked, and whether it can be reached.

pub mod context;
pub mod generate;
pub mod health;
pub mod link;
