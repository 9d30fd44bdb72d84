//! Which models and tasks there are.

mod budget;
pub mod catalog;
pub mod expand;
pub mod provider;
pub mod rule;
pub mod task;
