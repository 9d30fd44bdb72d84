//! Signed configurations: what a device accepts from a manager of many devices, and what it does with it.
//!
//! All of this is pure; the files are those of [`crate::store::slots`]. The way of an update:
//! [`check::check`] verifies its signature and its envelope against the [`trust`] policy of the device
//! and its memory, [`check::meaning`] reads the configuration in it, which [`boundary`] compares with the
//! local one as a ceiling, [`update`] tries it before it counts. `docs/fleet.md` has the formats.

pub mod address;
pub mod authority;
pub mod boundary;
pub mod check;
pub mod difference;
pub mod digest;
pub mod envelope;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod local;
pub mod merge;
pub mod moment;
pub mod places;
pub mod reason;
pub mod refusal;
pub mod signature;
mod strict;
pub mod target;
pub mod trust;
pub mod update;

#[cfg(test)]
mod tests;
