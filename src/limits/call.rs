//! Bounds of calls over MQTT.

use std::time::Duration;

use super::{RUNNING_JOBS_MAX, WAITING_JOBS_MAX};

/// Longest topic prefix of a service that is called over MQTT, in bytes.
pub const SERVICE_TOPIC_BYTES_MAX: usize = 256;
/// Longest part of a call over MQTT in one message, in bytes: many brokers accept no more than 128 or
/// 256 KiB.
pub const MQTT_PART_BYTES_MAX: usize = 64 * 1024;
/// Longest time until a worker accepts a call over MQTT.
pub const CALL_TAKEN_MAX: Duration = Duration::from_secs(5);
/// Workers of one service that a caller keeps track of.
pub const WORKERS_MAX: usize = 1024;
/// Calls over MQTT that a worker serves concurrently.
pub const CALLS_MAX: usize = WAITING_JOBS_MAX + RUNNING_JOBS_MAX;
/// Identifiers of served calls that a worker keeps, so that it serves none twice.
pub const CALLS_REMEMBERED_MAX: usize = 1024;
/// How long a worker offers one key for encrypted calls. A broker can deliver a recorded call late for so
/// long, and with the key's end the text of the calls can't be decrypted any more.
pub const CALL_KEY_MAX: Duration = Duration::from_secs(300);
/// How long the key before is accepted: a call on its way, and a caller that hears of the new key late.
pub const CALL_KEY_GRACE: Duration = Duration::from_secs(30);
/// Encrypted calls of one key, all of which its worker remembers. 4,096 of them take about 0.5 MB.
pub const CALL_KEY_CALLS_MAX: usize = 4096;
/// Callers whose keys one worker knows.
pub const CALLERS_MAX: usize = 4096;
/// Longest signed message of a worker, in bytes: topic, key and signature in Base64 have less than 1 KiB.
pub const SIGNED_BYTES_MAX: usize = 2048;
/// Signed refusals of one worker in a second. A stranger can cause them.
pub const REFUSALS_MAX: u32 = 20;

// a call on its way to the key before is taken
const _: () = assert!(CALL_KEY_GRACE.as_secs() > CALL_TAKEN_MAX.as_secs());
const _: () = assert!(CALL_KEY_GRACE.as_secs() < CALL_KEY_MAX.as_secs());
