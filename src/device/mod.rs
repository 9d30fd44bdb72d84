//! The sensors of the device: one sample per second, and the device pressure that results from it.

mod board;
mod files;
pub mod memory;
mod thermal;
mod trigger;

use std::path::{Path, PathBuf};

use sysinfo::System;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::board::Firmware;
use self::memory::Stalls;
use self::trigger::Trigger;
use crate::clock::now;
use crate::limits::{SAMPLE_EVERY, SAMPLE_MAX};
use crate::pressure::level::{DevicePressure, PressureStage};
use crate::pressure::{Amount, Bounds, Gauge, STALL_SHORT, SensorSample};
use crate::time::Time;

/// One sample of the sensors with the resulting device pressure.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SensorReading {
    /// The sample.
    pub sample: SensorSample,
    /// The device pressure.
    pub device_pressure: DevicePressure,
}

/// The result of looking for one sensor, for `pilotlight doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorFinding {
    /// What the sensor measures.
    pub what: &'static str,
    /// Its source, or what is missing and how to provide it.
    pub said: String,
    /// Whether the sensor was found.
    pub found: bool,
}

/// All sensors below a root folder.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    /// A folder on the disk that is measured: the one that the service writes to.
    writes_to: PathBuf,
    firmware: Firmware,
    stalls: Stalls,
    /// The processors' time; only for the root folder `/`.
    processors: Option<System>,
}

impl Sensors {
    /// The sensors below this folder, `/` on a board; `writes_to` is a folder on the measured disk.
    pub fn new(root: &Path, writes_to: &Path) -> Sensors {
        Sensors {
            root: root.to_owned(),
            writes_to: writes_to.to_owned(),
            firmware: Firmware::default(),
            stalls: Stalls::default(),
            processors: (root == Path::new("/")).then(System::new).and_then(Result::ok),
        }
    }

    /// Reads all sensors. A value that can't be read is absent and never estimated.
    pub fn read(&mut self, rate: Option<f64>) -> SensorSample {
        SensorSample {
            zones: thermal::zones(&self.root),
            board: self.firmware.read(&self.root),
            memory: memory::below(&self.root),
            stall: self.stalls.read(&self.root),
            disk: disk(&self.writes_to),
            busy: self.busy(),
            rate,
        }
    }

    /// The used share of all processors' time since the last sample, 0 to 1.
    fn busy(&mut self) -> Option<f64> {
        let system = self.processors.as_mut()?;
        let is_first = system.cpus().is_empty();
        system.refresh_cpu_usage();
        let share = f64::from(system.global_cpu_usage()) / 100.0;
        (!is_first && (0.0..=1.0).contains(&share)).then_some(share)
    }

    /// The sensors that were found and those that are missing.
    pub fn findings(&self) -> Vec<SensorFinding> {
        let mut all = thermal::findings(&self.root);
        all.push(board::finding(&self.root));
        all.extend(memory::findings(&self.root));
        all.push(processors(&self.root));
        let disk = disk(&self.writes_to);
        let shown = self.writes_to.display();
        all.push(SensorFinding {
            what: "disk",
            found: disk.is_some(),
            said: match disk {
                Some(disk) => format!("{} MiB free below {shown}", disk.available >> 20),
                None => format!("free space of {shown} is unknown"),
            },
        });
        all
    }
}

fn processors(root: &Path) -> SensorFinding {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let clock = governor(root);
    SensorFinding {
        what: "processors",
        found: clock.is_some(),
        said: match &clock {
            Some(governor) => format!("{count}, from /proc/stat; the governor is {governor}"),
            None => format!("{count}, from /proc/stat; no frequency governor"),
        },
    }
}

/// The frequency governor of the first processor, if there is one.
pub fn governor(root: &Path) -> Option<String> {
    files::text(&root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
}

/// The disk of this path; none if it can't be read.
pub fn disk(path: &Path) -> Option<Amount> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    #[allow(clippy::useless_conversion, reason = "the type is another on other machines")]
    let bytes = |blocks| u64::from(blocks).saturating_mul(u64::from(stat.fragment_size()));
    Some(Amount { total: bytes(stat.blocks()), available: bytes(stat.blocks_available()) })
}

/// The default thresholds on this architecture. On `x86_64` a zone without a passive trip point is
/// within its normal range at 80 °C, so that the range lies higher.
pub fn bounds() -> Bounds {
    let mut bounds = Bounds::default();
    if cfg!(target_arch = "x86_64") {
        bounds.heat_c_unknown = (90.0, 97.0);
    }
    bounds
}

/// Samples the sensors until `stop`, and publishes every reading and each significant change of the
/// device pressure; `rate` is an engine's token rate divided by its usual rate.
pub async fn watch(
    sensors: Sensors,
    bounds: Bounds,
    rate: watch::Receiver<Option<f64>>,
    out: (watch::Sender<SensorReading>, watch::Sender<DevicePressure>),
    stop: CancellationToken,
) {
    let (readings, pressures) = out;
    let started = now();
    let mut gauge = Gauge::new(bounds);
    let trigger = Trigger::new(&sensors.root);
    tracing::debug!(trigger = trigger.is_there(), "the kernel notifies of memory pressure");
    let mut sensors = Some(sensors);
    let mut stage = PressureStage::Calm;
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reading = None;
    // ends when `stop` is cancelled
    loop {
        let fired = tokio::select! {
            _ = ticks.tick() => false,
            () = trigger.fired() => true,
            () = stop.cancelled() => return,
        };
        // a sensor on a slow bus must not block the runtime; one that hangs yields empty samples
        if let Some(mut free) = sensors.take() {
            let rate = *rate.borrow();
            reading = Some(tokio::task::spawn_blocking(move || {
                let sample = free.read(rate);
                (free, sample)
            }));
        }
        let mut sample = match reading.as_mut() {
            Some(running) => match tokio::time::timeout(SAMPLE_MAX, running).await {
                Ok(Ok((free, sample))) => {
                    (sensors, reading) = (Some(free), None);
                    sample
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "sensor thread lost: readings stopped");
                    return;
                }
                Err(_) => SensorSample::default(),
            },
            None => SensorSample::default(),
        };
        if fired {
            // the average over ten seconds lags behind the notification
            sample.stall = Some(sample.stall.unwrap_or(0.0).max(STALL_SHORT));
        }
        let device_pressure = gauge.on(&sample, Time::default() + started.elapsed());
        if device_pressure.stage != stage {
            stage = device_pressure.stage;
            let (stage, cause) = (stage.name(), device_pressure.cause.name());
            tracing::info!(
                stage,
                cause,
                heat = device_pressure.heat,
                memory = device_pressure.memory,
                "device pressure changed"
            );
        }
        pressures.send_if_modified(|before| {
            let changed = is_significant(before, &device_pressure);
            if changed {
                *before = device_pressure;
            }
            changed
        });
        readings.send_replace(SensorReading { sample, device_pressure });
    }
}

/// Whether the scheduler might decide differently. Changes below 0.01 of a figure do not wake it.
fn is_significant(before: &DevicePressure, after: &DevicePressure) -> bool {
    let far = |a: f32, b: f32| (a - b).abs() >= 0.01;
    before.stage != after.stage
        || before.cause != after.cause
        || far(before.duty, after.duty)
        || far(before.heat, after.heat)
        || far(before.memory, after.memory)
        || far(before.disk, after.disk)
}

#[cfg(test)]
mod tests;
