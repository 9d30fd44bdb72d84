//! The roll-out of a signed configuration to many devices, as the manager's program sees it: which
//! devices it concerns, what each has made of it, in which stages it is offered, and when that stops.
//!
//! All of this is pure: `pilotlight config push` and `config watch` feed it with reports and times, and
//! carry out its effects. `docs/fleet.md` has the reasons of the design.

pub mod choice;
pub mod devices;
pub mod stages;
pub mod summary;
pub mod update;

#[cfg(test)]
mod tests;
