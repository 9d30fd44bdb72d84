//! Connections to other hosts: HTTP clients, name lookup, TLS.

pub mod client;
mod lookup;
pub mod tls;
