//! From what the sensors say to how hard pressed the device is.
//!
//! Heat slows the engines in proportion between two temperatures: an on-off rule at one
//! temperature switches all the time, and one with a wide gap wastes the board. What counts is not
//! the temperature of this moment but where it is going: the reading is carried on by its trend.
//! Memory and disk close at once and open late, because both fail all at once.
//!
//! A sensor that falls silent counts as warming, never as fine. One that has never said anything is
//! not there.

pub mod latch;
pub mod level;
pub mod trend;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::latch::{Latch, Levels};
use self::level::{DevicePressure, PressureCause, PressureStage};
use self::trend::Trend;
use crate::limits::ZONES_MAX;
use crate::time::Time;

/// How far the trend of a temperature is carried on, in seconds.
const AHEAD_S: f64 = 10.0;
/// How fast a silent sensor is taken to warm, in degrees Celsius a second: a small board at full
/// load without a fan does about half of that.
const SILENT_WARMS: f64 = 0.5;
/// Temperatures outside this range are no temperatures of a working board, in degrees Celsius.
const POSSIBLE_C: std::ops::RangeInclusive<f64> = -40.0..=150.0;
/// Least share of the time that engines compute while the device is not closed.
const DUTY_MIN: f64 = 0.05;
/// Share of the time while the board itself says that it is throttled or short of power.
const DUTY_THROTTLED: f64 = 0.5;
/// An engine that is slower than this share of its usual rate shows a throttled chip, where
/// nothing else does.
const RATE_LOW: f64 = 0.7;
/// How far above the upper temperature nothing is started any more, in degrees Celsius.
const CLOSED_ABOVE: f64 = 3.0;
/// How far below the kernel's passive trip point the upper temperature lies, and the width of the
/// range, in degrees Celsius.
const BELOW_PASSIVE: f64 = 1.0;
const WIDTH: f64 = 5.0;
/// How far below the lower temperature a device counts as cool, in degrees Celsius.
const COOL_BELOW: f64 = 30.0;
/// Share of the time that some task waits for memory from which on it is short, in percent.
const STALL_SHORT: f64 = 10.0;

/// What all sensors say at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SensorSample {
    /// Every thermal zone, by its place.
    pub zones: Vec<Zone>,
    /// What the board's firmware says of its power and clock.
    pub board: Option<BoardReading>,
    /// Memory that can be had.
    pub memory: Option<Amount>,
    /// Share of the last ten seconds in which some task waited for memory, in percent.
    pub stall: Option<f64>,
    /// Share of all processors' time that any program had; it is told and nothing depends on it.
    pub busy: Option<f64>,
    /// Room on the disk that the service writes to.
    pub disk: Option<Amount>,
    /// An engine's rate against what is usual for it.
    pub rate: Option<f64>,
}

/// A thermal zone.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Zone {
    /// Which it is: the name of its folder.
    pub name: String,
    /// What it measures, in the kernel's word.
    pub kind: String,
    /// Degrees Celsius; none if it can't be read.
    pub celsius: Option<f64>,
    /// Where the kernel begins to slow the chip, in degrees Celsius.
    pub passive: Option<f64>,
    /// Where the kernel warns, in degrees Celsius.
    pub hot: Option<f64>,
    /// Where the kernel turns the board off, in degrees Celsius.
    pub critical: Option<f64>,
}

/// What a board's firmware says.
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of its own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BoardReading {
    /// The supply is too weak.
    pub under_voltage: bool,
    /// The clock is held down.
    pub capped: bool,
    /// The chip is throttled.
    pub throttled: bool,
    /// The soft temperature limit is reached.
    pub soft_limit: bool,
}

/// What there is and what is left of it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// All there is.
    pub total: u64,
    /// What can still be had.
    pub available: u64,
}

/// Where pressure begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// Engines slow down from the first on and hardly compute at the second, in degrees Celsius;
    /// taken from the zone's own trip points if not given.
    pub heat_c: Option<(f64, f64)>,
    /// The range for a zone without a passive trip point.
    pub heat_c_unknown: (f64, f64),
    /// Memory that is kept free, in bytes.
    pub memory_reserve: u64,
    /// Disk that is kept free, in bytes.
    pub disk_reserve: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            heat_c: None,
            // a Raspberry Pi throttles from 80 degrees on and states no passive trip point
            heat_c_unknown: (74.0, 79.0),
            memory_reserve: 128 << 20,
            disk_reserve: 64 << 20,
        }
    }
}

#[derive(Debug)]
struct KnownReading {
    trend: Trend,
    last: f64,
    at: Time,
}

