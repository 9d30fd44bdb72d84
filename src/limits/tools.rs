//! Bounds of pinned tools.

use std::time::Duration;

/// Pinned tools that are kept: those of eight times [`super::SERVERS_MAX`] servers. The oldest one goes
/// first.
pub const TOOL_PINS_MAX: usize = 256;
/// Largest file of pinned tools that is read, in bytes: [`TOOL_PINS_MAX`] entries of two descriptions, of
/// which each byte may have six in JSON.
pub const TOOL_PINS_BYTES_MAX: u64 = 2 << 20;
/// The beginning of a description that is kept to be shown, in bytes.
pub const TOOL_TEXT_BYTES_MAX: usize = 512;
/// Longest time that a call waits for the check of a tool list that has changed.
pub const TOOLS_CHECK_MAX: Duration = Duration::from_secs(10);
/// Shortest time between two checks of one server's tool list: a server may announce changes without end.
pub const TOOLS_CHECK_REST: Duration = Duration::from_secs(1);
/// Time after which the tool list of a server that has announced nothing is checked: a server over HTTP
/// has no way to announce it outside of a call.
pub const TOOLS_CHECK_EVERY: Duration = Duration::from_secs(3600);
