//! Bounds of a push to many devices, and of the table of their states.

use std::time::Duration;

use super::fleet::{PROBE_MAX, TRIAL_MAX, TRIAL_SECONDS_MAX};

/// Most devices of a fleet that are watched: about 1 KiB each. The others are counted.
pub const WATCHED_DEVICES_MAX: usize = 20_000;
/// Largest report of a device, in bytes: 32 mistakes and a reason of 512 bytes are a quarter of it.
pub const REPORT_BYTES_MAX: usize = 64 * 1024;
/// Longest text that a report may name a fleet, group or code with, in bytes.
pub const REPORT_WORD_BYTES_MAX: usize = 64;
/// The retained reports are complete when none has come for this long: MQTT has no sign of their end.
pub const DISCOVERY_QUIET: Duration = Duration::from_secs(1);
/// Longest wait for the retained reports.
pub const DISCOVERY_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the broker's acknowledgement of one message.
pub const PUBLISHED_MAX: Duration = Duration::from_secs(30);
/// Messages to devices that are on their way to the broker at a time: of the largest size they fill half
/// of the outbox.
pub const PUBLISHES_AT_ONCE: usize = 4;
/// Longest wait for the devices of a stage, unless another one is given: their models start, answer a
/// prompt, answer the golden sets, and then requests, each with a bound of its own.
pub const PUSH_TIME: Duration = Duration::from_secs(3600);
/// Longest wait that can be given, in seconds: a trial of a week, and a week for devices that are off.
pub const PUSH_SECONDS_MAX: u64 = 2 * TRIAL_SECONDS_MAX;
/// Most stages of a push.
pub const STAGES_MAX: usize = 16;
/// Most rows of equal reasons in a table.
pub const REASONS_SHOWN_MAX: usize = 8;
/// Most devices that a row of equal reasons names.
pub const NAMES_SHOWN_MAX: usize = 4;
/// Interval at which the states of devices that have not ended are asked for again, and then no more:
/// reports come with `QoS` 0, and a broker drops those for a client that is slower than they come.
pub const ASKED_AGAIN_EVERY: Duration = Duration::from_secs(10);
/// Most devices that are asked for again at a time: the topics fill a packet of about 16 KiB.
pub const ASKED_AGAIN_MAX: usize = 256;
/// Pause between two drawings of the table.
pub const REDRAW_EVERY: Duration = Duration::from_millis(250);
/// Most files beside an update in which its public key is looked for.
pub const PUBLIC_KEYS_MAX: usize = 64;

const _: () = assert!(PUSH_TIME.as_secs() > 3 * PROBE_MAX.as_secs() + TRIAL_MAX.as_secs());
const _: () = assert!(PUSH_TIME.as_secs() <= PUSH_SECONDS_MAX);
const _: () = assert!(PUBLISHES_AT_ONCE * super::fleet::UPDATE_BYTES_MAX < super::OUTBOX_BYTES_MAX);