/// Turns samples into strain, one after the other.
#[derive(Debug, Default)]
pub struct Gauge {
    bounds: Bounds,
    zones: BTreeMap<String, KnownReading>,
    memory: Latch,
    disk: Latch,
    had_memory: bool,
    had_disk: bool,
}

/// How hot it is.
struct Heat {
    /// 0 cool to 1 at the upper temperature.
    share: f64,
    duty: f64,
    closed: bool,
}

impl Gauge {
    /// A gauge with these bounds.
    pub fn new(bounds: Bounds) -> Gauge {
        Gauge { bounds, ..Gauge::default() }
    }

    /// Takes a sample in.
    pub fn on(&mut self, sample: &SensorSample, now: Time) -> DevicePressure {
        let heat = self.heat(sample, now);
        let (memory, memory_stage) = self.memory(sample, now);
        let (disk, disk_stage) = self.disk(sample, now);
        let heat_stage = if heat.closed {
            PressureStage::Closed
        } else if heat.duty <= DUTY_MIN {
            PressureStage::Shed
        } else if heat.duty < 1.0 {
            PressureStage::Paced
        } else {
            PressureStage::Calm
        };
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
            stage,
            cause,
        }
    }

    fn heat(&mut self, sample: &SensorSample, now: Time) -> Heat {
        let mut worst = Heat { share: 0.0, duty: 1.0, closed: false };
        for zone in sample.zones.iter().take(ZONES_MAX) {
            if let Some(heat) = self.zone(zone, now) {
                worst.share = worst.share.max(heat.share);
                worst.duty = worst.duty.min(heat.duty);
                worst.closed |= heat.closed;
            }
        }
        self.vanished(sample, now, &mut worst);
        let board = sample.board.unwrap_or_default();
        if board.under_voltage || board.capped || board.throttled || board.soft_limit {
            worst.duty = worst.duty.min(DUTY_THROTTLED);
            worst.share = worst.share.max(1.0);
        }
        let blind = self.zones.is_empty() && sample.board.is_none();
        if let (true, Some(rate)) = (blind, sample.rate.filter(|rate| rate.is_finite()))
            && rate < RATE_LOW
        {
            worst.duty = worst.duty.min(DUTY_THROTTLED);
            worst.share = worst.share.max(1.0);
        }
        worst
    }

    /// A zone's heat, carried on by its trend; none if it has never said anything.
    fn zone(&mut self, zone: &Zone, now: Time) -> Option<Heat> {
        let read = zone.celsius.filter(|c| POSSIBLE_C.contains(c));
        let celsius = match (read, self.zones.get_mut(&zone.name)) {
            (Some(celsius), Some(known)) => {
                (known.last, known.at) = (celsius, now);
                known.trend.push(now, celsius);
                celsius + known.trend.slope().max(0.0) * AHEAD_S
            }
            (Some(celsius), None) => {
                let mut known = KnownReading { trend: Trend::default(), last: celsius, at: now };
                known.trend.push(now, celsius);
                self.zones.insert(zone.name.clone(), known);
                celsius
            }
            (None, Some(known)) => known.silent(now),
            (None, None) => return None,
        };
        let (low, high) = self.range(zone);
        Some(heat_at(celsius, low, high, zone.hot))
    }

    /// Zones that were there and are not any more.
    fn vanished(&mut self, sample: &SensorSample, now: Time, worst: &mut Heat) {
        let (low, high) = self.bounds.heat_c.unwrap_or(self.bounds.heat_c_unknown);
        for (name, known) in &mut self.zones {
            if !sample.zones.iter().any(|zone| zone.name == *name) {
                let heat = heat_at(known.silent(now), low, high, None);
                worst.share = worst.share.max(heat.share);
                worst.duty = worst.duty.min(heat.duty);
                // nobody is turned away for a guess alone
            }
        }
    }

    fn range(&self, zone: &Zone) -> (f64, f64) {
        let passive = zone.passive.filter(|c| (40.0..=*POSSIBLE_C.end()).contains(c));
        match (self.bounds.heat_c, passive) {
            (Some(range), _) => range,
            (None, Some(passive)) => (passive - BELOW_PASSIVE - WIDTH, passive - BELOW_PASSIVE),
            (None, None) => self.bounds.heat_c_unknown,
        }
    }

    fn memory(&mut self, sample: &SensorSample, now: Time) -> (f64, PressureStage) {
        let floor = self.bounds.memory_reserve;
        let Some(memory) = sample.memory else {
            let stage = if self.had_memory { PressureStage::Shed } else { PressureStage::Calm };
            return (f64::from(u8::from(self.had_memory)), stage);
        };
        self.had_memory = true;
        let stalls = sample.stall.is_some_and(|stall| stall >= STALL_SHORT);
        let stage = |available: u64| {
            if available < floor / 2 {
                PressureStage::Unload
            } else if available < floor || stalls {
                PressureStage::Closed
            } else if available < floor.saturating_mul(2) {
                PressureStage::Shed
            } else {
                PressureStage::Calm
            }
        };
        // to open again there must be a quarter more than where it closed
        let eased = memory.available - memory.available / 5;
        let levels = Levels { enter: stage(memory.available), stay: stage(eased) };
        (used_up(memory, floor), self.memory.on(levels, now))
    }

    fn disk(&mut self, sample: &SensorSample, now: Time) -> (f64, PressureStage) {
        let floor = self.bounds.disk_reserve;
        let Some(disk) = sample.disk else {
            let stage = if self.had_disk { PressureStage::Shed } else { PressureStage::Calm };
            return (f64::from(u8::from(self.had_disk)), stage);
        };
        self.had_disk = true;
        let stage =
            |bytes: u64| if bytes < floor { PressureStage::Shed } else { PressureStage::Calm };
        let levels = Levels {
            enter: stage(disk.available),
            stay: stage(disk.available - disk.available / 5),
        };
        (used_up(disk, floor), self.disk.on(levels, now))
    }
}

