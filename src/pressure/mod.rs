//! Device pressure: sensor samples into a duty cycle and a stage of load shedding.
//!
//! - **Heat** lowers the duty cycle of the engines in proportion between two temperatures. A switch
//!   at one temperature would oscillate, and one with a wide hysteresis would waste the board. The
//!   input is not the current temperature but its extrapolation by the trend of the last seconds.
//! - **Memory and disk** enter a stage at once and leave it after a delay, because both fail
//!   abruptly.
//! - **A sensor that stops answering** counts as warming. A sensor that has never answered is taken
//!   to be absent, and so is one that can't be believed (`zones`).

mod heat;
pub mod latch;
pub mod level;
pub mod limit;
mod reserve;
mod stuck;
#[cfg(test)]
mod tests;
pub mod trend;
pub mod zones;

use serde::{Deserialize, Serialize};

use self::heat::HeatGauge;
use self::level::{DevicePressure, PressureCause, PressureStage};
use self::limit::ZoneLimits;
use self::reserve::ReserveGauge;
pub use self::reserve::STALL_SHORT;
use self::zones::ZoneRole;
use crate::time::Time;

/// One sample of all sensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SensorSample {
    /// The thermal zones, in the order of their numbers.
    pub zones: Vec<Zone>,
    /// The flags of the board's firmware.
    pub board: Option<BoardReading>,
    /// The memory that a process can have.
    pub memory: Option<Amount>,
    /// Memory pressure: the share of the last ten seconds in which some task was stalled on memory,
    /// in percent (PSI, `some avg10`).
    pub stall: Option<f64>,
    /// The share of all processors' time that was in use, 0 to 1. It is reported and has no effect.
    pub busy: Option<f64>,
    /// Processor pressure: the share of the last ten seconds in which some task waited for a processor, in
    /// percent (PSI, `some avg10`).
    pub processor_stall: Option<f64>,
    /// The space on the disk that the service writes to.
    pub disk: Option<Amount>,
    /// An engine's token rate divided by its usual rate.
    pub rate: Option<f64>,
}

/// One thermal zone. Temperatures are in degrees Celsius.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// The name of the zone's folder.
    pub name: String,
    /// The kernel's type of the zone.
    pub kind: String,
    /// The temperature; none if it can't be read.
    pub celsius: Option<f64>,
    /// The passive trip point, at which the kernel begins to throttle the chip.
    pub passive: Option<f64>,
    /// The hot trip point, at which the kernel notifies its drivers.
    pub hot: Option<f64>,
    /// The critical trip point, at which the kernel shuts the board down.
    pub critical: Option<f64>,
}

/// The flags of a board's firmware.
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BoardReading {
    /// The supply voltage is too low.
    pub under_voltage: bool,
    /// The clock frequency is capped.
    pub capped: bool,
    /// The chip is throttled.
    pub throttled: bool,
    /// The soft temperature limit is exceeded.
    pub soft_limit: bool,
}

/// The size of a resource and what is available of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// The size.
    pub total: u64,
    /// What is available.
    pub available: u64,
}

/// The thresholds of device pressure.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// The temperatures, in degrees Celsius, between which the duty cycle falls from 1 to its
    /// minimum; none to derive them from each zone's trip points.
    pub heat_c: Option<(f64, f64)>,
    /// The same for a zone without a passive trip point.
    pub heat_c_unknown: (f64, f64),
    /// What the configuration states of single zones.
    pub zones: ZoneLimits,
    /// The memory that is kept free, in bytes.
    pub memory_reserve: u64,
    /// The disk space that is kept free, in bytes.
    pub disk_reserve: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            heat_c: None,
            // a Raspberry Pi throttles from 80 °C on and states no passive trip point
            heat_c_unknown: (74.0, 79.0),
            zones: ZoneLimits::new(),
            memory_reserve: 128 << 20,
            disk_reserve: 64 << 20,
        }
    }
}

/// The state that turns one sample after the other into device pressure.
#[derive(Debug, Default)]
pub struct Gauge {
    heat: HeatGauge,
    memory: ReserveGauge,
    disk: ReserveGauge,
    bounds: Bounds,
}

impl Gauge {
    /// A gauge with these thresholds.
    pub fn new(bounds: Bounds) -> Gauge {
        Gauge { bounds, ..Gauge::default() }
    }

    /// Other thresholds from the next sample on.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The roles of the zones of the last sample, in their order.
    pub fn roles(&self) -> &[ZoneRole] {
        &self.heat.roles
    }

    /// Takes a sample and returns the device pressure.
    pub fn on(&mut self, sample: &SensorSample, now: Time) -> DevicePressure {
        let heat = self.heat.on(sample, &self.bounds, now);
        let (memory, memory_stage) =
            self.memory.memory(sample.memory, sample.stall, self.bounds.memory_reserve, now);
        let (disk, disk_stage) = self.disk.disk(sample.disk, self.bounds.disk_reserve, now);
        let heat_stage = heat.stage();
        let stage = heat_stage.max(memory_stage).max(disk_stage);
        let cause = if stage == PressureStage::Calm {
            PressureCause::Load
        } else if stage == memory_stage {
            PressureCause::Memory
        } else if stage == heat_stage {
            PressureCause::Heat
        } else {
            PressureCause::Disk
        };
        #[expect(clippy::cast_possible_truncation, reason = "shares from 0 to 1")]
        let share = |value: f64| value.clamp(0.0, 1.0) as f32;
        DevicePressure {
            heat: share(heat.share),
            memory: share(memory),
            disk: share(disk),
            duty: share(heat.duty),
            processor: share(sample.processor_stall.unwrap_or(0.0) / 100.0),
            stage,
            cause,
        }
    }
}
