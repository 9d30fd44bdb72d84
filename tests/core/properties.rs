//! What holds for whatever sensors, files and records say, by proptest.

use std::path::Path;

use pilotlight::device::Sensors;
use pilotlight::pressure::level::{DevicePressure, PressureStage};
use pilotlight::pressure::{Amount, BoardReading, Bounds, Gauge, SensorSample, Zone};
use pilotlight::scheduler::explain;
use pilotlight::time::Time;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

fn zone() -> impl Strategy<Value = Zone> {
    let point = || option::of(prop_oneof![any::<f64>(), 20.0..120.0]);
    (0..4_u8, point(), point(), point()).prop_map(|(n, celsius, passive, hot)| Zone {
        name: format!("thermal_zone{n}"),
        kind: "cpu-thermal".to_owned(),
        celsius,
        passive,
        hot,
        critical: None,
    })
}

fn amount() -> impl Strategy<Value = Amount> {
    (any::<u64>(), any::<u64>()).prop_map(|(total, available)| Amount { total, available })
}

fn sample() -> impl Strategy<Value = SensorSample> {
    let any_rate = || option::of(any::<f64>());
    let parts = (vec(zone(), 0..5), any::<[bool; 4]>(), option::of(amount()), option::of(amount()));
    (parts, any_rate(), any_rate()).prop_map(|((zones, bits, memory, disk), stall, rate)| {
        let [under_voltage, capped, throttled, soft_limit] = bits;
        let board = BoardReading { under_voltage, capped, throttled, soft_limit };
        let board = bits[0].then_some(board);
        SensorSample { zones, board, memory, stall, disk, busy: None, processor_stall: stall, rate }
    })
}

fn is_possible(device_pressure: &DevicePressure) -> bool {
    let shares =
        [device_pressure.heat, device_pressure.memory, device_pressure.disk, device_pressure.duty];
    shares.iter().all(|share| (0.0..=1.0).contains(share)) && device_pressure.duty > 0.0
}

fn celsius(celsius: f64) -> SensorSample {
    let name = "thermal_zone0".to_owned();
    let zones = vec![Zone { name, celsius: Some(celsius), ..Zone::default() }];
    SensorSample { zones, ..SensorSample::default() }
}

/// A number as a record may hold it: usual, huge, tiny, negative.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1e5, -1e3..1e3, Just(1e300), Just(-1e300), Just(0.0), Just(5e-324)]
}

fn spread() -> impl Strategy<Value = Value> {
    [number(), number(), number(), number()].prop_map(
        |[p20, p50, p95, worst]| json!({"p20": p20, "p50": p50, "p95": p95, "worst": worst}),
    )
}

fn case() -> impl Strategy<Value = Value> {
    (spread(), number(), any::<u8>(), option::of(number())).prop_map(
        |(work, left, group, offload_deadline)| {
            json!({"work": work, "left": left, "group": group, "leave_by": offload_deadline})
        },
    )
}

fn word(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(words)
}

fn server() -> impl Strategy<Value = Value> {
    let lacks = word(&[
        "resting",
        "memory",
        "mode",
        "capability:model",
        "capability:schema",
        "quality:confidence",
    ]);
    (word(&["a", "b"]), word(&["device", "peer", "cloud"]), option::of(lacks), any::<bool>())
        .prop_map(|(name, place, lacks, full)| {
            json!({"server": name, "where": place, "lacks": lacks, "full": full})
        })
}

