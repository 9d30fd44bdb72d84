//! Heat: thermal zones, firmware flags and engine slowdown into a duty cycle.

use std::collections::BTreeMap;

use super::level::PressureStage;
use super::limit::ZoneLimit;
use super::stuck::StuckZones;
use super::trend::Trend;
use super::zones::{ZoneRole, limit_of, plausible, roles};
use super::{Bounds, SensorSample, Zone};
use crate::limits::ZONES_MAX;
use crate::time::Time;

/// How far a temperature is extrapolated by its trend, in seconds.
const AHEAD_S: f64 = 10.0;
/// The assumed warming of a sensor that stopped answering, in degrees Celsius per second: about
/// twice that of a small board at full load without a fan.
const SILENT_C_PER_S: f64 = 0.5;
/// The passive and hot trip points that a processor can have, in degrees Celsius. Another one counts as
/// none.
const TRIP_C: std::ops::RangeInclusive<f64> = 40.0..=125.0;
/// The least duty cycle while the device is not closed.
const DUTY_MIN: f64 = 0.05;
/// The duty cycle while the firmware reports throttling or under-voltage, or an engine is slow.
const DUTY_THROTTLED: f64 = 0.5;
/// The share of its usual rate below which an engine indicates a throttled chip on a board without
/// thermal sensors.
const RATE_LOW: f64 = 0.7;
/// How far above the upper temperature the device closes, in degrees Celsius.
const CLOSED_ABOVE_C: f64 = 3.0;
/// How far below the kernel's passive trip point the upper temperature lies, and the width of the
/// range, in degrees Celsius.
const BELOW_PASSIVE_C: f64 = 1.0;
const WIDTH_C: f64 = 5.0;
/// How far below the lower temperature the thermal headroom is complete, in degrees Celsius.
const COOL_BELOW_C: f64 = 30.0;

/// The thermal zones that count and have answered at least once.
#[derive(Debug, Default)]
pub(super) struct HeatGauge {
    zones: BTreeMap<String, KnownReading>,
    stuck: StuckZones,
    /// The roles of the zones of the last sample, in their order.
    pub(super) roles: Vec<ZoneRole>,
}

#[derive(Debug)]
struct KnownReading {
    trend: Trend,
    last: f64,
    at: Time,
}

/// The heat of the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heat {
    /// The used share of the thermal headroom: 0 is cool, 1 is the upper temperature.
    pub(super) share: f64,
    /// The duty cycle, [`DUTY_MIN`] to 1.
    pub(super) duty: f64,
    closed: bool,
}

impl HeatGauge {
    pub(super) fn on(&mut self, sample: &SensorSample, bounds: &Bounds, now: Time) -> Heat {
        let mut worst = Heat { share: 0.0, duty: 1.0, closed: false };
        self.stuck.on(sample, now);
        self.roles = roles(sample, &bounds.zones, |zone| self.stuck.history(&zone.name));
        // while a zone of the chip answers, the heat is known without those that stopped: a part of the
        // chip that is switched off has none
        let is_known = self.roles.iter().any(|role| role.counts());
        for (at, zone) in sample.zones.iter().take(ZONES_MAX).enumerate() {
            match self.roles[at] {
                ZoneRole::Unreadable if is_known => continue,
                ZoneRole::Processor
                | ZoneRole::Only
                | ZoneRole::Configured
                | ZoneRole::Unreadable => {}
                ZoneRole::Ignored
                | ZoneRole::Other(_)
                | ZoneRole::Unknown
                | ZoneRole::Round
                | ZoneRole::Stuck => {
                    self.zones.remove(&zone.name);
                    continue;
                }
            }
            if let Some(heat) = self.zone(zone, bounds, now) {
                worst.share = worst.share.max(heat.share);
                worst.duty = worst.duty.min(heat.duty);
                worst.closed |= heat.closed;
            }
        }
        if !is_known {
            self.vanished(sample, bounds, now, &mut worst);
        }
        if self.is_throttled(sample) {
            worst.duty = worst.duty.min(DUTY_THROTTLED);
            worst.share = worst.share.max(1.0);
        }
        worst
    }

    /// The heat of a zone, extrapolated by its trend; none if the zone has never answered.
    fn zone(&mut self, zone: &Zone, bounds: &Bounds, now: Time) -> Option<Heat> {
        let celsius = match (plausible(zone), self.zones.get_mut(&zone.name)) {
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
        let (low, high) = range(zone, bounds);
        Some(heat_at(celsius, low, high, zone.hot.filter(|c| TRIP_C.contains(c))))
    }

    /// Zones that answered once and are absent from this sample. They lower the duty cycle and never
    /// close the device: their temperature is a guess.
    fn vanished(&mut self, sample: &SensorSample, bounds: &Bounds, now: Time, worst: &mut Heat) {
        let (low, high) = bounds.heat_c.unwrap_or(bounds.heat_c_unknown);
        for (name, known) in &mut self.zones {
            if !sample.zones.iter().any(|zone| zone.name == *name) {
                let heat = heat_at(known.silent(now), low, high, None);
                worst.share = worst.share.max(heat.share);
                worst.duty = worst.duty.min(heat.duty);
            }
        }
    }

    /// Whether the firmware reports throttling or, on a board without thermal sensors, an engine is
    /// slower than usual.
    fn is_throttled(&self, sample: &SensorSample) -> bool {
        match sample.board {
            Some(b) => b.under_voltage || b.capped || b.throttled || b.soft_limit,
            None => {
                self.zones.is_empty()
                    && sample.rate.is_some_and(|rate| rate.is_finite() && rate < RATE_LOW)
            }
        }
    }
}

impl KnownReading {
    /// The assumed temperature of a sensor that stopped answering.
    fn silent(&mut self, now: Time) -> f64 {
        self.trend.clear();
        self.last + now.since(self.at).as_secs_f64() * SILENT_C_PER_S
    }
}

impl Heat {
    pub(super) fn stage(self) -> PressureStage {
        if self.closed {
            PressureStage::Closed
        } else if self.duty <= DUTY_MIN {
            PressureStage::Shed
        } else if self.duty < 1.0 {
            PressureStage::Paced
        } else {
            PressureStage::Calm
        }
    }
}

/// The temperatures between which the duty cycle falls: configured, derived from the passive trip
/// point, or the board's default.
fn range(zone: &Zone, bounds: &Bounds) -> (f64, f64) {
    let passive = zone.passive.filter(|c| TRIP_C.contains(c));
    if let Some(ZoneLimit::Between(low, high)) = limit_of(zone, &bounds.zones) {
        return (low, high);
    }
    match (bounds.heat_c, passive) {
        (Some(range), _) => range,
        (None, Some(passive)) => (passive - BELOW_PASSIVE_C - WIDTH_C, passive - BELOW_PASSIVE_C),
        (None, None) => bounds.heat_c_unknown,
    }
}

fn heat_at(celsius: f64, low: f64, high: f64, hot: Option<f64>) -> Heat {
    let duty = ((high - celsius) / (high - low).max(0.1)).clamp(DUTY_MIN, 1.0);
    let cool = low - COOL_BELOW_C;
    Heat {
        share: (celsius - cool) / (high - cool),
        duty,
        closed: celsius >= high + CLOSED_ABOVE_C || hot.is_some_and(|hot| celsius >= hot),
    }
}
