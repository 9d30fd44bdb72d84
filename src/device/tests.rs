//! Fixtures of real boards, and readings that are invalid or missing.

use std::fs;

use super::*;
use crate::pressure::level::PressureCause;
use crate::pressure::limit::{ZoneLimit, ZoneUse};

/// A folder with the procfs and sysfs files of a board.
fn board(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/boards");
    let text = fs::read_to_string(path.join(format!("{name}.txt"))).unwrap();
    for file in text.split("== ").skip(1) {
        let (path, content) = file.split_once('\n').unwrap();
        write(folder.path(), path, content);
    }
    folder
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn sensors(root: &Path) -> Sensors {
    Sensors::new(root, root)
}

fn temperatures(sample: &SensorSample) -> Vec<(&str, Option<f64>)> {
    sample.zones.iter().map(|zone| (zone.kind.as_str(), zone.celsius)).collect()
}

#[test]
fn the_sensors_of_a_pi_4_are_read() {
    let root = board("pi4");
    let mut sensors = sensors(root.path());
    let sample = sensors.read(None);
    assert_eq!(temperatures(&sample), [("cpu-thermal", Some(58.426))]);
    assert_eq!((sample.zones[0].critical, sample.zones[0].passive), (Some(110.0), None));
    // under-voltage and throttling happened since the last read
    let board = sample.board.unwrap();
    assert!(board.under_voltage && board.throttled, "{board:?}");
    assert!(!board.capped && !board.soft_limit, "{board:?}");
    assert_eq!(sample.memory.unwrap().available, 2_801_664 * 1024);
    // this kernel has no PSI: page faults are counted from the second sample on
    assert_eq!(sample.stall, None);
    write(root.path(), "proc/vmstat", "pgmajfault 4300\n");
    assert_eq!(sensors.read(None).stall, Some(0.0));
    write(root.path(), "proc/vmstat", "pgmajfault 9300\n");
    assert_eq!(sensors.read(None).stall, Some(20.0));
    let all: Vec<String> = sensors.findings().into_iter().map(|f| f.said).collect();
    assert!(all.iter().any(|said| said.contains("psi=1")), "{all:?}");
    assert!(all.iter().any(|said| said.contains("cgroup_enable=memory")), "{all:?}");
}

#[test]
fn the_sensors_of_a_pi_5_are_read() {
    let root = board("pi5");
    let sample = sensors(root.path()).read(None);
    assert_eq!(temperatures(&sample), [("cpu-thermal", Some(66.15))]);
    // a running fan is no capped clock
    assert_eq!(sample.board, Some(crate::pressure::BoardReading::default()));
    // a control group of 512 MiB, of which 384 are used, of these 128 by inactive file cache
    let memory = sample.memory.unwrap();
    assert_eq!((memory.total >> 20, memory.available >> 20), (512, 256));
    assert_eq!(sample.stall, Some(0.0));
}

#[test]
fn the_sensors_of_an_orin_nano_are_read() {
    let root = board("orin-nano");
    let mut sensors = sensors(root.path());
    let sample = sensors.read(None);
    assert_eq!(sample.zones.len(), 9);
    let gated = sample.zones.iter().filter(|zone| zone.celsius.is_none());
    assert!(gated.clone().count() == 3 && gated.clone().all(|zone| zone.kind.starts_with("cv")));
    let tj = sample.zones.last().unwrap();
    assert_eq!((tj.passive, tj.hot, tj.critical), (Some(95.0), Some(99.0), Some(104.5)));
    // a disabled zone has no temperature, though its file still holds one
    write(root.path(), "sys/class/thermal/thermal_zone0/mode", "disabled");
    write(root.path(), "sys/class/thermal/thermal_zone0/temp", "0");
    assert_eq!(sensors.read(None).zones[0].celsius, None);
    // only an increase of the event count matters
    assert!(!sample.board.unwrap().under_voltage);
    write(root.path(), "sys/class/hwmon/hwmon1/oc1_event_cnt", "1");
    assert!(sensors.read(None).board.unwrap().under_voltage);
    assert!(!sensors.read(None).board.unwrap().under_voltage);
    write(root.path(), "sys/class/thermal/cooling_device1/cur_state", "4");
    assert!(sensors.read(None).board.unwrap().capped);
}

/// The zones that count, and the stage of a board that is cool.
fn counted(root: &Path) -> (Vec<String>, DevicePressure) {
    let sample = sensors(root).read(None);
    let mut gauge = Gauge::default();
    let pressure = gauge.on(&sample, Time(0));
    let counted = sample.zones.iter().zip(gauge.roles()).filter(|(_, role)| role.counts());
    (counted.map(|(zone, _)| zone.kind.clone()).collect(), pressure)
}

#[test]
fn only_the_zones_of_the_processor_count() {
    for (name, expected) in [
        ("jetson-nano", "AO-therm CPU-therm GPU-therm PLL-therm"),
        (
            "rk3588",
            "soc-thermal bigcore0-thermal bigcore1-thermal littlecore-thermal center-thermal \
             gpu-thermal npu-thermal",
        ),
        ("pc", "x86_pkg_temp"),
        ("pi4", "cpu-thermal"),
        ("pi5", "cpu-thermal"),
        ("orin-nano", "cpu-thermal gpu-thermal soc0-thermal soc1-thermal soc2-thermal tj-thermal"),
    ] {
        let root = board(name);
        let (counted, pressure) = counted(root.path());
        assert_eq!(counted.join(" "), expected, "{name}");
        // the supply of the Pi 4 is weak
        let is_cool = pressure.stage < PressureStage::Shed || pressure.cause != PressureCause::Heat;
        assert!(is_cool, "{name}: {pressure:?}");
    }
}

#[test]
fn every_zone_is_shown_with_its_use() {
    let root = board("jetson-nano");
    let said = |limits: ZoneLimits| {
        let found = sensors(root.path()).with_limits(limits).findings().into_iter();
        let heat = found.filter(|finding| finding.what == "heat");
        heat.map(|finding| (finding.found, finding.said)).collect::<Vec<_>>()
    };
    let plain = said(ZoneLimits::new());
    assert_eq!(plain.len(), 7, "{plain:?}");
    let expected = "CPU-therm (thermal_zone1): 34.0 °C, passive 97, hot 100, critical 102; used";
    assert!(plain[1].0 && plain[1].1.starts_with(expected), "{plain:?}");
    let expected = "PMIC-Die (thermal_zone4): 100.0 °C, critical 124; not used: no processor's";
    assert!(!plain[4].0 && plain[4].1.starts_with(expected), "{plain:?}");
    let limits = ZoneLimits::from([
        ("cpu-therm".to_owned(), ZoneLimit::Named(ZoneUse::Ignore)),
        ("thermal_zone4".to_owned(), ZoneLimit::Between(90.0, 110.0)),
        ("gone".to_owned(), ZoneLimit::Named(ZoneUse::Use)),
    ]);
    let configured = said(limits);
    assert!(configured[1].1.contains("ignored in device_limits.zones"), "{configured:?}");
    assert!(configured[4].0 && configured[4].1.contains("used: named"), "{configured:?}");
    assert!(configured[7].1.contains("no zone has the name gone"), "{configured:?}");
    // no zone can be believed
    for zone in 0..7 {
        write(root.path(), &format!("sys/class/thermal/thermal_zone{zone}/temp"), "-273000");
    }
    let none = said(ZoneLimits::new());
    assert!(!none[0].0 && none[0].1.contains("the heat is unknown"), "{none:?}");
    let (counted, pressure) = counted(root.path());
    assert!(counted.is_empty(), "{counted:?}");
    assert_eq!((pressure.stage, pressure.heat), (PressureStage::Calm, 0.0));
}

#[test]
fn a_part_of_the_chip_that_is_switched_off_does_not_count_as_warming() {
    let root = board("orin-nano");
    let mut sensors = sensors(root.path());
    let mut gauge = Gauge::default();
    let cv = "sys/class/thermal/thermal_zone2/temp";
    write(root.path(), cv, "51000");
    gauge.on(&sensors.read(None), Time(0));
    write(root.path(), cv, "");
    let pressure = gauge.on(&sensors.read(None), Time(600_000_000));
    assert_eq!(pressure.stage, PressureStage::Calm, "{pressure:?}");
}

#[test]
fn readings_beyond_sense_are_none() {
    let root = board("pi5");
    let flags = "sys/devices/platform/soc/soc:firmware/get_throttled";
    let clock = "sys/class/thermal/cooling_device1";
    let group = "sys/fs/cgroup/system.slice/pilotlight.service";
    write(root.path(), &format!("{clock}/type"), "cpufreq-cpu0");
    let mut sensors = sensors(root.path());
    for (path, value) in [
        (flags, "ffffffff"),
        (flags, "80000000"),
        (&format!("{clock}/cur_state"), "-1"),
        (&format!("{clock}/cur_state"), "4294967295"),
        ("sys/class/hwmon/hwmon3/in0_lcrit_alarm", "-5"),
        ("sys/class/hwmon/hwmon3/in0_lcrit_alarm", "99999"),
    ] {
        write(root.path(), path, value);
        let board = sensors.read(None).board.unwrap_or_default();
        assert_eq!(board, crate::pressure::BoardReading::default(), "{path}: {value}");
    }
    write(root.path(), &format!("{clock}/max_state"), "4");
    write(root.path(), &format!("{clock}/cur_state"), "5");
    assert!(!sensors.read(None).board.unwrap_or_default().capped, "beyond its highest state");
    write(root.path(), &format!("{clock}/cur_state"), "4");
    assert!(sensors.read(None).board.unwrap().capped);

    let mut megabytes = |path: &str, value: &str| {
        write(root.path(), path, value);
        sensors.read(None).memory.map(|memory| (memory.total >> 20, memory.available >> 20))
    };
    // a control group that could not hold this service, or uses far more than its limit
    assert_eq!(megabytes(&format!("{group}/memory.max"), "0"), Some((8051, 6652)));
    assert_eq!(megabytes(&format!("{group}/memory.max"), "9000000"), Some((8051, 6652)));
    assert_eq!(megabytes(&format!("{group}/memory.max"), "max"), Some((8051, 6652)));
    // a limit that is less, or that of a group above
    assert_eq!(megabytes(&format!("{group}/memory.high"), "536870912"), Some((512, 256)));
    let above = "sys/fs/cgroup/system.slice";
    write(root.path(), &format!("{above}/memory.current"), "104857600");
    assert_eq!(megabytes(&format!("{above}/memory.max"), "268435456"), Some((256, 156)));
    write(root.path(), &format!("{above}/memory.max"), "max");
    write(root.path(), &format!("{group}/memory.high"), "max");
    let info = |total: &str, free: &str, available: &str| {
        format!("MemTotal: {total} kB\nMemFree: {free} kB\nMemAvailable: {available} kB\n")
    };
    for (text, expected) in [
        (info("8245120", "1024000", "0"), Some((8051, 1000))),
        (info("8245120", "0", "0"), Some((8051, 0))),
        (info("0", "0", "0"), None),
        (info("9007199254740992", "1024", "1024"), None),
        (info("-1", "1024", "1024"), None),
    ] {
        assert_eq!(megabytes("proc/meminfo", &text), expected, "{text}");
    }
    write(root.path(), "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "not a \u{1b}[31m");
    assert_eq!(governor(root.path()), None);
    // a file system that is no disk has no size
    assert_eq!(disk(Path::new("/proc")), None);
}

#[test]
fn a_virtual_machine_has_no_thermal_zones() {
    let root = board("vm");
    let sensors = &mut sensors(root.path());
    let psi = "some avg10=35.50 avg60=8.00 avg300=1.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    write(root.path(), "proc/pressure/cpu", psi);
    let sample = sensors.read(Some(0.9));
    assert_eq!((sample.zones.len(), sample.board), (0, None));
    assert_eq!(sample.processor_stall, Some(35.5));
    assert_eq!((sample.memory.unwrap().total, sample.rate), (4_030_464 * 1024, Some(0.9)));
    assert!(!sensors.findings()[0].found);
}

#[test]
fn unreadable_values_are_absent() {
    let root = board("pi5");
    let mut sensors = sensors(root.path());
    let zone = "sys/class/thermal/thermal_zone0/temp";
    for nonsense in ["", "warm", "\u{0}", "12x"] {
        write(root.path(), zone, nonsense);
        assert_eq!(sensors.read(None).zones[0].celsius, None, "{nonsense:?}");
    }
    // the gauge ignores temperatures that no board can have
    write(root.path(), zone, "-274000");
    let sample = sensors.read(None);
    assert_eq!(Gauge::default().on(&sample, Time(0)).stage, PressureStage::Calm);
    fs::write(root.path().join(zone), [0xff, 0xfe]).unwrap();
    assert_eq!(sensors.read(None).zones[0].celsius, None);
    for (path, nonsense) in [
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "zz"),
        ("proc/pressure/memory", "some avg10=-3 x"),
        ("proc/pressure/memory", "some avg10=NaN"),
        ("proc/meminfo", "MemTotal: 5 kB\nMemAvailable: 99 kB"),
        ("proc/meminfo", "MemTotal: 99999999999999999999 kB"),
    ] {
        write(root.path(), path, nonsense);
        sensors.read(None);
    }
    assert_eq!(sensors.read(None).memory, None);
    fs::remove_dir_all(root.path().join("sys")).unwrap();
    assert!(sensors.read(None).zones.is_empty());
}

#[test]
fn this_machine_can_be_read() {
    let sample = Sensors::new(Path::new("/"), Path::new("/")).read(None);
    assert!(sample.memory.is_some() && sample.disk.is_some(), "{sample:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warming_board_lowers_its_duty_cycle() {
    let root = board("pi5");
    let (readings, mut reading) = watch::channel(SensorReading::default());
    let (pressures, mut device_pressure) = watch::channel(DevicePressure::default());
    let (_rate, rate) = watch::channel(None);
    let (_bounds, bounds) = watch::channel(Bounds::default());
    let stop = CancellationToken::new();
    let watched = watch(sensors(root.path()), bounds, rate, (readings, pressures), stop.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(watched);
    reading.wait_for(|reading| !reading.sample.zones.is_empty()).await.unwrap();
    write(root.path(), "sys/class/thermal/thermal_zone0/temp", "76500");
    let paced = device_pressure
        .wait_for(|device_pressure| device_pressure.stage == PressureStage::Paced)
        .await
        .unwrap()
        .duty;
    assert!((paced - 0.5).abs() < 0.01, "{paced}");
    write(root.path(), "sys/class/thermal/thermal_zone0/temp", "90000");
    device_pressure
        .wait_for(|device_pressure| device_pressure.stage == PressureStage::Closed)
        .await
        .unwrap();
    stop.cancel();
    tasks.join_all().await;
}

#[tokio::test]
async fn a_psi_trigger_is_registered_only_with_the_kernel() {
    // a regular file below another root folder is no PSI file
    let root = board("vm");
    write(root.path(), "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    assert!(!Trigger::new(root.path()).is_there());
    let text = fs::read_to_string(root.path().join("proc/pressure/memory")).unwrap();
    assert!(text.starts_with("some avg10"), "the file was overwritten: {text:?}");
    let has_triggers = fs::OpenOptions::new().write(true).open("/proc/pressure/memory").is_ok();
    let trigger = Trigger::new(Path::new("/"));
    assert_eq!(trigger.is_there(), has_triggers);
    // without memory pressure the trigger does not fire
    let soon = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(soon, trigger.fired()).await.is_err() || has_triggers);
}

#[test]
fn the_processor_usage_of_this_machine_is_measured() {
    let mut own = Sensors::new(Path::new("/"), Path::new("."));
    assert_eq!(own.read(None).busy, None, "one sample has no usage");
    let _ = (0..400_000_000_u64).fold(0_u64, |sum, n| std::hint::black_box(sum ^ n));
    let busy = own.read(None).busy.unwrap();
    assert!(busy > 0.05 && busy <= 1.0, "{busy}");
    let other = board("vm");
    assert_eq!(sensors(other.path()).read(None).busy, None);
}
