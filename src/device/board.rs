//! Firmware flags of supply voltage and clock: Raspberry Pi and Jetson.

use std::path::Path;

use super::SensorFinding;
use super::files::{folders, monitor, number, text};
use crate::pressure::BoardReading;

/// The flags of a Raspberry Pi as a hexadecimal number without `0x`. Bits 0 to 3: under-voltage,
/// clock capped, throttled, soft temperature limit; bits 16 to 19: the same since the last read.
const PI: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";

/// The most states of a cooling device that states none: one for each clock frequency.
const STATES_MAX: f64 = 1000.0;
/// The bits of a Raspberry Pi that are defined. A number with others is no flags: a firmware that can't
/// answer returns all bits.
const PI_BITS: u32 = 0x000f_000f;

/// The state from one sample to the next.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    /// The count of a Jetson's over-current events.
    over_current: Option<u64>,
}

impl Firmware {
    /// The flags of all sources together; none if the board has no such source.
    pub(super) fn read(&mut self, root: &Path) -> Option<BoardReading> {
        let all = [raspberry(root), low_voltage(root), self.jetson(root), cooling(root)];
        all.into_iter().flatten().reduce(|a, b| BoardReading {
            under_voltage: a.under_voltage || b.under_voltage,
            capped: a.capped || b.capped,
            throttled: a.throttled || b.throttled,
            soft_limit: a.soft_limit || b.soft_limit,
        })
    }

    /// A Jetson counts over-current events: an increase means under-voltage.
    fn jetson(&mut self, root: &Path) -> Option<BoardReading> {
        let folder = monitor(root, "soctherm_oc")?;
        let counts = (1..=8).filter_map(|n| {
            let count: u64 = text(&folder.join(format!("oc{n}_event_cnt")))?.parse().ok()?;
            Some(count)
        });
        let sum = counts.fold(0, u64::saturating_add);
        let before = self.over_current.replace(sum);
        let more = before.is_some_and(|before| sum > before);
        Some(BoardReading { under_voltage: more, ..BoardReading::default() })
    }
}

fn raspberry(root: &Path) -> Option<BoardReading> {
    let flags = text(&root.join(PI))?;
    let bits = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    if bits & !PI_BITS != 0 {
        return None;
    }
    let is_set = |bit: u32| (bits | bits >> 16) >> bit & 1 == 1;
    Some(BoardReading {
        under_voltage: is_set(0),
        capped: is_set(1),
        throttled: is_set(2),
        soft_limit: is_set(3),
    })
}

fn low_voltage(root: &Path) -> Option<BoardReading> {
    let alarm = text(&monitor(root, "rpi_volt")?.join("in0_lcrit_alarm"))?;
    let under_voltage = match alarm.as_str() {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    Some(BoardReading { under_voltage, ..BoardReading::default() })
}

/// The cooling devices that lower a processor's clock: above state 0 the clock is capped. A state beyond
/// the highest one that the device has is none.
fn cooling(root: &Path) -> Option<BoardReading> {
    let devices = folders(&root.join("sys/class/thermal"), "cooling_device");
    let states = devices.iter().filter_map(|path| {
        let kind = text(&path.join("type"))?.to_lowercase();
        let is_clock = kind.contains("cpufreq") || kind.contains("devfreq");
        let state = number(&path.join("cur_state")).filter(|_| is_clock)?;
        let most = number(&path.join("max_state")).unwrap_or(STATES_MAX);
        (0.0..=most).contains(&state).then_some(state)
    });
    let most = states.reduce(f64::max)?;
    Some(BoardReading { capped: most > 0.0, ..BoardReading::default() })
}

pub(super) fn finding(root: &Path) -> SensorFinding {
    let mut sources = Vec::new();
    if raspberry(root).is_some() {
        sources.push("get_throttled of a Raspberry Pi's firmware");
    }
    if low_voltage(root).is_some() {
        sources.push("the under-voltage alarm of rpi_volt");
    }
    if monitor(root, "soctherm_oc").is_some() {
        sources.push("over-current events of a Jetson");
    }
    if cooling(root).is_some() {
        sources.push("the clock's cooling device");
    }
    let found = !sources.is_empty();
    let said = if found { sources.join(", ") } else { "no power supply sensor".to_owned() };
    SensorFinding { what: "power and clock", found, said }
}
