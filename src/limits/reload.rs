//! Bounds of a change of the configuration while the service runs.

use std::time::Duration;

use super::ENGINE_LOAD_MAX;

/// Requests to read the configuration again that may wait: one reload serves all of them.
pub const RELOADS_WAITING_MAX: usize = 16;
/// Mistakes of a refused configuration that the status and the broker are told.
pub const REPORTED_MISTAKES_MAX: usize = 32;
/// How long the files of the configuration must be unchanged before they are read again: an editor writes
/// a file in several steps.
pub const CONFIG_QUIET: Duration = Duration::from_millis(300);
/// Longest time for which changes of the configuration's files that follow each other are waited for.
pub const CONFIG_QUIET_MAX: Duration = Duration::from_secs(5);
/// Longest time for which a changed configuration waits for its new models to be up, while the old one
/// serves: the longest that a model may take.
pub const BACKEND_WARM_MAX: Duration = ENGINE_LOAD_MAX;
