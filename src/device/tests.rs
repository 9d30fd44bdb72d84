//! Fixtures of real boards, and readings that are invalid or missing.

use std::fs;

use super::*;

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

#[test]
fn a_virtual_machine_has_no_thermal_zones() {
    let root = board("vm");
    let sensors = &mut sensors(root.path());
    let sample = sensors.read(Some(0.9));
    assert_eq!((sample.zones.len(), sample.board), (0, None));
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
    let stop = CancellationToken::new();
    let watched =
        watch(sensors(root.path()), Bounds::default(), rate, (readings, pressures), stop.clone());
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
