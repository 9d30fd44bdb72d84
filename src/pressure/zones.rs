//! Which thermal zones count as heat: those of a processor, by their type, with a plausible reading.
//!
//! A board has zones of other parts too, and some of them always show the same value: the `PMIC-Die` of
//! a Jetson is 100 °C at all times, the `INT3400 Thermal` of a PC 20 °C. The names are those of
//!
//! - the Raspberry Pi: `cpu-thermal`, `bcm2835_thermal` in older kernels;
//! - the Jetson, by the device trees of NVIDIA's L4T: Nano `AO-therm`, `CPU-therm`, `GPU-therm`,
//!   `PLL-therm`, `PMIC-Die`, `thermal-fan-est`; TX2 also `BCPU-therm`, `MCPU-therm`, `Tboard_tegra`,
//!   `Tdiode_tegra`; Xavier `AUX-therm`; Orin `cpu-thermal`, `gpu-thermal`, `cv0-thermal`, `soc0-thermal`,
//!   `tj-thermal`; and of the kernel's `tegra*.dtsi`: `pllx-thermal`, `mem-thermal`;
//! - the kernel's `rk3588-base.dtsi`, `rk3399.dtsi`, `rk356x-base.dtsi`: `package-thermal`,
//!   `bigcore0-thermal`, `littlecore-thermal`, `center-thermal`, `gpu-thermal`, `npu-thermal`,
//!   `cpu-thermal`; Rockchip's own kernel: `soc-thermal`;
//! - the kernel's `sun50i-h6.dtsi`, `meson-g12-common.dtsi`, `imx8mp.dtsi`, `k3-am62-thermal.dtsi`,
//!   `sm8250.dtsi`: `cpu_thermal`, `ddr_thermal`, `soc-thermal`, `main0-thermal`, `cpu4-top-thermal`,
//!   `pm8150-thermal`, `xo-thermal`, `wlan-thermal`;
//! - x86, by the kernel's drivers in `drivers/thermal/intel`: `x86_pkg_temp`, `TCPU`, `B0D4`,
//!   `pch_cannonlake`, `INT3400 Thermal`; `acpitz` of the firmware; `iwlwifi_1` of the wireless driver.

use super::limit::{ZoneLimit, ZoneLimits, ZoneUse};
use super::{SensorSample, Zone};
use crate::limits::ZONES_MAX;

/// The temperatures that a processor in operation can have, in degrees Celsius, both exclusive: the
/// critical trip points of the kernel lie below the upper one.
const PLAUSIBLE_C: (f64, f64) = (-40.0, 125.0);
/// The same for a zone without a type, which is not the kernel's.
const PLAUSIBLE_UNTYPED_C: (f64, f64) = (-40.0, 150.1);
/// A reading of a zone of unknown type that is a multiple of this is a constant until it has moved.
const ROUND_C: f64 = 10.0;