/// A record as somebody may paste it into `explain`.
fn record() -> impl Strategy<Value = Value> {
    let attempt = (word(&["a", "b", "c"]), word(&["ok", "unsure", "crashed", "cancelled", "unfit", "forbidden", "recalled", "away", "?"]))
        .prop_map(|(server, outcome)| json!({"server": server, "outcome": outcome, "ms": 3, "confidence": 0.5}));
    let figures = (
        word(&["local-only", "prefer-local", "prefer-cloud", "cloud-only"]),
        word(&["calm", "paced", "shed", "closed", "unload"]),
        (number(), spread(), vec(case(), 0..4), 0..5_usize),
        (option::of(spread()), 0..4_u32, vec(server(), 0..4), any::<bool>()),
    )
        .prop_map(|(mode, stage, (duty, ahead, line, own), (away, parallel, servers, streamed))| {
            json!({
                "mode": mode, "class": "normal", "streamed": streamed, "duty": duty, "stage": stage,
                "cause": "heat", "ahead": ahead, "line": line, "own": own, "away": away,
                "parallel": parallel, "servers": servers,
            })
        });
    let reason = word(&[
        "feasible",
        "deadline",
        "queue",
        "resting",
        "cancelled",
        "quality:confidence",
        "hot",
        "draining",
        "rule",
        "capability:context",
        "mode",
    ]);
    (word(&["local", "peer", "cloud", "none"]), reason, vec(attempt, 0..4), option::of(figures))
        .prop_map(|(route, reason, attempts, figures)| {
            json!({
                "route": route, "reason": reason, "attempts": attempts, "figures": figures,
                "pressure": {},
            })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn strain_is_possible_whatever_the_sensors_say(
        samples in vec((sample(), any::<u32>()), 1..12),
        range in option::of((any::<f64>(), any::<f64>())),
        floors in any::<[u64; 2]>(),
    ) {
        let bounds = Bounds {
            heat_c: range,
            memory_reserve: floors[0],
            disk_reserve: floors[1],
            ..Bounds::default()
        };
        let mut gauge = Gauge::new(bounds);
        for (sample, at) in samples {
            // the clock jumps as well
            let device_pressure = gauge.on(&sample, Time(at.into()));
            prop_assert!(is_possible(&device_pressure), "{device_pressure:?} of {sample:?}");
        }
    }

    #[test]
    fn who_is_hotter_computes_no_more(one in 0.0..110.0, more in 0.0..40.0) {
        let cool = Gauge::default().on(&celsius(one), Time(0));
        let warm = Gauge::default().on(&celsius(one + more), Time(0));
        prop_assert!(warm.duty <= cool.duty && warm.heat >= cool.heat && warm.stage >= cool.stage);
    }

    #[test]
    fn less_memory_opens_nothing(total in 1..1_u64 << 36, parts in any::<[u16; 2]>()) {
        let free = |part: u16| total / 65_536 * u64::from(part);
        let stage = |available| {
            let memory = Some(Amount { total, available });
            Gauge::default().on(&SensorSample { memory, ..SensorSample::default() }, Time(0)).stage
        };
        let (less, more) = (parts[0].min(parts[1]), parts[0].max(parts[1]));
        prop_assert!(stage(free(less)) >= stage(free(more)));
        prop_assert!(stage(0) >= PressureStage::Shed);
    }

    #[test]
    fn a_record_that_nobody_wrote_is_no_more_than_refused(record in record()) {
        let attempts = record["attempts"].as_array().unwrap();
        let is_known = attempts.iter().all(|attempt| attempt["outcome"] != "?");
        match serde_json::from_value(record) {
            Ok(decision) => {
                prop_assert!(is_known);
                let _ = explain(&decision);
            }
            Err(error) => {
                prop_assert!(!is_known);
                prop_assert!(error.to_string().contains("unknown variant `?`"), "{}", error);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn any_bytes_may_stand_where_the_kernel_writes(files in vec(vec(any::<u8>(), 0..40), 9)) {
        let root = tempfile::tempdir().unwrap();
        let zone = "sys/class/thermal/thermal_zone0";
        let names = ["type", "temp", "mode", "trip_point_0_type", "trip_point_0_temp"];
        let paths = names.iter().map(|name| format!("{zone}/{name}")).chain([
            "sys/devices/platform/soc/soc:firmware/get_throttled".to_owned(),
            "proc/meminfo".to_owned(),
            "proc/pressure/memory".to_owned(),
            "proc/vmstat".to_owned(),
        ]);
        for (path, bytes) in paths.zip(&files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut sensors = Sensors::new(root.path(), Path::new("."));
        for _ in 0..2 {
            let device_pressure = Gauge::default().on(&sensors.read(None), Time(0));
            prop_assert!(is_possible(&device_pressure));
        }
        sensors.findings();
    }
}
