//! Which models and tasks there are.

mod budget;
pub mod catalog;
pub mod expand;
pub mod provider;
pub mod rule;
mod server;
pub mod task;
