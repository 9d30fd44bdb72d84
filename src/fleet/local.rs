//! The local side of a check: the device's own `mcp.json` and what runs.

use serde_json::Value;

use crate::catalog::catalog::Catalog;
use crate::catalog::expand::Variables;

/// The local `mcp.json`: the base of every remote configuration and the ceiling of what it may do.
#[derive(Debug, Clone, Copy)]
pub struct LocalConfig<'l> {
    /// The file.
    pub file: &'l Value,
    /// Its catalog.
    pub catalog: &'l Catalog,
    /// The variables that are expanded in it.
    pub variables: &'l Variables,
    /// The remote configuration that runs; the local file if none was kept.
    pub running: &'l Value,
}
