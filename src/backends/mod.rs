//! Backends: each keeps one model server reachable and hands requests to it.

pub mod scripted;
pub mod supervisor;