/// Words in the types of zones that belong to a processor or its chip.
const PROCESSOR: [&str; 38] = [
    "a53",
    "a55",
    "a57",
    "a72",
    "a73",
    "a76",
    "ao",
    "apss",
    "aux",
    "b0d4",
    "bcm",
    "bcpu",
    "big",
    "bigcore",
    "center",
    "cluster",
    "core",
    "coretemp",
    "cv",
    "dla",
    "imx",
    "junction",
    "k10temp",
    "little",
    "littlecore",
    "main",
    "mcpu",
    "mpu",
    "npu",
    "package",
    "pkg",
    "pll",
    "pllx",
    "soc",
    "tcpu",
    "tctl",
    "tdie",
    "tj",
];
/// Parts of words in these types, such as `cpuss` and `gpu0`.
const PROCESSOR_PARTS: [&str; 2] = ["cpu", "gpu"];
/// Words in the types of zones of other parts, and the part.
const OTHER: [(&str, &str); 50] = [
    ("amb", "ambient air"),
    ("ambient", "ambient air"),
    ("ath10k", "wireless"),
    ("ath11k", "wireless"),
    ("bat", "battery"),
    ("battery", "battery"),
    ("bms", "battery"),
    ("board", "circuit board"),
    ("cam", "camera"),
    ("camera", "camera"),
    ("charger", "charger"),
    ("chg", "charger"),
    ("ddr", "memory"),
    ("dimm", "memory"),
    ("display", "display"),
    ("dram", "memory"),
    ("drivetemp", "storage"),
    ("emmc", "storage"),
    ("fan", "fan"),
    ("flash", "storage"),
    ("hdd", "storage"),
    ("int3400", "policy, no sensor"),
    ("iwlwifi", "wireless"),
    ("lcd", "display"),
    ("led", "light"),
    ("mdm", "modem"),
    ("mem", "memory"),
    ("modem", "modem"),
    ("nvme", "storage"),
    ("pa", "radio amplifier"),
    ("pch", "chipset"),
    ("pmic", "power management"),
    ("pmi", "power management"),
    ("quiet", "circuit board"),
    ("rtc", "clock"),
    ("sata", "storage"),
    ("skin", "case"),
    ("ssd", "storage"),
    ("tamb", "ambient air"),
    ("tboard", "circuit board"),
    ("tmem", "memory"),
    ("tskn", "case"),
    ("ufs", "storage"),
    ("usb", "USB"),
    ("vreg", "power management"),
    ("wifi", "wireless"),
    ("wireless", "wireless"),
    ("wlan", "wireless"),
    ("wwan", "modem"),
    ("xo", "crystal oscillator"),
];

/// What the type of a zone says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ZoneType {
    Processor,
    /// Another part.
    Other(&'static str),
    Unknown,
    /// None: the zone is not the kernel's.
    Untyped,
}

/// Whether a zone counts, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneRole {
    /// It counts, as the zone of a processor.
    Processor,
    /// It counts, as no zone of a processor can be read.
    Only,
    /// It counts by the configuration.
    Configured,
    /// It does not count by the configuration.
    Ignored,
    /// It belongs to another part.
    Other(&'static str),
    /// Its type is unknown, and a zone of a processor can be read.
    Unknown,
    /// It is off or can't be read, or its reading is none that a processor can have.
    Unreadable,
    /// Its reading is a round number and has not moved since it was read first.
    Round,
    /// Its reading has not moved although the load has changed.
    Stuck,
}

impl ZoneRole {
    /// Whether the zone counts.
    pub fn counts(self) -> bool {
        matches!(self, ZoneRole::Processor | ZoneRole::Only | ZoneRole::Configured)
    }

    /// The reason in words.
    pub fn reason(self) -> String {
        let text = match self {
            ZoneRole::Processor => "used: a processor's",
            ZoneRole::Only => "used: no zone of a processor can be read",
            ZoneRole::Configured => "used: named in device_limits.zones",
            ZoneRole::Ignored => "not used: ignored in device_limits.zones",
            ZoneRole::Other(part) => return format!("not used: no processor's ({part})"),
            ZoneRole::Unknown => {
                "not used: its type is unknown, and a processor's zone can be read"
            }
            ZoneRole::Unreadable => "not used: off, not readable, or beyond -40 to 125 °C",
            ZoneRole::Round => "not used until it moves: of unknown type, and a round number",
            ZoneRole::Stuck => {
                "not used until it moves: it has not moved although the load changed"
            }
        };
        text.to_owned()
    }
}

/// What is known of the past readings of a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneHistory {
    /// The reading has moved.
    pub has_moved: bool,
    /// The reading has not moved although the load has changed.
    pub is_stuck: bool,
}

/// The roles of all zones of a sample, in their order; the zones of a processor come first where only
/// one kind counts.
pub fn roles(
    sample: &SensorSample,
    limits: &ZoneLimits,
    history: impl Fn(&Zone) -> ZoneHistory,
) -> Vec<ZoneRole> {
    let zones = || sample.zones.iter().take(ZONES_MAX);
    let mut roles: Vec<ZoneRole> = zones().map(|zone| role(zone, limits, history(zone))).collect();
    let has_processor =
        roles.iter().any(|role| matches!(role, ZoneRole::Processor | ZoneRole::Configured));
    if has_processor {
        for role in roles.iter_mut().filter(|role| **role == ZoneRole::Only) {
            *role = ZoneRole::Unknown;
        }
    }
    roles
}

