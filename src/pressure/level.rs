//! Device pressure as the scheduler sees it: headroom, duty cycle, stage and cause.

use serde::{Deserialize, Serialize};

/// The pressure on the device at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DevicePressure {
    /// The used share of the thermal headroom: 0 is cool, 1 is at the limit.
    pub heat: f32,
    /// The used share of the memory headroom: 0 to 1.
    pub memory: f32,
    /// The used share of the disk headroom: 0 to 1.
    pub disk: f32,
    /// The duty cycle: the share of the time that the engines on the device compute, 0 to 1.
    pub duty: f32,
    /// The share of the time in which some task waited for a processor, 0 to 1; 0 if it is not known.
    pub processor: f32,
    /// The stage of load shedding.
    pub stage: PressureStage,
    /// The resource that determines the stage.
    pub cause: PressureCause,
}

/// Stages of load shedding; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressureStage {
    /// No restriction.
    #[default]
    Calm,
    /// Engines pause between tokens, by the duty cycle.
    Paced,
    /// Batch jobs do not start on the device.
    Shed,
    /// A job starts on the device only if no other backend may answer it.
    Closed,
    /// Idle engines are ended to free their memory.
    Unload,
}

/// The resource that determines the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressureCause {
    /// None: only the jobs load the device.
    #[default]
    Load,
    /// The temperature, or the supply voltage.
    Heat,
    /// The available memory.
    Memory,
    /// The free disk space.
    Disk,
}

impl PressureStage {
    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            PressureStage::Calm => "calm",
            PressureStage::Paced => "paced",
            PressureStage::Shed => "shed",
            PressureStage::Closed => "closed",
            PressureStage::Unload => "unload",
        }
    }
}

impl PressureCause {
    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            PressureCause::Load => "load",
            PressureCause::Heat => "heat",
            PressureCause::Memory => "memory",
            PressureCause::Disk => "disk",
        }
    }
}

impl Default for DevicePressure {
    fn default() -> DevicePressure {
        DevicePressure {
            heat: 0.0,
            memory: 0.0,
            disk: 0.0,
            duty: 1.0,
            processor: 0.0,
            stage: PressureStage::Calm,
            cause: PressureCause::Load,
        }
    }
}

impl DevicePressure {
    /// The duty cycle that a new job can rely on; 0 if none may start.
    pub fn usable(&self) -> f64 {
        if self.stage >= PressureStage::Closed { 0.0 } else { f64::from(self.duty.clamp(0.0, 1.0)) }
    }
}
