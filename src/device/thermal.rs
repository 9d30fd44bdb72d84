//! Thermal zones with their trip points.
//!
//! The format is that of Documentation/ABI/testing/sysfs-class-thermal of the Linux kernel;
//! temperatures are in thousandths of a degree Celsius.

use std::path::Path;

use super::SensorFinding;
use super::files::{folders, number, text};
use crate::limits::ZONES_MAX;
use crate::pressure::Zone;

/// The most trip points of a zone that are read.
const TRIPS_MAX: usize = 16;

/// All zones. A zone that is disabled or can't be read has no temperature.
pub(super) fn zones(root: &Path) -> Vec<Zone> {
    let found = folders(&root.join("sys/class/thermal"), "thermal_zone");
    found.iter().take(ZONES_MAX).map(|path| zone(path)).collect()
}

fn zone(path: &Path) -> Zone {
    let off = text(&path.join("mode")).as_deref() == Some("disabled");
    let celsius = if off { None } else { number(&path.join("temp")).map(|m| m / 1e3) };
    let mut zone = Zone {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        kind: text(&path.join("type")).unwrap_or_default(),
        celsius,
        ..Zone::default()
    };
    for n in 0..TRIPS_MAX {
        let Some(kind) = text(&path.join(format!("trip_point_{n}_type"))) else { break };
        let celsius = number(&path.join(format!("trip_point_{n}_temp"))).map(|m| m / 1e3);
        // drivers state 0 or less for a trip point that is not set
        let Some(celsius) = celsius.filter(|c| *c > 0.0) else { continue };
        let place = match kind.as_str() {
            "passive" => &mut zone.passive,
            "hot" => &mut zone.hot,
            "critical" => &mut zone.critical,
            _ => continue,
        };
        *place = Some(place.map_or(celsius, |other: f64| other.min(celsius)));
    }
    zone
}

pub(super) fn findings(root: &Path) -> Vec<SensorFinding> {
    let zones = zones(root);
    if zones.is_empty() {
        let said =
            "no thermal zone in /sys/class/thermal; heat is inferred from a slower decode rate"
                .to_owned();
        return vec![SensorFinding { what: "heat", found: false, said }];
    }
    let say = |zone: &Zone| {
        let trip = |name: &str, celsius: Option<f64>| {
            celsius.map_or(String::new(), |c| format!(", {name} {c:.0}"))
        };
        let reading = match zone.celsius {
            Some(celsius) => format!("{celsius:.1} °C"),
            None => "off or not readable".to_owned(),
        };
        let trips =
            [trip("passive", zone.passive), trip("hot", zone.hot), trip("critical", zone.critical)];
        SensorFinding {
            what: "heat",
            found: zone.celsius.is_some(),
            said: format!("{} ({}): {reading}{}", zone.kind, zone.name, trips.concat()),
        }
    };
    zones.iter().map(say).collect()
}
