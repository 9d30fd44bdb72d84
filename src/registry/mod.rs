//! Which models and tasks there are.

pub mod catalog;
pub mod expand;
