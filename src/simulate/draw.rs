//! A day as an SVG chart: temperature, duty cycle, queue, and routes of answers.

use std::fmt::Write as _;

use super::board::SimulatedBoard;
use super::world::DayResult;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 60.0;
const HEIGHT: f64 = 90.0;
const GAP: f64 = 34.0;
/// Points of a curve at most.
const POINTS: usize = 900;

/// One curve or set of bars.
struct Panel<'a> {
    title: &'a str,
    color: &'a str,
    least: f64,
    most: f64,
    values: Vec<f64>,
    /// A line across, and what it is.
    mark: Option<(f64, &'a str)>,
}

/// The chart of one day.
#[expect(clippy::cast_precision_loss, reason = "counts of a day")]
pub fn draw(board: &SimulatedBoard, outcome: &DayResult, title: &str) -> String {
    let step = outcome.seconds.len().div_ceil(POINTS).max(1);
    let of = |value: fn(&super::world::Second) -> f64, join: fn(&[f64]) -> f64| -> Vec<f64> {
        let all: Vec<f64> = outcome.seconds.iter().map(value).collect();
        all.chunks(step).map(join).collect()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let celsius = of(|s| s.celsius, most);
    let panels = [
        Panel {
            title: "temperature, °C",
            color: "#c0392b",
            least: celsius.iter().copied().fold(board.trip_c, f64::min).floor(),
            most: most(&celsius).max(board.trip_c) + 5.0,
            values: celsius,
            mark: Some((board.trip_c, "trip point")),
        },
        panel("duty", "#8e44ad", of(|s| s.duty, mean), 1.0),
        panel("jobs waiting or running", "#2c3e50", of(|s| s.waiting as f64, most), 4.0),
        panel("answered on the device", "#27ae60", of(|s| s.here as f64, sum), 1.0),
        panel("offloaded", "#2980b9", of(|s| s.away as f64, sum), 1.0),
        panel("deadlines missed", "#e67e22", of(|s| s.missed as f64, sum), 1.0),
    ];
    let height = 40.0 + panels.len() as f64 * (HEIGHT + GAP) + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        WIDTH + LEFT + 20.0,
        escape(title)
    );
    for (n, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, 48.0 + n as f64 * (HEIGHT + GAP));
    }
    let hours = outcome.seconds.len() as f64 / 3600.0;
    // writing to a string can't fail
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{y}\">0 h</text><text x=\"{x}\" y=\"{y}\" \
         text-anchor=\"end\">{hours:.1} h</text>\n</svg>",
        y = height - 8.0,
        x = LEFT + WIDTH,
    );
    svg
}

fn panel<'a>(title: &'a str, color: &'a str, values: Vec<f64>, least: f64) -> Panel<'a> {
    let most = values.iter().copied().fold(least, f64::max);
    Panel { title, color, least: 0.0, most, values, mark: None }
}

impl Panel<'_> {
    #[expect(clippy::cast_precision_loss, reason = "points of a curve")]
    fn draw(&self, svg: &mut String, top: f64) {
        let bottom = top + HEIGHT;
        let y = |value: f64| bottom - (value - self.least) / (self.most - self.least) * HEIGHT;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\">{}</text><rect x=\"{LEFT}\" y=\"{top}\" \
             width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#ccc\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"end\">{:.1}</text>\
             <text x=\"{x}\" y=\"{bottom}\" text-anchor=\"end\">{:.0}</text>",
            top - 6.0,
            self.title,
            top + 10.0,
            self.most,
            self.least,
            x = LEFT - 6.0,
        );
        if let Some((value, name)) = self.mark {
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"#999\" \
                 stroke-dasharray=\"4\"/><text x=\"{}\" y=\"{}\" fill=\"#666\">{name}</text>",
                LEFT + WIDTH,
                LEFT + 6.0,
                y(value) + 12.0,
                at = y(value),
            );
        }
        let across = WIDTH / self.values.len().max(1) as f64;
        let points: Vec<String> = self
            .values
            .iter()
            .enumerate()
            .map(|(n, value)| format!("{:.1},{:.1}", LEFT + n as f64 * across, y(*value)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.2\"/>",
            points.join(" "),
            self.color,
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
