//! Interfaces: each speaks one client's protocol and hands jobs to the dispatcher.

pub mod answers;
pub mod http;
pub mod mcp;
pub mod mqtt;
pub mod probe;
pub mod reloads;
mod status;
pub mod updates;
