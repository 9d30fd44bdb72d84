//! Tests that need no broker, no engine and no network: the scheduler, the contract, limits, privacy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a test ends at the first surprise"
)]

mod certificate;
mod config_schema;
mod contract;
mod judge;
mod peers;
mod privacy;
mod properties;
mod redaction;
mod sim;
mod slow_start;
mod spend;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod tools;
mod wrong_files;
mod wrong_parts;
