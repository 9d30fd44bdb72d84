//! Memory and disk: what is available against the reserve that is kept free.

use super::Amount;
use super::latch::{Latch, Levels};
use super::level::PressureStage;
use crate::time::Time;

/// Memory pressure (PSI `some avg10`) from which on memory is short, in percent.
pub const STALL_SHORT: f64 = 10.0;

/// The latched stage of one resource.
#[derive(Debug, Default)]
pub(super) struct ReserveGauge {
    latch: Latch,
    was_readable: bool,
}

impl ReserveGauge {
    /// The used share of the memory headroom, and the stage.
    pub(super) fn memory(
        &mut self,
        memory: Option<Amount>,
        stall: Option<f64>,
        reserve: u64,
        now: Time,
    ) -> (f64, PressureStage) {
        let is_stalled = stall.is_some_and(|stall| stall >= STALL_SHORT);
        let stage = |available: u64| {
            if available < reserve / 2 {
                PressureStage::Unload
            } else if available < reserve || is_stalled {
                PressureStage::Closed
            } else if available < reserve.saturating_mul(2) {
                PressureStage::Shed
            } else {
                PressureStage::Calm
            }
        };
        self.on(memory, reserve, stage, now)
    }

    /// The used share of the disk headroom, and the stage.
    pub(super) fn disk(
        &mut self,
        disk: Option<Amount>,
        reserve: u64,
        now: Time,
    ) -> (f64, PressureStage) {
        let stage = |available: u64| {
            if available < reserve { PressureStage::Shed } else { PressureStage::Calm }
        };
        self.on(disk, reserve, stage, now)
    }

    /// A resource that was readable and is not any more sheds batch jobs.
    fn on(
        &mut self,
        amount: Option<Amount>,
        reserve: u64,
        stage: impl Fn(u64) -> PressureStage,
        now: Time,
    ) -> (f64, PressureStage) {
        let Some(amount) = amount else {
            let stage = if self.was_readable { PressureStage::Shed } else { PressureStage::Calm };
            return (f64::from(u8::from(self.was_readable)), stage);
        };
        self.was_readable = true;
        // hysteresis: a stage is left only with a quarter more than where it was entered
        let eased = amount.available - amount.available / 5;
        let levels = Levels { enter: stage(amount.available), stay: stage(eased) };
        (used_up(amount, reserve), self.latch.on(levels, now))
    }
}

/// The used share of the headroom: 0 if all is available, 1 if only the reserve is.
#[expect(clippy::cast_precision_loss, reason = "a share")]
fn used_up(amount: Amount, reserve: u64) -> f64 {
    let span = amount.total.saturating_sub(reserve).max(1) as f64;
    1.0 - amount.available.saturating_sub(reserve) as f64 / span
}
