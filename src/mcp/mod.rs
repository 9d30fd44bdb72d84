//! MCP: every model as an MCP server, and every MCP server with the `generate` tool as a model.

mod answer;
mod cancels;
pub mod client;
pub mod contract;
mod group_tags;
mod handshake;
mod http_client;
mod http_errors;
pub mod over_mqtt;
pub mod pair;
pub mod server;
mod tap;
pub mod tools;
mod transport;
