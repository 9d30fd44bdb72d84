//! How hard pressed the device is: one word for the judge, made of what the sensors say.

use serde::{Deserialize, Serialize};

/// What the device can bear at this moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DevicePressure {
    /// How near it is to its heat limit: 0 is cool, 1 is at the limit.
    pub heat: f32,
    /// How near it is to its memory limit: 0 is plenty, 1 is none left.
    pub memory: f32,
    /// How near its disk is to its limit: 0 is plenty, 1 is none left.
    pub disk: f32,
    /// Share of the time that the engines here may compute, 0 ..= 1.
    pub duty: f32,
    /// What must be given up.
    pub stage: PressureStage,
    /// What presses most.
    pub cause: PressureCause,
}

/// What is given up under pressure; each stage includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressureStage {
    /// Nothing.
    #[default]
    Calm,
    /// Speed: engines pause between tokens.
    Paced,
    /// Batch jobs do not start here.
    Shed,
    /// Nothing starts here that another may answer.
    Closed,
    /// Engines that have nothing to do are ended, to give their memory back.
    Unload,
}

/// What presses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressureCause {
    /// Only the jobs themselves.
    #[default]
    Load,
    /// The chip is hot or its power fails.
    Heat,
    /// Memory runs short.
    Memory,
    /// The disk runs full.
    Disk,
}

impl PressureStage {
    /// The word for it in status and metrics.
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
    /// The word for it in status and metrics.
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
            stage: PressureStage::Calm,
            cause: PressureCause::Load,
        }
    }
}

impl DevicePressure {
    /// The share of a processor's time that can be counted on; 0 if nothing may start.
    pub fn usable(&self) -> f64 {
        if self.stage >= PressureStage::Closed { 0.0 } else { f64::from(self.duty.clamp(0.0, 1.0)) }
    }
}
