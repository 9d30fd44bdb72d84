//! Simulated devices: a board with a thermal model, prompts over a day, and a policy that decides.

pub mod board;
mod draw;
mod engine;
pub mod load;
pub mod policy;
pub mod table;
pub mod world;

pub use self::draw::draw;
