//! Every model is an MCP server, and every MCP server a model: the port on the wire and back.

pub mod client;
pub mod contract;
pub mod over_mqtt;
pub mod pair;
pub mod server;
mod tap;
mod transport;
