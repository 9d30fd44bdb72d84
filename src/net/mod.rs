//! Connections to other hosts: HTTP clients, name lookup and TLS.

pub mod client;
mod lookup;
pub mod public;
mod public_lookup;
pub mod tls;