/// The role of a zone by itself.
fn role(zone: &Zone, limits: &ZoneLimits, history: ZoneHistory) -> ZoneRole {
    let kind = zone_type(&zone.kind);
    let configured = limit_of(zone, limits);
    match (configured, kind) {
        (Some(ZoneLimit::Named(ZoneUse::Ignore)), _) => return ZoneRole::Ignored,
        (None, ZoneType::Other(part)) => return ZoneRole::Other(part),
        (
            Some(ZoneLimit::Named(ZoneUse::Use) | ZoneLimit::Between(..)) | None,
            ZoneType::Processor | ZoneType::Other(_) | ZoneType::Unknown | ZoneType::Untyped,
        ) => {}
    }
    let Some(celsius) = plausible(zone) else { return ZoneRole::Unreadable };
    if configured.is_some() {
        return ZoneRole::Configured;
    }
    let is_round = (celsius % ROUND_C).abs() < f64::EPSILON;
    match kind {
        _ if history.is_stuck => ZoneRole::Stuck,
        ZoneType::Unknown if is_round && !history.has_moved => ZoneRole::Round,
        ZoneType::Processor => ZoneRole::Processor,
        ZoneType::Unknown | ZoneType::Untyped | ZoneType::Other(_) => ZoneRole::Only,
    }
}

/// What the configuration states of a zone.
pub(super) fn limit_of(zone: &Zone, limits: &ZoneLimits) -> Option<ZoneLimit> {
    if limits.is_empty() {
        return None;
    }
    let by = |name: &str| limits.get(&name.to_lowercase()).copied();
    by(&zone.name).or_else(|| by(&zone.kind))
}

/// The reading, if a processor in operation can have it.
pub(super) fn plausible(zone: &Zone) -> Option<f64> {
    let (low, high) = match zone_type(&zone.kind) {
        ZoneType::Untyped => PLAUSIBLE_UNTYPED_C,
        ZoneType::Processor | ZoneType::Other(_) | ZoneType::Unknown => PLAUSIBLE_C,
    };
    zone.celsius.filter(|celsius| *celsius > low && *celsius < high)
}

