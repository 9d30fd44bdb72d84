//! All that the service keeps on disk.

pub(crate) mod files;
pub(crate) mod learned;
pub(crate) mod ledger;
