//! Which models and tasks there are.

pub mod catalog;
pub mod expand;
pub mod provider;
pub mod rule;
pub mod task;
