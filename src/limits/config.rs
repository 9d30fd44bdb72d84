//! Bounds of the reading of `mcp.json`.

use super::SCHEMA_DEPTH_MAX;

/// Deepest nesting of `mcp.json`: the schema of a task is the deepest part of the format, and is four
/// levels below the top.
pub const CONFIG_DEPTH_MAX: usize = 4 + SCHEMA_DEPTH_MAX;
/// Most mistakes of one file that are reported. A file of 1 MiB can have 500,000, each of which takes
/// another pass of the reader.
pub const CONFIG_MISTAKES_MAX: usize = 200;
/// Most bytes of the paths and messages of these: a path may consist of long keys.
pub const CONFIG_MISTAKES_BYTES_MAX: usize = 256 * 1024;
/// The longest name of a variable, in bytes, in `.env` and in `${NAME}`.
pub const VARIABLE_NAME_BYTES_MAX: usize = 256;
