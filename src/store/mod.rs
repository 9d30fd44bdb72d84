//! All files that the service writes in its state folder.

pub(crate) mod broker_password;
pub(crate) mod corrections;
pub(crate) mod file_lock;
pub(crate) mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod learned;
pub(crate) mod ledger;
pub(crate) mod marks;
pub(crate) mod private_key;
pub(crate) mod secret_file;
pub mod slots;
pub(crate) mod start_number;
pub mod tool_pins;
pub(crate) mod trust_file;
