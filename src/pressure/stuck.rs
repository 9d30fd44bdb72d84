//! Sensors that always show the same value: a reading that has not moved although the load has changed.
//!
//! Time is divided into blocks of [`ZONE_STUCK_BLOCK`]. A zone is stuck if its reading was the same in
//! the last two whole blocks, while the processors' load changed by [`LOAD_CHANGE`], or another zone of
//! a processor by [`OTHER_CHANGE_C`]. It is so until it moves.

use std::collections::BTreeMap;

use super::SensorSample;
use super::zones::{ZoneHistory, plausible};
use crate::limits::{ZONE_STUCK_BLOCK, ZONES_MAX};
use crate::time::Time;

/// The change of the smoothed load, as a share of all processors' time, after which a processor's
/// temperature must have changed.
const LOAD_CHANGE: f64 = 0.4;
/// The change of another zone, in degrees Celsius, after which a zone of the same chip must have changed.
const OTHER_CHANGE_C: f64 = 5.0;
/// The weight of one sample in the smoothed load: a load of a minute.
const LOAD_WEIGHT: f64 = 1.0 / 60.0;

/// The lowest and the highest value of a block.
#[derive(Debug, Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(value: f64) -> Range {
        Range { low: value, high: value }
    }

    fn with(self, other: Range) -> Range {
        Range { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    fn width(self) -> f64 {
        self.high - self.low
    }
}

#[derive(Debug, Clone)]
struct ZoneBlocks {
    present: Option<Range>,
    /// The block before; none until there was a whole one.
    last: Option<Range>,
    history: ZoneHistory,
}

/// The readings of all zones in the present block and the one before.
#[derive(Debug, Default)]
pub(super) struct StuckZones {
    zones: BTreeMap<String, ZoneBlocks>,
    load: Option<f64>,
    loads: [Option<Range>; 2],
    began: Option<Time>,
}

impl StuckZones {
    /// What is known of the past readings of this zone.
    pub(super) fn history(&self, zone: &str) -> ZoneHistory {
        self.zones.get(zone).map_or_else(ZoneHistory::default, |blocks| blocks.history)
    }

    pub(super) fn on(&mut self, sample: &SensorSample, now: Time) {
        if let Some(busy) = sample.busy.filter(|busy| (0.0..=1.0).contains(busy)) {
            let load = self.load.map_or(busy, |load| load + (busy - load) * LOAD_WEIGHT);
            self.load = Some(load);
            let range = Range::of(load);
            self.loads[1] = Some(self.loads[1].map_or(range, |known| known.with(range)));
        }
        for zone in sample.zones.iter().take(ZONES_MAX) {
            let Some(celsius) = plausible(zone) else { continue };
            let range = Range::of(celsius);
            if !self.zones.contains_key(&zone.name) && self.zones.len() >= ZONES_MAX {
                continue;
            }
            let blocks = self.zones.entry(zone.name.clone()).or_insert(ZoneBlocks {
                present: None,
                last: None,
                history: ZoneHistory::default(),
            });
            let present = blocks.present.map_or(range, |known| known.with(range));
            let known = blocks.last.map_or(present, |last| last.with(present));
            if known.width() > 0.0 {
                blocks.history = ZoneHistory { has_moved: true, is_stuck: false };
            }
            blocks.present = Some(present);
        }
        self.end_block(now);
    }

    /// Ends the present block if it is over; a clock that went back begins a new one.
    fn end_block(&mut self, now: Time) {
        let began = *self.began.get_or_insert(now);
        if now >= began && now.since(began) < ZONE_STUCK_BLOCK {
            return;
        }
        self.began = Some(now);
        let whole = |[last, present]: [Option<Range>; 2]| {
            last.zip(present).map(|(last, present)| last.with(present))
        };
        let load = whole(self.loads).map_or(0.0, Range::width);
        let widths: Vec<(String, f64)> = self
            .zones
            .iter()
            .filter_map(|(name, blocks)| {
                Some((name.clone(), whole([blocks.last, blocks.present])?.width()))
            })
            .collect();
        let widest = widths.iter().map(|(_, width)| *width).fold(0.0, f64::max);
        let has_changed = load >= LOAD_CHANGE || widest >= OTHER_CHANGE_C;
        for (name, width) in widths {
            if let Some(blocks) = self.zones.get_mut(&name)
                && has_changed
                && width <= 0.0
            {
                blocks.history.is_stuck = true;
            }
        }
        self.loads = [self.loads[1], None];
        for blocks in self.zones.values_mut() {
            (blocks.last, blocks.present) = (blocks.present, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pressure::Zone;

    fn sample(zones: &[(&str, f64)], busy: f64) -> SensorSample {
        let zone = |(name, celsius): &(&str, f64)| Zone {
            name: (*name).to_owned(),
            kind: "cpu-thermal".to_owned(),
            celsius: Some(*celsius),
            ..Zone::default()
        };
        SensorSample {
            zones: zones.iter().map(zone).collect(),
            busy: Some(busy),
            ..SensorSample::default()
        }
    }

    /// Half an hour; the load changes every quarter of one if it `works`.
    fn half_an_hour(works: bool, reading: impl Fn(u32) -> f64) -> StuckZones {
        let mut stuck = StuckZones::default();
        for second in 0..1800_u32 {
            let busy = if works && second / 450 % 2 == 1 { 0.9 } else { 0.1 };
            let sample = sample(&[("a", reading(second))], busy);
            stuck.on(&sample, Time(u64::from(second) * 1_000_000));
        }
        stuck
    }

    #[test]
    fn a_zone_that_never_moves_while_the_load_changes_is_stuck() {
        let mut stuck = half_an_hour(true, |_| 100.0);
        assert!(stuck.history("a").is_stuck);
        // it counts again as soon as it moves
        stuck.on(&sample(&[("a", 99.5)], 0.1), Time(1_801_000_000));
        assert_eq!(stuck.history("a"), ZoneHistory { has_moved: true, is_stuck: false });
    }

    #[test]
    fn a_zone_without_cause_to_move_is_not() {
        assert!(!half_an_hour(false, |_| 60.0).history("a").is_stuck);
        let moves = |second: u32| 60.0 + f64::from(second / 200 % 2);
        assert!(!half_an_hour(true, moves).history("a").is_stuck);
    }

    #[test]
    fn other_zones_are_a_cause_too() {
        let mut stuck = StuckZones::default();
        for second in 0..1800_u32 {
            let other = 50.0 + f64::from(second) / 100.0;
            let sample = sample(&[("a", 100.0), ("b", other)], 0.1);
            stuck.on(&sample, Time(u64::from(second) * 1_000_000));
        }
        assert!(stuck.history("a").is_stuck && !stuck.history("b").is_stuck);
        assert!(!stuck.history("absent").is_stuck);
    }
}
