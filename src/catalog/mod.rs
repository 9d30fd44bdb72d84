//! Which models and tasks there are.

mod budget;
pub mod catalog;
pub mod edit;
pub mod expand;
pub mod provider;
mod redact;
pub mod rule;
pub mod secrets;
mod server;
pub mod task;
