//! A simulated device: a board with its heat, prompts over a day, and whoever decides.

pub mod board;
mod draw;
pub mod load;
pub mod policy;
pub mod table;
pub mod world;

pub use self::draw::draw;
