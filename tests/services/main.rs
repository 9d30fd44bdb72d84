//! Tests with real brokers, servers, child processes and networks.

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

mod access_rules;
mod addresses;
mod anthropic;
#[cfg(feature = "bedrock")]
mod bedrock;
#[cfg(feature = "embedded-broker")]
mod call_keys;
#[cfg(feature = "embedded-broker")]
mod check;
#[cfg(feature = "embedded-broker")]
mod cli;
mod clock;
#[cfg(feature = "embedded-broker")]
mod costs;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod encrypted_calls;
mod engine_units;
mod files;
mod fleet;
mod fleet_local;
mod fleet_models;
mod fleet_push;
#[cfg(feature = "embedded-broker")]
mod floods;
#[cfg(feature = "embedded-broker")]
mod heat;
#[cfg(feature = "embedded-broker")]
mod http;
#[cfg(feature = "embedded-broker")]
mod http_clients;
#[cfg(feature = "embedded-broker")]
mod http_limits;
mod model_commands;
mod model_files;
mod model_store;
#[cfg(feature = "embedded-broker")]
mod mqtt;
mod network;
#[cfg(feature = "embedded-broker")]
mod odd_topics;
mod over_mqtt;
#[cfg(feature = "embedded-broker")]
mod pinned_tools;
#[cfg(feature = "embedded-broker")]
mod policy;
#[cfg(feature = "embedded-broker")]
mod principals;
mod provider;
mod provider_options;
mod redaction;
mod refusals;
#[cfg(feature = "embedded-broker")]
mod reload;
#[cfg(feature = "embedded-broker")]
mod reload_load;
mod rollout;
mod secrets;
mod service_manager;
mod storm;
#[cfg(feature = "embedded-broker")]
mod supervised;
#[path = "../support/mod.rs"]
mod support;
#[cfg(feature = "embedded-broker")]
mod terminal;
#[cfg(feature = "embedded-broker")]
mod together;
#[cfg(feature = "embedded-broker")]
mod untrusted;
