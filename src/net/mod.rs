//! Connections to other hosts: HTTP clients, name lookup and TLS.

pub mod client;
mod lookup;
pub mod public;
pub mod tls;
