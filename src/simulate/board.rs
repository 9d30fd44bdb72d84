//! A board that warms when it computes, and an engine on it.
//!
//! Heat is a model of the first order: the chip tends to a temperature that depends on the air
//! around it and on how busy it is, and comes nearer to it by 1/e in the time `tau_s`.

use std::time::Duration;

/// What a board is like. The rates are those of a small quantized model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulatedBoard {
    /// Its name on the command line.
    pub name: &'static str,
    /// Tokens of a prompt read in a second, when cool.
    pub prefill: f64,
    /// Tokens written in a second, when cool.
    pub decode: f64,
    /// Degrees above the air when idle.
    pub idle_c: f64,
    /// Degrees above the air when always busy.
    pub busy_c: f64,
    /// Seconds after which a change of temperature has come to 63 %.
    pub tau_s: f64,
    /// Where the chip begins to slow itself, in degrees Celsius.
    pub trip_c: f64,
    /// Speed that is left then.
    pub throttled: f64,
    /// Temperature of the air, and by how much it swings over a day.
    pub air_c: (f64, f64),
}

/// The boards that can be simulated. Rates of the Raspberry Pis are published ones of a 0.5 B model;
/// heat is that of a board in a closed case without a fan (Pi 4), with the maker's fan (Pi 5) and
/// with its heat sink (Orin); no number here was measured by us on such a board.
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
    // the engine of the first study of these policies, on a board that gets too hot at full load
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

/// The chip's temperature over time.
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

    /// Lets time pass in which it was busy for this share of it.
    pub fn pass(&mut self, time: Duration, busy: f64, at: Duration) {
        let SimulatedBoard { air_c: (mean, swing), idle_c, busy_c, tau_s, .. } = self.board;
        let day = at.as_secs_f64() / 86_400.0 * std::f64::consts::TAU;
        // coolest at midnight, when the day begins
        let air = mean - swing * day.cos();
        let tends_to = air + idle_c + (busy_c - idle_c) * busy;
        let near = 1.0 - (-time.as_secs_f64() / tau_s).exp();
        self.celsius += (tends_to - self.celsius) * near;
    }

    /// Speed at this temperature.
    pub fn speed(&self) -> f64 {
        if self.celsius >= self.board.trip_c { self.board.throttled } else { 1.0 }
    }
}
