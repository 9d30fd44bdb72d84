//! Thermal zones with their trip points.
//!
//! The format is that of Documentation/ABI/testing/sysfs-class-thermal of the Linux kernel;
//! temperatures are in thousandths of a degree Celsius.

use std::path::Path;

use super::SensorFinding;
use super::files::{folders, number, text};
use crate::limits::ZONES_MAX;
use crate::pressure::limit::ZoneLimits;
use crate::pressure::zones::{ZoneHistory, ZoneRole, roles};
use crate::pressure::{SensorSample, Zone};

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

/// Every zone with its trip points, whether it counts and why; then what is missing.
pub(super) fn findings(root: &Path, limits: &ZoneLimits) -> Vec<SensorFinding> {
    let sample = SensorSample { zones: zones(root), ..SensorSample::default() };
    let roles = roles(&sample, limits, |_| ZoneHistory::default());
    let say = |(zone, role): (&Zone, &ZoneRole)| {
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
            found: role.counts(),
            said: format!(
                "{} ({}): {reading}{}; {}",
                zone.kind,
                zone.name,
                trips.concat(),
                role.reason()
            ),
        }
    };
    let mut found: Vec<SensorFinding> = sample.zones.iter().zip(&roles).map(say).collect();
    let missing = |said: String| SensorFinding { what: "heat", found: false, said };
    let is_there = |name: &String| {
        let is = |zone: &Zone| [&zone.name, &zone.kind].iter().any(|n| n.to_lowercase() == *name);
        sample.zones.iter().any(is)
    };
    for name in limits.keys().filter(|name| !is_there(name)) {
        found.push(missing(format!("no zone has the name {name} of device_limits.zones")));
    }
    if !roles.iter().any(|role| role.counts()) {
        let why = if sample.zones.is_empty() {
            "no thermal zone in /sys/class/thermal"
        } else {
            "no thermal zone can be believed, so the heat is unknown; name one in device_limits.zones"
        };
        found.insert(0, missing(format!("{why}; heat is inferred from a slower decode rate")));
    }
    found
}
