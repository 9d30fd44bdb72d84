//! Bounds of signed configurations and of the trial of one.

use std::time::Duration;

use super::CONFIG_BYTES_MAX;

/// Largest update, without its signature, in bytes: an `mcp.json` of the largest size would be a third
/// longer as a JSON string. A larger one is named by URL and digest.
pub const UPDATE_BYTES_MAX: usize = 1024 * 1024;
/// Longest signature file, in bytes: four lines, of which the trusted comment alone has no fixed length.
pub const SIGNATURE_BYTES_MAX: usize = 2048;
/// Largest `update.signed`, in bytes.
pub const SIGNED_BYTES_MAX: usize = SIGNATURE_BYTES_MAX + UPDATE_BYTES_MAX;
/// Deepest nesting of an update. The format has three levels.
pub const UPDATE_DEPTH_MAX: usize = 8;
/// Deepest nesting of an `mcp.json` inside an update, and of a trust policy: that of a JSON Schema in a
/// task, with the levels around it.
pub const REMOTE_CONFIG_DEPTH_MAX: usize = 64;
/// Highest version of an update, 2⁵³ − 1: the largest integer that every JSON parser reads exactly
/// (RFC 8259, section 6).
pub const UPDATE_VERSION_MAX: u64 = (1 << 53) - 1;
/// Longest time that an update may have been issued in the future: a manager's clock that is wrong by
/// an hour (daylight saving time) is common, one that is wrong by more is a mistake.
pub const ISSUED_AHEAD_MAX: Duration = Duration::from_secs(3600);
/// Longest validity of an update that a trust policy can permit, in days.
pub const VALID_DAYS_MAX: u64 = 3660;
/// Updates from the broker that wait to be checked.
pub const UPDATES_WAITING_MAX: usize = 4;
/// Requests of programs of the device about updates that wait.
pub const UPDATE_REQUESTS_MAX: usize = 4;
/// Largest trust policy, in bytes.
pub const TRUST_BYTES_MAX: u64 = 256 * 1024;
/// Most keys, commands, neighbours and secrets of a trust policy, each.
pub const TRUST_ENTRIES_MAX: usize = 64;
/// Updates that are remembered until they expire. When there are more, the lowest versions are
/// forgotten and every update of such a version is refused.
pub const REPLAYS_MAX: usize = 256;
/// Lines of the history of updates.
pub const HISTORY_MAX: usize = 64;
/// Longest reason that the history and the reported state have, in bytes.
pub const UPDATE_REASON_BYTES_MAX: usize = 512;
/// Largest file of the fleet's state, in bytes: a configuration as a JSON string, in the worst case with
/// an escape of six bytes for each of its bytes.
pub const FLEET_FILE_BYTES_MAX: u64 = 6 * CONFIG_BYTES_MAX + 64 * 1024;
/// Starts of a configuration on trial: a power failure in the first one is not its fault.
pub const TRIES_MAX: u8 = 2;
/// Longest time until the changed models of a configuration on trial answer: loading a model from a slow
/// flash card takes minutes.
pub const PROBE_MAX: Duration = Duration::from_secs(600);
/// Good jobs after which a configuration on trial is kept.
pub const TRIAL_JOBS: u32 = 20;
/// Time after which it is kept if there were fewer jobs and none was bad.
pub const TRIAL_MAX: Duration = Duration::from_secs(600);
/// Longest time of the last part of a trial that a trust policy can state: a week.
pub const TRIAL_SECONDS_MAX: u64 = 7 * 24 * 3600;
/// Most good jobs that a trust policy can ask for.
pub const TRIAL_JOBS_MAX: u32 = 100_000;
/// Interval at which a program looks whether the trial of its update has ended.
pub const APPLY_POLL: Duration = Duration::from_millis(500);
/// Most differences that a comparison of two configurations lists.
pub const DIFFERENCES_MAX: usize = 1000;

const _: () = assert!(UPDATE_BYTES_MAX as u64 <= FLEET_FILE_BYTES_MAX);
const _: () = assert!(HISTORY_MAX <= REPLAYS_MAX);
const _: () = assert!(TRIES_MAX > 0);
