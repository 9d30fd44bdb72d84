//! Simulated boards: speed of an engine and a thermal model.
//!
//! The thermal model is of the first order: the chip approaches a temperature that depends on the
//! ambient one and on the load, with the time constant `tau_s`.

use std::time::Duration;

/// A simulated board. The rates are those of a small quantized model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulatedBoard {
    /// Its name on the command line.
    pub name: &'static str,
    /// Tokens of a prompt read in a second, when cool.
    pub prefill: f64,
    /// Tokens written in a second, when cool.
    pub decode: f64,
    /// Degrees above ambient when idle.
    pub idle_c: f64,
    /// Degrees above ambient at full load.
    pub busy_c: f64,
    /// Time constant of the temperature, in seconds: 63 % of a change.
    pub tau_s: f64,
    /// Trip point, in degrees Celsius, from which on the chip throttles.
    pub trip_c: f64,
    /// Speed above the trip point, 0 ..= 1.
    pub throttled: f64,
    /// Ambient temperature in degrees Celsius: mean, and amplitude over a day.
    pub air_c: (f64, f64),
}

/// The boards that can be simulated. Rates of the Raspberry Pis are published ones of a 0.5 B model;
/// heat is that of a board in a closed case without a fan (Pi 4), with the maker's fan (Pi 5) and
/// with its heat sink (Orin); none of these numbers was measured on such a board.
pub const BOARDS: [SimulatedBoard; 4] = [
    SimulatedBoard {
        name: "pi4",
        prefill: 30.0,
        decode: 7.9,
        idle_c: 22.0,
        busy_c: 60.0,
        tau_s: 240.0,
        trip_c: 80.0,
        throttled: 0.6,
        air_c: (25.0, 6.0),
    },
    SimulatedBoard {
        name: "pi5",
        prefill: 80.0,
        decode: 20.4,
        idle_c: 22.0,
        busy_c: 52.0,
        tau_s: 120.0,
        trip_c: 80.0,
        throttled: 0.6,
        air_c: (25.0, 6.0),
    },
    SimulatedBoard {
        name: "orin",
        prefill: 800.0,
        decode: 60.0,
        idle_c: 25.0,
        busy_c: 55.0,
        tau_s: 300.0,
        trip_c: 95.0,
        throttled: 0.5,
        air_c: (30.0, 8.0),
    },
    // for the comparison of policies: a board that exceeds its trip point at full load
    SimulatedBoard {
        name: "study",
        prefill: 80.0,
        decode: 12.0,
        idle_c: 22.0,
        busy_c: 56.0,
        tau_s: 120.0,
        trip_c: 80.0,
        throttled: 0.6,
        air_c: (25.0, 4.0),
    },
];

/// The temperature of the chip over time.
#[derive(Debug, Clone, Copy)]
pub struct Chip {
    board: SimulatedBoard,
    /// Degrees Celsius.
    pub celsius: f64,
}

impl Chip {
    /// A board that has been idle.
    pub fn new(board: SimulatedBoard) -> Chip {
        Chip { board, celsius: board.air_c.0 + board.idle_c }
    }

    /// Advances the temperature by a time during which the chip was busy for this share.
    pub fn pass(&mut self, time: Duration, busy: f64, at: Duration) {
        let SimulatedBoard { air_c: (mean, swing), idle_c, busy_c, tau_s, .. } = self.board;
        let day = at.as_secs_f64() / 86_400.0 * std::f64::consts::TAU;
        // coolest at midnight, when the day begins
        let air = mean - swing * day.cos();
        let tends_to = air + idle_c + (busy_c - idle_c) * busy;
        let near = 1.0 - (-time.as_secs_f64() / tau_s).exp();
        self.celsius += (tends_to - self.celsius) * near;
    }

    /// Speed at this temperature, 0 ..= 1.
    pub fn speed(&self) -> f64 {
        if self.celsius >= self.board.trip_c { self.board.throttled } else { 1.0 }
    }
}
