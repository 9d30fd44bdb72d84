//! All files that the service writes in its state folder.

pub(crate) mod files;
pub(crate) mod learned;
pub(crate) mod ledger;
