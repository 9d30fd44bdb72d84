//! Backends: supervisors that keep one model server reachable each, and a scripted model.

pub mod probe;
pub(crate) mod process;
pub mod scripted;
pub mod set;
pub mod supervisor;
mod watched;
