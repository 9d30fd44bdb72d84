//! Boards as their kernels show them, and what becomes of readings that can't be.

use std::fs;

use super::*;

/// A board's files, written out below a folder.
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
fn a_pi_4_is_understood() {
    let root = board("pi4");
    let mut sensors = sensors(root.path());
    let sample = sensors.read(None);
    assert_eq!(temperatures(&sample), [("cpu-thermal", Some(58.426))]);
    assert_eq!((sample.zones[0].critical, sample.zones[0].passive), (Some(110.0), None));
    // it was under-volted and throttled since the last poll
    let said = sample.board.unwrap();
    assert!(said.under_voltage && said.throttled && !said.capped && !said.soft_limit, "{said:?}");
    assert_eq!(sample.memory.unwrap().available, 2_801_664 * 1024);
    // no pressure stalls on this kernel: faults are counted, from the second reading on
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
fn a_pi_5_is_understood() {
    let root = board("pi5");
    let sample = sensors(root.path()).read(None);
    assert_eq!(temperatures(&sample), [("cpu-thermal", Some(66.15))]);
    // a fan that turns is no clock that is held down
    assert_eq!(sample.board, Some(crate::pressure::BoardReading::default()));
    // 512 MiB for us, 384 of them taken, 128 of these by files that can go
    let memory = sample.memory.unwrap();
    assert_eq!((memory.total >> 20, memory.available >> 20), (512, 256));
    assert_eq!(sample.stall, Some(0.0));
}

#[test]
fn an_orin_nano_is_understood() {
    let root = board("orin-nano");
    let mut sensors = sensors(root.path());
    let sample = sensors.read(None);
    assert_eq!(sample.zones.len(), 9);
    let gated = sample.zones.iter().filter(|zone| zone.celsius.is_none());
    assert!(gated.clone().count() == 3 && gated.clone().all(|zone| zone.kind.starts_with("cv")));
    let tj = sample.zones.last().unwrap();
    assert_eq!((tj.passive, tj.hot, tj.critical), (Some(95.0), Some(99.0), Some(104.5)));
    // one that is turned off says nothing, whatever still stands in its file
    write(root.path(), "sys/class/thermal/thermal_zone0/mode", "disabled");
    write(root.path(), "sys/class/thermal/thermal_zone0/temp", "0");
    assert_eq!(sensors.read(None).zones[0].celsius, None);
    // events that were there before are no news
    assert!(!sample.board.unwrap().under_voltage);
    write(root.path(), "sys/class/hwmon/hwmon1/oc1_event_cnt", "1");
    assert!(sensors.read(None).board.unwrap().under_voltage);
    assert!(!sensors.read(None).board.unwrap().under_voltage);
    write(root.path(), "sys/class/thermal/cooling_device1/cur_state", "4");
    assert!(sensors.read(None).board.unwrap().capped);
}

#[test]
fn a_virtual_machine_has_no_heat_to_tell() {
    let root = board("vm");
    let sensors = &mut sensors(root.path());
    let sample = sensors.read(Some(0.9));
    assert_eq!((sample.zones.len(), sample.board), (0, None));
    assert_eq!((sample.memory.unwrap().total, sample.rate), (4_030_464 * 1024, Some(0.9)));
    assert!(!sensors.findings()[0].found);
}

#[test]
fn what_can_not_be_read_is_absent() {
    let root = board("pi5");
    let mut sensors = sensors(root.path());
    let zone = "sys/class/thermal/thermal_zone0/temp";
    for nonsense in ["", "warm", "\u{0}", "12x"] {
        write(root.path(), zone, nonsense);
        assert_eq!(sensors.read(None).zones[0].celsius, None, "{nonsense:?}");
    }
    // the gauge knows that no board is at absolute zero
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
async fn a_board_that_warms_slows_down() {
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
async fn the_kernel_is_asked_to_tell_when_memory_runs_short() {
    // a file below a root of one's own is not the kernel's
    let root = board("vm");
    write(root.path(), "proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    assert!(!Trigger::new(root.path()).is_there());
    let text = fs::read_to_string(root.path().join("proc/pressure/memory")).unwrap();
    assert!(text.starts_with("some avg10"), "it was written over: {text:?}");
    let has_triggers = fs::OpenOptions::new().write(true).open("/proc/pressure/memory").is_ok();
    let trigger = Trigger::new(Path::new("/"));
    assert_eq!(trigger.is_there(), has_triggers);
    // nothing waits for memory here, most of the time: it does not tell for nothing
    let soon = std::time::Duration::from_millis(200);
    assert!(tokio::time::timeout(soon, trigger.fired()).await.is_err() || has_triggers);
}

#[test]
fn the_processors_of_this_machine_are_counted() {
    let mut here = Sensors::new(Path::new("/"), Path::new("."));
    assert_eq!(here.read(None).busy, None, "one reading tells nothing");
    let _ = (0..400_000_000_u64).fold(0_u64, |sum, n| std::hint::black_box(sum ^ n));
    let busy = here.read(None).busy.unwrap();
    assert!(busy > 0.05 && busy <= 1.0, "{busy}");
    let elsewhere = board("vm");
    assert_eq!(sensors(elsewhere.path()).read(None).busy, None);
}
