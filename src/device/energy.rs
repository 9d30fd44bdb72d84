//! Electric energy that the machine uses, where it tells it.
//!
//! Sources: the energy counters of Intel's RAPL (Documentation/power/powercap/powercap.rst of the Linux kernel), which
//! only root may read; the sum of voltage times current, or the power, of hardware monitors at the supply of a board
//! (Documentation/hwmon/ina3221.rst, ina2xx.rst). A Jetson names the channel of its supply `VDD_IN` or `POM_5V_IN`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::files::{folders, number, text};

/// Names of the channel that supplies a whole board.
const SUPPLIES: [&str; 3] = ["VDD_IN", "POM_5V_IN", "VDD_5V_IN"];
/// Monitors of one channel that tell its power.
const MONITORS: [&str; 4] = ["ina219", "ina226", "ina231", "ina238"];
/// Channels of a monitor.
const CHANNELS_MAX: u32 = 8;
/// Most power of a board or its processor, in watts: more is a wrong reading.
const WATTS_MAX: f64 = 5000.0;

/// A meter of energy from [`EnergyMeter::start`] on.
#[derive(Debug)]
pub struct EnergyMeter {
    source: EnergySource,
    /// The counter, or the power in watts, at the last reading.
    last: Option<(f64, Instant)>,
    joules: f64,
    is_broken: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum EnergySource {
    /// Folders of counters, in microjoules.
    Counters(Vec<PathBuf>),
    /// Files of the voltage in millivolts and of the current in milliamperes.
    Supply(PathBuf, PathBuf),
    /// File of the power in microwatts.
    Power(PathBuf),
}

impl EnergyMeter {
    /// The meter of the machine whose files are below this root folder, if it tells its energy.
    pub fn find(root: &Path) -> Option<EnergyMeter> {
        let source = supply(root).or_else(|| power(root)).or_else(|| counters(root))?;
        Some(EnergyMeter { source, last: None, joules: 0.0, is_broken: false })
    }

    /// What is measured.
    pub fn source(&self) -> &'static str {
        match self.source {
            EnergySource::Counters(_) => "the processor packages (RAPL)",
            EnergySource::Supply(..) | EnergySource::Power(_) => "the supply of the board",
        }
    }

    /// Begins at 0.
    pub fn start(&mut self, now: Instant) {
        (self.last, self.joules, self.is_broken) = (None, 0.0, false);
        self.read(now);
    }

    /// Reads the sensor; one of power is to be read often.
    pub fn read(&mut self, now: Instant) {
        let Some(value) = self.source.value() else {
            self.is_broken = true;
            return;
        };
        if let Some((before, at)) = self.last {
            let seconds = now.duration_since(at).as_secs_f64();
            match self.source.joules(before, value, seconds) {
                Some(joules) => self.joules += joules,
                None => self.is_broken = true,
            }
        }
        self.last = Some((value, now));
    }

    /// Joules since the start; none if the sensor could not be read each time.
    pub fn joules(&mut self, now: Instant) -> Option<f64> {
        self.read(now);
        (!self.is_broken).then_some(self.joules)
    }
}

impl EnergySource {
    /// The sum of the counters, or the power in watts.
    fn value(&self) -> Option<f64> {
        match self {
            EnergySource::Counters(all) => {
                all.iter().map(|folder| number(&folder.join("energy_uj"))).sum()
            }
            EnergySource::Supply(volts, amperes) => {
                let watts = number(volts)? * number(amperes)? / 1e6;
                (0.0..=WATTS_MAX).contains(&watts).then_some(watts)
            }
            EnergySource::Power(file) => {
                let watts = number(file)? / 1e6;
                (0.0..=WATTS_MAX).contains(&watts).then_some(watts)
            }
        }
    }

    /// The energy between two readings.
    fn joules(&self, before: f64, value: f64, seconds: f64) -> Option<f64> {
        let joules = match self {
            EnergySource::Counters(all) if value < before => {
                // one of them began again
                let ranges = all.iter().map(|folder| number(&folder.join("max_energy_range_uj")));
                let least = ranges.flatten().reduce(f64::min)?;
                (value - before + least) / 1e6
            }
            EnergySource::Counters(_) => (value - before) / 1e6,
            EnergySource::Supply(..) | EnergySource::Power(_) => {
                f64::midpoint(before, value) * seconds
            }
        };
        (0.0..=WATTS_MAX * seconds.max(1.0)).contains(&joules).then_some(joules)
    }
}

