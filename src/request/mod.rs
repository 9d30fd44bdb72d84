//! A request as the service understands it: checked once at an interface, trusted afterwards.

pub mod client;
pub mod format;
pub mod job;
pub mod labels;
pub mod name;
pub mod numbers;
pub mod refusal;
pub mod schema;
pub mod skill;
pub mod tools;
pub mod wording;
