//! Bounds of the checks that the service and its engines are alive.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How long an engine is idle before it is asked for a token. The probe takes the place of the conversation in
/// the engine's cache that was used least recently, which may be read again from its beginning.
pub const IDLE_PROBE_AFTER: Duration = Duration::from_secs(600);
/// What `idle_probe_s` can state, in seconds; 0 is never.
pub const IDLE_PROBE_S: RangeInclusive<u64> = 0..=86_400;
/// Tokens of the answer to a probe of an idle engine.
pub const IDLE_PROBE_TOKENS: u32 = 1;
/// An idle engine counts as hung if its answer takes so many times as long as the one before.
pub const IDLE_PROBE_SLOWER_MAX: u32 = 20;
/// Shortest time in which an answer to a probe is waited for: the processor may be busy with other programs, and
/// weights that were evicted from memory are read again, 500 MB of them in 12 s from an SD card.
pub const IDLE_PROBE_ANSWER_MIN: Duration = Duration::from_secs(30);
/// Longest time after its deadline for which a request may have no end. One that is later shows that the
/// service is stuck, and the watchdog of the service manager is not fed any more.
pub const OVERDUE_MAX: Duration = Duration::from_secs(30);
/// The loop of the dispatcher must answer within this part of the watchdog's interval: one third. The pause
/// between two questions is no longer than that.
pub const WATCHDOG_SHARE: u32 = 3;
/// How soon the service manager is told that the state of the service has changed.
pub const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Starts of an engine in a row after which it counts as one that can't be started. The first may come to nothing
/// because of something that passes, such as a lack of memory.
pub const STARTS_FAILED: u32 = 2;
/// Longest time in which an engine that can't load its model waits for the first request, which it answers with the
/// reason.
pub const REASON_WAIT_MAX: Duration = Duration::from_secs(2);
