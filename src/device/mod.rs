//! What this board has and how it is doing: reads every sensor once a second.

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
use self::trigger::{FIRED_STALL, Trigger};
use crate::clock::now;
use crate::limits::{SAMPLE_EVERY, SAMPLE_MAX};
use crate::pressure::level::{DevicePressure, PressureStage};
use crate::pressure::{Amount, Bounds, Gauge, SensorSample};
use crate::time::Time;

/// How the device is at a moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SensorReading {
    /// What the sensors say.
    pub sample: SensorSample,
    /// What that means.
    pub device_pressure: DevicePressure,
}

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SensorFinding {
    /// What it tells.
    pub what: &'static str,
    /// Where it is read, or what is missing and what to do.
    pub said: String,
    /// Whether it is there.
    pub found: bool,
}

/// Everything that can be read below a root folder.
#[derive(Debug)]
pub struct Sensors {
    root: PathBuf,
    /// Where the service writes: its disk counts.
    writes_to: PathBuf,
    firmware: Firmware,
    stalls: Stalls,
    /// Counts the processors' time; only of this machine.
    processors: Option<System>,
}

impl Sensors {
    /// The sensors below this folder, `/` on a real board; `writes_to` names the disk that counts.
    pub fn new(root: &Path, writes_to: &Path) -> Sensors {
        Sensors {
            root: root.to_owned(),
            writes_to: writes_to.to_owned(),
            firmware: Firmware::default(),
            stalls: Stalls::default(),
            processors: (root == Path::new("/")).then(System::new).and_then(Result::ok),
        }
    }

    /// Reads all of them. What can't be read is absent, never a guess.
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

    /// Share of all processors' time that any program had since the last reading.
    fn busy(&mut self) -> Option<f64> {
        let system = self.processors.as_mut()?;
        let is_first = system.cpus().is_empty();
        system.refresh_cpu_usage();
        let share = f64::from(system.global_cpu_usage()) / 100.0;
        (!is_first && (0.0..=1.0).contains(&share)).then_some(share)
    }

    /// What is there and what is not, for people.
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
                None => format!("the room below {shown} can't be read"),
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
            None => format!("{count}, from /proc/stat; the kernel sets no clock"),
        },
    }
}

/// The kernel's rule for the processor's clock, if it has one.
pub fn governor(root: &Path) -> Option<String> {
    files::text(&root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
}

fn disk(path: &Path) -> Option<Amount> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    #[allow(clippy::useless_conversion, reason = "the type is another on other machines")]
    let bytes = |blocks| u64::from(blocks).saturating_mul(u64::from(stat.fragment_size()));
    Some(Amount { total: bytes(stat.blocks()), available: bytes(stat.blocks_available()) })
}

/// Where processors are built to run hot, a zone without a passive trip point says little at 80
/// degrees.
pub fn bounds() -> Bounds {
    let mut bounds = Bounds::default();
    if cfg!(target_arch = "x86_64") {
        bounds.heat_c_unknown = (90.0, 97.0);
    }
    bounds
}

/// Watches the device until `stop`, and tells how it is; `rate` is an engine's rate against what is
/// usual for it.
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
    tracing::debug!(trigger = trigger.is_there(), "the kernel tells when memory runs short");
    let mut sensors = Some(sensors);
    let mut stage = PressureStage::Calm;
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reading = None;
    // ends with the service
    loop {
        let fired = tokio::select! {
            _ = ticks.tick() => false,
            () = trigger.fired() => true,
            () = stop.cancelled() => return,
        };
        // a sensor behind a slow bus must not hold the runtime; one that hangs falls silent
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
                    tracing::error!(%error, "the sensors can't be read any more");
                    return;
                }
                Err(_) => SensorSample::default(),
            },
            None => SensorSample::default(),
        };
        if fired {
            // the average of ten seconds does not show it yet
            sample.stall = Some(sample.stall.unwrap_or(0.0).max(FIRED_STALL));
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
                "the device"
            );
        }
        pressures.send_if_modified(|before| {
            let changed = is_news(before, &device_pressure);
            if changed {
                *before = device_pressure;
            }
            changed
        });
        readings.send_replace(SensorReading { sample, device_pressure });
    }
}

/// Whether the judge would decide otherwise: small changes of figures that it only shows are not
/// worth waking it.
fn is_news(before: &DevicePressure, after: &DevicePressure) -> bool {
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
