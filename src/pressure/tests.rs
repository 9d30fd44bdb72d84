//! The gauge: duty cycle, stages and causes for samples of heat, memory and disk.

use super::level::{PressureCause, PressureStage};
use super::*;

fn at(second: u64) -> Time {
    Time(second * 1_000_000)
}

fn zone(celsius: impl Into<Option<f64>>) -> Zone {
    Zone {
        name: "thermal_zone0".to_owned(),
        kind: "cpu-thermal".to_owned(),
        celsius: celsius.into(),
        ..Zone::default()
    }
}

fn warm(celsius: impl Into<Option<f64>>) -> SensorSample {
    SensorSample { zones: vec![zone(celsius)], ..SensorSample::default() }
}

fn free(megabytes: u64) -> SensorSample {
    let memory = Some(Amount { total: 4 << 30, available: megabytes << 20 });
    SensorSample { memory, ..SensorSample::default() }
}

#[test]
fn the_duty_cycle_falls_between_the_temperatures() {
    for (celsius, duty, stage) in [
        (50.0, 1.0, PressureStage::Calm),
        (74.0, 1.0, PressureStage::Calm),
        (76.5, 0.5, PressureStage::Paced),
        (79.0, 0.05, PressureStage::Shed),
        (81.9, 0.05, PressureStage::Shed),
        (82.0, 0.05, PressureStage::Closed),
    ] {
        let device_pressure = Gauge::default().on(&warm(celsius), at(0));
        assert!(
            (f64::from(device_pressure.duty) - duty).abs() < 1e-6,
            "{celsius}: {device_pressure:?}"
        );
        assert_eq!(device_pressure.stage, stage, "{celsius}");
    }
}

#[test]
fn a_zone_s_trip_points_set_the_range() {
    let jetson = Zone { passive: Some(95.0), hot: Some(96.0), ..zone(91.5) };
    let mut sample = SensorSample { zones: vec![jetson], ..SensorSample::default() };
    let device_pressure = Gauge::default().on(&sample, at(0));
    assert!((device_pressure.duty - 0.5).abs() < 1e-6, "{device_pressure:?}");
    sample.zones[0].celsius = Some(96.0);
    assert_eq!(Gauge::default().on(&sample, at(0)).stage, PressureStage::Closed);
    // a trip point of 0 °C means that there is none
    sample.zones[0] = Zone { passive: Some(0.0), ..zone(60.0) };
    assert_eq!(Gauge::default().on(&sample, at(0)).stage, PressureStage::Calm);
}

#[test]
fn a_rising_temperature_lowers_the_duty_cycle_early() {
    let mut gauge = Gauge::default();
    let mut duty = 1.0;
    for second in 0..10_u32 {
        duty = gauge.on(&warm(64.0 + f64::from(second)), at(second.into())).duty;
    }
    // 73 °C, rising by 1 °C each second
    assert!(duty <= 0.06, "{duty}");
    let mut steady = Gauge::default();
    for second in 0..10 {
        duty = steady.on(&warm(73.0), at(second)).duty;
    }
    assert!((duty - 1.0).abs() < 1e-6);
}

#[test]
fn a_silent_sensor_counts_as_warming_and_an_absent_one_does_not() {
    let mut gauge = Gauge::default();
    gauge.on(&warm(60.0), at(0));
    for reading in [None, Some(f64::NAN), Some(-300.0), Some(9e9), Some(f64::INFINITY)] {
        assert!(gauge.on(&warm(reading), at(33)).duty < 0.6, "{reading:?}");
    }
    assert_eq!(gauge.on(&warm(None), at(60)).stage, PressureStage::Closed);
    // its folder is gone: the duty cycle is lowered, the device is not closed
    let gone = gauge.on(&SensorSample::default(), at(60));
    assert_eq!((gone.stage, gone.cause), (PressureStage::Shed, PressureCause::Heat));
    // a valid reading counts at once
    assert_eq!(gauge.on(&warm(60.0), at(61)).stage, PressureStage::Calm);
    assert_eq!(Gauge::default().on(&warm(None), at(900)).stage, PressureStage::Calm);
}

#[test]
fn firmware_flags_lower_the_duty_cycle_and_so_does_a_slow_engine_without_sensors() {
    let weak = BoardReading { under_voltage: true, ..BoardReading::default() };
    let sample = SensorSample { board: Some(weak), ..warm(40.0) };
    assert!((Gauge::default().on(&sample, at(0)).duty - 0.5).abs() < 1e-6);
    let slow = SensorSample { rate: Some(0.6), ..SensorSample::default() };
    assert_eq!(Gauge::default().on(&slow, at(0)).stage, PressureStage::Paced);
    let slow_but_seen = SensorSample { rate: Some(0.6), ..warm(40.0) };
    assert_eq!(Gauge::default().on(&slow_but_seen, at(0)).stage, PressureStage::Calm);
    let absurd = SensorSample { rate: Some(f64::NAN), ..SensorSample::default() };
    assert_eq!(Gauge::default().on(&absurd, at(0)).stage, PressureStage::Calm);
}

#[test]
fn memory_pressure_enters_at_once_and_leaves_after_a_delay() {
    let mut gauge = Gauge::default();
    assert_eq!(gauge.on(&free(1000), at(0)).stage, PressureStage::Calm);
    assert_eq!(gauge.on(&free(200), at(1)).stage, PressureStage::Shed);
    let closed = gauge.on(&free(100), at(2));
    assert_eq!((closed.stage, closed.cause), (PressureStage::Closed, PressureCause::Memory));
    assert_eq!(gauge.on(&free(60), at(3)).stage, PressureStage::Unload);
    // a single sample with enough memory does not leave the stage
    assert_eq!(gauge.on(&free(1000), at(4)).stage, PressureStage::Unload);
    assert_eq!(gauge.on(&free(60), at(20)).stage, PressureStage::Unload);
    for second in 21..=50 {
        assert_eq!(gauge.on(&free(1000), at(second)).stage, PressureStage::Unload, "{second}");
    }
    assert_eq!(gauge.on(&free(1000), at(51)).stage, PressureStage::Calm);
    let stalled = SensorSample { stall: Some(40.0), ..free(1000) };
    assert_eq!(gauge.on(&stalled, at(60)).stage, PressureStage::Closed);
    // memory was readable and is not any more
    assert_eq!(gauge.on(&SensorSample::default(), at(200)).stage, PressureStage::Shed);
    assert_eq!(Gauge::default().on(&SensorSample::default(), at(0)).stage, PressureStage::Calm);
}

#[test]
fn a_clock_jump_discards_the_trend() {
    let mut gauge = Gauge::default();
    for second in 0..10_u32 {
        gauge.on(&warm(50.0 + f64::from(second)), at(second.into()));
    }
    // the board was suspended for an hour and is a little warmer
    assert_eq!(gauge.on(&warm(62.0), at(3600)).stage, PressureStage::Calm);
    // the clock went back
    assert_eq!(gauge.on(&warm(73.0), at(5)).stage, PressureStage::Calm);
}

#[test]
fn a_full_disk_sheds_batch_jobs() {
    let disk = |megabytes: u64| SensorSample {
        disk: Some(Amount { total: 8 << 30, available: megabytes << 20 }),
        ..SensorSample::default()
    };
    let mut gauge = Gauge::default();
    assert_eq!(gauge.on(&disk(500), at(0)).stage, PressureStage::Calm);
    let full = gauge.on(&disk(10), at(1));
    assert_eq!((full.stage, full.cause), (PressureStage::Shed, PressureCause::Disk));
    assert!(full.disk > 0.99);
}