fn zone_type(kind: &str) -> ZoneType {
    if kind.is_empty() {
        return ZoneType::Untyped;
    }
    let kind = kind.to_lowercase();
    let words = || kind.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let bare = |word: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let is = |word: &str, name: &str| word == name || bare(word) == name;
    let other = |word: &str| OTHER.iter().find(|(name, _)| is(word, name)).map(|(_, part)| *part);
    if let Some(part) = words().find_map(other) {
        return ZoneType::Other(part);
    }
    // the power management chips of Qualcomm: pm8150b, pmk8350
    if words().any(|word| word.starts_with("pm") && word.contains(|c: char| c.is_ascii_digit())) {
        return ZoneType::Other("power management");
    }
    let is_processor = |word: &str| {
        PROCESSOR.iter().any(|name| is(word, name))
            || PROCESSOR_PARTS.iter().any(|part| word.contains(part))
            || word.starts_with("bcm")
    };
    if words().any(is_processor) { ZoneType::Processor } else { ZoneType::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(kind: &str, celsius: f64) -> Zone {
        Zone {
            name: format!("thermal_zone_{kind}"),
            kind: kind.to_owned(),
            celsius: Some(celsius),
            ..Zone::default()
        }
    }

    /// The zones that count.
    fn used(zones: &[Zone], limits: &ZoneLimits) -> Vec<String> {
        let sample = SensorSample { zones: zones.to_vec(), ..SensorSample::default() };
        let roles = roles(&sample, limits, |_| ZoneHistory::default());
        let used = zones.iter().zip(roles).filter(|(_, role)| role.counts());
        used.map(|(zone, _)| zone.kind.clone()).collect()
    }

    /// The zones of real boards; those behind the bar do not count.
    #[test]
    fn the_zones_of_boards_are_known() {
        for (board, counted, others) in [
            ("Raspberry Pi", "cpu-thermal", ""),
            ("Raspberry Pi, older kernel", "bcm2835_thermal", ""),
            (
                "Jetson Nano",
                "AO-therm CPU-therm GPU-therm PLL-therm",
                "PMIC-Die thermal-fan-est iwlwifi",
            ),
            (
                "Jetson TX2",
                "BCPU-therm MCPU-therm GPU-therm PLL-therm",
                "Tboard_tegra Tdiode_tegra PMIC-Die thermal-fan-est",
            ),
            ("Jetson Xavier", "CPU-therm GPU-therm AUX-therm AO-therm", "PMIC-Die thermal-fan-est"),
            ("Jetson Orin", "cpu-thermal gpu-thermal cv0-thermal soc0-thermal tj-thermal", ""),
            ("Tegra, mainline", "cpu-thermal gpu-thermal pllx-thermal", "mem-thermal"),
            (
                "RK3588",
                "soc-thermal package-thermal bigcore0-thermal bigcore1-thermal littlecore-thermal \
                 center-thermal gpu-thermal npu-thermal",
                "",
            ),
            ("RK3399", "cpu-thermal gpu-thermal", ""),
            ("Amlogic", "cpu_thermal", "ddr_thermal"),
            ("i.MX8", "cpu-thermal soc-thermal", "pmic-thermal0"),
            ("AM62", "main0-thermal main1-thermal", ""),
            (
                "Snapdragon 865",
                "cpu0-thermal cpu4-top-thermal gpu-top-thermal",
                "pm8150-thermal pm8150b-thermal xo-thermal wlan-thermal camera-thermal mem-thermal",
            ),
            ("PC", "x86_pkg_temp TCPU", "acpitz pch_cannonlake iwlwifi_1 nvme battery"),
            ("old PC", "acpitz", ""),
            ("telephone", "cpuss-0", "quiet-therm skin-therm charger-therm bms usb0-thermal"),
        ] {
            let counted: Vec<&str> = counted.split_whitespace().collect();
            let others = others.split_whitespace();
            let zones: Vec<Zone> =
                counted.iter().copied().chain(others).map(|kind| zone(kind, 51.3)).collect();
            assert_eq!(used(&zones, &ZoneLimits::new()), counted, "{board}");
        }
    }

    #[test]
    fn a_reading_must_be_plausible() {
        let none = ZoneLimits::new();
        for senseless in [-273.0, -40.0, 125.0, 127.5, 200.0, f64::NAN, f64::INFINITY] {
            assert_eq!(used(&[zone("cpu-thermal", senseless)], &none), [""; 0], "{senseless}");
            // another zone stands in
            let both = [zone("cpu-thermal", senseless), zone("acpitz", 27.8)];
            assert_eq!(used(&both, &none), ["acpitz"], "{senseless}");
        }
        assert_eq!(used(&[zone("acpitz", 100.0)], &none), [""; 0], "a round number");
        assert_eq!(used(&[zone("cpu-thermal", 100.0)], &none), ["cpu-thermal"]);
    }

    #[test]
    fn the_configuration_decides() {
        let limits = ZoneLimits::from([
            ("acpitz".to_owned(), ZoneLimit::Named(ZoneUse::Use)),
            ("thermal_zone_cpu-thermal".to_owned(), ZoneLimit::Named(ZoneUse::Ignore)),
            ("pmic-die".to_owned(), ZoneLimit::Between(90.0, 110.0)),
        ]);
        let zones = [
            zone("cpu-thermal", 50.0),
            zone("acpitz", 100.0),
            zone("PMIC-Die", 100.0),
            zone("gpu-thermal", 51.0),
        ];
        assert_eq!(used(&zones, &limits), ["acpitz", "PMIC-Die", "gpu-thermal"]);
    }
}
