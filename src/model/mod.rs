//! Models: what they are, how they are asked, and whether they can be reached.

pub mod batch;
pub mod claims;
pub mod context;
pub mod figures;
pub mod generate;
pub mod health;
pub mod link;
pub mod out;