impl KnownReading {
    /// What a silent sensor is taken to measure.
    fn silent(&mut self, now: Time) -> f64 {
        self.trend.clear();
        self.last + now.since(self.at).as_secs_f64() * SILENT_WARMS
    }
}

fn heat_at(celsius: f64, low: f64, high: f64, hot: Option<f64>) -> Heat {
    let duty = ((high - celsius) / (high - low).max(0.1)).clamp(DUTY_MIN, 1.0);
    let cool = low - COOL_BELOW;
    Heat {
        share: (celsius - cool) / (high - cool),
        duty,
        closed: celsius >= high + CLOSED_ABOVE || hot.is_some_and(|hot| celsius >= hot),
    }
}

/// 0 with plenty, 1 when only the floor is left.
#[expect(clippy::cast_precision_loss, reason = "a share")]
fn used_up(amount: Amount, floor: u64) -> f64 {
    let span = amount.total.saturating_sub(floor).max(1) as f64;
    1.0 - amount.available.saturating_sub(floor) as f64 / span
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time(second * 1_000_000)
    }

    fn zone(celsius: impl Into<Option<f64>>) -> Zone {
        Zone {
            name: "thermal_zone0".to_owned(),
            kind: "cpu-thermal".to_owned(),
            celsius: celsius.into(),
            ..Zone::default()
        }
    }

    fn warm(celsius: impl Into<Option<f64>>) -> SensorSample {
        SensorSample { zones: vec![zone(celsius)], ..SensorSample::default() }
    }

    fn free(megabytes: u64) -> SensorSample {
        let memory = Some(Amount { total: 4 << 30, available: megabytes << 20 });
        SensorSample { memory, ..SensorSample::default() }
    }

    #[test]
    fn heat_slows_in_proportion() {
        for (celsius, duty, stage) in [
            (50.0, 1.0, PressureStage::Calm),
            (74.0, 1.0, PressureStage::Calm),
            (76.5, 0.5, PressureStage::Paced),
            (79.0, 0.05, PressureStage::Shed),
            (81.9, 0.05, PressureStage::Shed),
            (82.0, 0.05, PressureStage::Closed),
        ] {
            let device_pressure = Gauge::default().on(&warm(celsius), at(0));
            assert!(
                (f64::from(device_pressure.duty) - duty).abs() < 1e-6,
                "{celsius}: {device_pressure:?}"
            );
            assert_eq!(device_pressure.stage, stage, "{celsius}");
        }
    }

    #[test]
    fn the_zone_s_own_trip_points_count() {
        let jetson = Zone { passive: Some(95.0), hot: Some(96.0), ..zone(91.5) };
        let mut sample = SensorSample { zones: vec![jetson], ..SensorSample::default() };
        let device_pressure = Gauge::default().on(&sample, at(0));
        assert!((device_pressure.duty - 0.5).abs() < 1e-6, "{device_pressure:?}");
        sample.zones[0].celsius = Some(96.0);
        assert_eq!(Gauge::default().on(&sample, at(0)).stage, PressureStage::Closed);
        // a trip point of zero is none
        sample.zones[0] = Zone { passive: Some(0.0), ..zone(60.0) };
        assert_eq!(Gauge::default().on(&sample, at(0)).stage, PressureStage::Calm);
    }

    #[test]
    fn a_rising_temperature_slows_before_it_is_there() {
        let mut gauge = Gauge::default();
        let mut duty = 1.0;
        for second in 0..10_u32 {
            duty = gauge.on(&warm(64.0 + f64::from(second)), at(second.into())).duty;
        }
        // 73 degrees and a degree more each second
        assert!(duty <= 0.06, "{duty}");
        let mut steady = Gauge::default();
        for second in 0..10 {
            duty = steady.on(&warm(73.0), at(second)).duty;
        }
        assert!((duty - 1.0).abs() < 1e-6);
    }

    #[test]
    fn who_falls_silent_warms_and_who_was_never_there_does_not() {
        let mut gauge = Gauge::default();
        gauge.on(&warm(60.0), at(0));
        for reading in [None, Some(f64::NAN), Some(-300.0), Some(9e9), Some(f64::INFINITY)] {
            assert!(gauge.on(&warm(reading), at(33)).duty < 0.6, "{reading:?}");
        }
        assert_eq!(gauge.on(&warm(None), at(60)).stage, PressureStage::Closed);
        // gone with its folder: slowed, not closed
        let gone = gauge.on(&SensorSample::default(), at(60));
        assert_eq!((gone.stage, gone.cause), (PressureStage::Shed, PressureCause::Heat));
        // and it is trusted again as soon as it speaks
        assert_eq!(gauge.on(&warm(60.0), at(61)).stage, PressureStage::Calm);
        assert_eq!(Gauge::default().on(&warm(None), at(900)).stage, PressureStage::Calm);
    }

    #[test]
    fn the_board_s_own_word_counts_and_so_does_a_slow_engine_where_nothing_else_does() {
        let weak = BoardReading { under_voltage: true, ..BoardReading::default() };
        let sample = SensorSample { board: Some(weak), ..warm(40.0) };
        assert!((Gauge::default().on(&sample, at(0)).duty - 0.5).abs() < 1e-6);
        let slow = SensorSample { rate: Some(0.6), ..SensorSample::default() };
        assert_eq!(Gauge::default().on(&slow, at(0)).stage, PressureStage::Paced);
        let slow_but_seen = SensorSample { rate: Some(0.6), ..warm(40.0) };
        assert_eq!(Gauge::default().on(&slow_but_seen, at(0)).stage, PressureStage::Calm);
        let absurd = SensorSample { rate: Some(f64::NAN), ..SensorSample::default() };
        assert_eq!(Gauge::default().on(&absurd, at(0)).stage, PressureStage::Calm);
    }

    #[test]
    fn memory_closes_at_once_and_opens_late() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.on(&free(1000), at(0)).stage, PressureStage::Calm);
        assert_eq!(gauge.on(&free(200), at(1)).stage, PressureStage::Shed);
        let closed = gauge.on(&free(100), at(2));
        assert_eq!((closed.stage, closed.cause), (PressureStage::Closed, PressureCause::Memory));
        assert_eq!(gauge.on(&free(60), at(3)).stage, PressureStage::Unload);
        // a moment of plenty opens nothing
        assert_eq!(gauge.on(&free(1000), at(4)).stage, PressureStage::Unload);
        assert_eq!(gauge.on(&free(60), at(20)).stage, PressureStage::Unload);
        for second in 21..=50 {
            assert_eq!(gauge.on(&free(1000), at(second)).stage, PressureStage::Unload, "{second}");
        }
        assert_eq!(gauge.on(&free(1000), at(51)).stage, PressureStage::Calm);
        let stalled = SensorSample { stall: Some(40.0), ..free(1000) };
        assert_eq!(gauge.on(&stalled, at(60)).stage, PressureStage::Closed);
        // memory that can't be read any more
        assert_eq!(gauge.on(&SensorSample::default(), at(200)).stage, PressureStage::Shed);
        assert_eq!(Gauge::default().on(&SensorSample::default(), at(0)).stage, PressureStage::Calm);
    }

    #[test]
    fn a_clock_that_jumps_forgets_the_trend() {
        let mut gauge = Gauge::default();
        for second in 0..10_u32 {
            gauge.on(&warm(50.0 + f64::from(second)), at(second.into()));
        }
        // an hour of sleep later it is a little warmer
        assert_eq!(gauge.on(&warm(62.0), at(3600)).stage, PressureStage::Calm);
        // and a clock that goes back is no trend either
        assert_eq!(gauge.on(&warm(73.0), at(5)).stage, PressureStage::Calm);
    }

    #[test]
    fn a_full_disk_sheds() {
        let disk = |megabytes: u64| SensorSample {
            disk: Some(Amount { total: 8 << 30, available: megabytes << 20 }),
            ..SensorSample::default()
        };
        let mut gauge = Gauge::default();
        assert_eq!(gauge.on(&disk(500), at(0)).stage, PressureStage::Calm);
        let full = gauge.on(&disk(10), at(1));
        assert_eq!((full.stage, full.cause), (PressureStage::Shed, PressureCause::Disk));
        assert!(full.disk > 0.99);
    }
}