/// The counters of the processor packages.
fn counters(root: &Path) -> Option<EnergySource> {
    let packages = folders(&root.join("sys/class/powercap"), "intel-rapl:");
    let is_package = |folder: &PathBuf| {
        text(&folder.join("name")).is_some_and(|name| name.starts_with("package"))
            && number(&folder.join("energy_uj")).is_some()
    };
    let packages: Vec<_> = packages.into_iter().filter(is_package).collect();
    (!packages.is_empty()).then_some(EnergySource::Counters(packages))
}

fn monitors(root: &Path, names: &[&str]) -> Vec<PathBuf> {
    let mut all = folders(&root.join("sys/class/hwmon"), "hwmon");
    all.retain(|folder| text(&folder.join("name")).is_some_and(|name| names.contains(&&*name)));
    all
}

fn supply(root: &Path) -> Option<EnergySource> {
    monitors(root, &["ina3221"]).into_iter().find_map(|folder| {
        let channel = (1..=CHANNELS_MAX).find(|n| {
            let label = text(&folder.join(format!("in{n}_label")));
            label.is_some_and(|label| SUPPLIES.contains(&&*label))
        })?;
        let file = |kind: &str| folder.join(format!("{kind}{channel}_input"));
        let source = EnergySource::Supply(file("in"), file("curr"));
        source.value().is_some().then_some(source)
    })
}

fn power(root: &Path) -> Option<EnergySource> {
    monitors(root, &MONITORS).into_iter().find_map(|folder| {
        let source = EnergySource::Power(folder.join("power1_input"));
        source.value().is_some().then_some(source)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::clock::now;

    /// A root folder with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), files);
        root
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// The joules of two seconds, in each of which one of these is written.
    fn measured(root: &Path, files: [&[(&str, &str)]; 2]) -> Option<f64> {
        let mut meter = EnergyMeter::find(root).unwrap();
        let start = now();
        meter.start(start);
        write(root, files[0]);
        meter.read(start + Duration::from_secs(1));
        write(root, files[1]);
        meter.joules(start + Duration::from_secs(2))
    }

    const JETSON: &[(&str, &str)] = &[
        ("sys/class/hwmon/hwmon2/name", "ina3221\n"),
        ("sys/class/hwmon/hwmon2/in1_label", "VDD_CPU_GPU_CV\n"),
        ("sys/class/hwmon/hwmon2/in2_label", "VDD_IN\n"),
        ("sys/class/hwmon/hwmon2/in2_input", "5000\n"),
        ("sys/class/hwmon/hwmon2/curr2_input", "1000\n"),
    ];

    #[test]
    fn the_supply_of_a_jetson_is_voltage_times_current() {
        let root = root(JETSON);
        let current = "sys/class/hwmon/hwmon2/curr2_input";
        // 5 W, 15 W, 5 W
        let joules = measured(root.path(), [&[(current, "3000")], &[(current, "1000")]]);
        assert!((joules.unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_counter_may_begin_again() {
        let package = |file: &str| format!("sys/class/powercap/intel-rapl:0/{file}");
        let (name, energy, range) =
            (package("name"), package("energy_uj"), package("max_energy_range_uj"));
        let root = root(&[(&name, "package-0"), (&energy, "9000000"), (&range, "10000000")]);
        // 0.5 J, then 0.7 J over the end of the range
        let joules = measured(root.path(), [&[(&energy, "9500000")], &[(&energy, "200000")]]);
        assert!((joules.unwrap() - 1.2).abs() < 1e-9);
    }

    #[test]
    fn a_monitor_of_one_channel_tells_its_power() {
        let root = root(&[
            ("sys/class/hwmon/hwmon0/name", "ina219"),
            ("sys/class/hwmon/hwmon0/power1_input", "4000000"),
        ]);
        let joules = measured(root.path(), [&[], &[]]);
        assert!((joules.unwrap() - 8.0).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_reading_is_no_energy() {
        let root = root(JETSON);
        let current = "sys/class/hwmon/hwmon2/curr2_input";
        assert_eq!(measured(root.path(), [&[(current, "65535000")], &[(current, "1000")]]), None);
        assert_eq!(measured(root.path(), [&[(current, "none")], &[(current, "1000")]]), None);
    }

    #[test]
    fn a_machine_without_a_meter_has_none() {
        let other = root(&[
            ("sys/class/hwmon/hwmon0/name", "coretemp"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0"),
            ("sys/class/hwmon/hwmon1/name", "ina3221"),
            ("sys/class/hwmon/hwmon1/in1_label", "VDD_SOC"),
            ("sys/class/hwmon/hwmon1/in1_input", "5000"),
            ("sys/class/hwmon/hwmon1/curr1_input", "1000"),
        ]);
        assert!(EnergyMeter::find(other.path()).is_none());
    }
}
