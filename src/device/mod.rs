//! The sensors of the device: one sample per second, and the device pressure that results from it.

mod board;
pub mod energy;
mod files;
pub mod identity;
pub mod memory;
mod thermal;
mod trigger;
pub mod uplink;

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
use crate::pressure::limit::ZoneLimits;
use crate::pressure::zones::ZoneRole;
use crate::pressure::{Amount, Bounds, Gauge, STALL_SHORT, SensorSample};
use crate::request::name::is_name;
use crate::time::Time;

/// One sample of the sensors with the resulting device pressure.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SensorReading {
    /// The sample.
    pub sample: SensorSample,
    /// The device pressure.
    pub device_pressure: DevicePressure,
    /// The hottest thermal zone that counts, in degrees Celsius.
    pub hottest_c: Option<f64>,
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
    /// What the configuration states of single thermal zones, for the findings.
    limits: ZoneLimits,
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
            limits: ZoneLimits::new(),
            processors: (root == Path::new("/")).then(System::new).and_then(Result::ok),
        }
    }

    /// The same with what the configuration states of single thermal zones.
    #[must_use]
    pub fn with_limits(self, limits: ZoneLimits) -> Sensors {
        Sensors { limits, ..self }
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
            processor_stall: memory::stalled(&self.root, "cpu"),
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
        let mut all = thermal::findings(&self.root, &self.limits);
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

/// The frequency governor of the first processor, if there is one. Its name is a part of the names under
/// which measured rates are kept.
pub fn governor(root: &Path) -> Option<String> {
    files::text(&root.join("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
        .filter(|governor| is_name(governor))
}

/// The disk of this path; none if it can't be read, or has no size, as a file system that is no disk.
pub fn disk(path: &Path) -> Option<Amount> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    #[allow(clippy::useless_conversion, reason = "the type is another on other machines")]
    let bytes = |blocks| u64::from(blocks).saturating_mul(u64::from(stat.fragment_size()));
    let (total, available) = (bytes(stat.blocks()), bytes(stat.blocks_available()));
    (total > 0 && available <= total).then_some(Amount { total, available })
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
/// device pressure by the present `bounds`; `rate` is an engine's token rate divided by its usual rate.
pub async fn watch(
    sensors: Sensors,
    bounds: watch::Receiver<Bounds>,
    rate: watch::Receiver<Option<f64>>,
    out: (watch::Sender<SensorReading>, watch::Sender<DevicePressure>),
    stop: CancellationToken,
) {
    let (readings, pressures) = out;
    let started = now();
    let mut bounds = bounds;
    let mut gauge = Gauge::new(bounds.borrow_and_update().clone());
    let trigger = Trigger::new(&sensors.root);
    tracing::debug!(trigger = trigger.is_there(), "the kernel notifies of memory pressure");
    let mut sensors = Some(sensors);
    let mut stage = PressureStage::Calm;
    let mut roles = Vec::new();
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
        if bounds.has_changed().is_ok_and(|has_changed| has_changed) {
            gauge.set_bounds(bounds.borrow_and_update().clone());
        }
        let device_pressure = gauge.on(&sample, Time::default() + started.elapsed());
        log_roles(&sample, gauge.roles(), &mut roles);
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
        let hottest_c = hottest_c(&sample, gauge.roles());
        readings.send_replace(SensorReading { sample, device_pressure, hottest_c });
    }
}

/// The hottest thermal zone that counts, in degrees Celsius. `roles` are those of the zones of the sample.
pub fn hottest_c(sample: &SensorSample, roles: &[ZoneRole]) -> Option<f64> {
    let counted = sample.zones.iter().zip(roles).filter(|(_, role)| role.counts());
    counted.filter_map(|(zone, _)| zone.celsius).reduce(f64::max)
}

/// Tells of every thermal zone that begins or ceases to count, and of a device without one.
fn log_roles(sample: &SensorSample, roles: &[ZoneRole], known: &mut Vec<ZoneRole>) {
    if roles == known.as_slice() {
        return;
    }
    for (at, (zone, role)) in sample.zones.iter().zip(roles).enumerate() {
        if known.get(at) != Some(role) {
            let (zone, kind, why) = (&zone.name, &zone.kind, role.reason());
            tracing::debug!(zone, kind, why, "thermal zone");
            if *role == ZoneRole::Stuck {
                tracing::warn!(
                    zone,
                    kind,
                    celsius = sample.zones[at].celsius,
                    "thermal zone {why}"
                );
            }
        }
    }
    let is_known = |roles: &[ZoneRole]| roles.iter().any(|role| role.counts());
    if !roles.is_empty() && !is_known(roles) && (known.is_empty() || is_known(known)) {
        tracing::warn!(
            "no thermal zone can be believed: the heat is unknown; see pilotlight doctor"
        );
    }
    known.clear();
    known.extend_from_slice(roles);
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
