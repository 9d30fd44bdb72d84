//! The catalog: models, tasks and policy as `mcp.json` states them, and the reader of that file.
//!
//! The types of the catalog and the code that reads the file are apart: `catalog`, `server`,
//! `provider`, `task` and `rule` hold the types, `read` and the `read_*` files hold the mirrors of
//! the file's format and the checks. A mirror is never seen outside this module.

pub mod addresses;
mod bounds;
#[expect(clippy::module_inception, reason = "the file holds the type of the same name")]
pub mod catalog;
pub mod edit;
pub mod env_file;
pub mod expand;
pub mod file_text;
pub mod golden;
pub mod json_schema;
pub mod mistake;
pub mod model;
mod place;
pub mod provider;
pub mod public_key;
pub mod read;
mod read_budget;
mod read_extra;
mod read_models;
mod read_policy;
mod read_provider;
mod read_server;
mod read_task;
pub mod rule;
mod scalar;
pub mod secret;
pub mod server;
pub(crate) mod shape;
pub mod strict;
pub mod task;
pub mod url;
