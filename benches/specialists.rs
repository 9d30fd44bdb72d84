//! Ways to classify short prompts, side by side in one run: a label written by a language model,
//! labels scored by it with three calibrations, a sentence encoder, and the chain of encoder and
//! language model at several margins.
//!
//! The prompts are those of `tests/data`: 304 that are asked, balanced over the labels, and others
//! that serve as examples; the skewed streams draw four of five from one label. A second language
//! model is measured too if `SECOND_GGUF` names its file. Prints the tables and writes the picture
//! of the chain to `docs/specialists.svg`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pilotlight::engines::worker::{Calibration, OnThread};
use pilotlight::engines::{gguf, onnx};
use pilotlight::model::generate::Generate;
use pilotlight::request::format::Format;
use serde_json::json;
use support::contract::{job, run};
use support::figures::median;
use support::labelled::{TASKS, encoder, label_job, labels, prompts};
use support::{model_file, runtime};

/// Prompts of a skewed stream, and the share of its most frequent label.
const STREAM: usize = 60;
const SKEW: f64 = 0.8;
const MARGINS: [f32; 9] = [0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// What was said of one prompt.
#[derive(Clone, Copy)]
struct Said {
    right: bool,
    sure: f32,
    ms: f64,
}

type PerTask = Vec<Vec<Said>>;

async fn language_model(path: &Path, calibration: Calibration) -> OnThread {
    let options = gguf::GgufOptions {
        path: path.to_owned(),
        name: None,
        context_tokens: 2048,
        threads: 2,
        decode_threads: 1,
        gpu_layers: 0,
        calibration,
        prefixes: None,
    };
    gguf::open(options).await.unwrap()
}

async fn sentence_encoder() -> OnThread {
    let options = onnx::OnnxOptions {
        context_tokens: 256,
        threads: 1,
        runtime: Some(runtime()),
        ..onnx::OnnxOptions::of(encoder())
    };
    onnx::open(options).await.unwrap()
}

/// Asks for the labels of all test prompts; the order is mixed, the first answer (which also learns
/// the examples) is asked once before.
async fn classify(model: &dyn Generate, stream: impl Fn(&str) -> Vec<(String, String)>) -> PerTask {
    let mut all = Vec::new();
    for task in TASKS {
        let labels = labels(task);
        let mut said = Vec::new();
        run(model, &label_job("first", &labels)).await.unwrap();
        for (label, text) in stream(task) {
            let started = Instant::now();
            let (_, usage) = run(model, &label_job(&text, &labels)).await.unwrap();
            let ms = started.elapsed().as_secs_f64() * 1e3;
            let answer = usage.classification.unwrap();
            said.push(Said { right: answer.label == label, sure: answer.confidence, ms });
        }
        all.push(said);
    }
    all
}

/// Lets the model write the label, after one example of each; freely, or as JSON that can't be
/// anything but a label.
async fn written(model: &dyn Generate, held: bool) -> PerTask {
    let mut all = Vec::new();
    for task in TASKS {
        let labels = labels(task);
        let mut shown = String::new();
        for (label, texts) in &labels.examples {
            write!(shown, "Text: {}\nLabel: {label}\n\n", texts[0]).unwrap();
        }
        let mut said = Vec::new();
        for (label, text) in mixed(task) {
            let mut job = job(&format!("{shown}Text: {text}\nLabel:"), 8);
            if held {
                let names: Vec<&str> = labels.names().collect();
                job.format = Format::Schema(json!({"enum": names}).into());
            } else {
                job.sampling.stop = vec!["\n".to_owned()];
            }
            job.sampling.temperature = Some(0.0);
            let started = Instant::now();
            let (answer, _) = run(model, &job).await.unwrap();
            let ms = started.elapsed().as_secs_f64() * 1e3;
            let answer = answer.trim().trim_matches('"').to_lowercase();
            let right = answer.starts_with(&label);
            said.push(Said { right, sure: 1.0, ms });
        }
        all.push(said);
    }
    all
}

/// The test prompts of a task in an order that does not follow their labels, always the same.
fn mixed(task: &str) -> Vec<(String, String)> {
    let mut all = prompts(task, "test");
    fastrand::Rng::with_seed(1).shuffle(&mut all);
    all
}

/// Prompts of which most have one label; each label is the frequent one in a stream of its own.
fn skewed(task: &str) -> Vec<(String, String)> {
    let (all, labels) = (prompts(task, "test"), labels(task));
    let mut random = fastrand::Rng::with_seed(2);
    let mut stream = Vec::new();
    for frequent in labels.names() {
        for _ in 0..STREAM {
            let of_frequent = random.f64() < SKEW;
            let fitting: Vec<_> =
                all.iter().filter(|(label, _)| (label == frequent) == of_frequent).collect();
            stream.push((*random.choice(&fitting).unwrap()).clone());
        }
    }
    stream
}

/// The share that is right, and the half width of its 95 % interval: Wilson 1927.
fn share(right: usize, all: usize) -> (f64, f64) {
    let (n, p, z) = (all as f64, right as f64 / all as f64, 1.96_f64);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    (p * 100.0, half * 100.0)
}

fn print_row(name: &str, figures: &PerTask) {
    let mut cells = vec![name.to_owned()];
    let (mut right, mut all, mut times) = (0, 0, Vec::new());
    for said in figures {
        let hits = said.iter().filter(|said| said.right).count();
        let (p, half) = share(hits, said.len());
        cells.push(format!("{p:.0} ± {half:.0}"));
        (right, all) = (right + hits, all + said.len());
        times.extend(said.iter().map(|said| said.ms));
    }
    let (p, half) = share(right, all);
    cells.push(format!("{p:.0} ± {half:.0}"));
    cells.push(format!("{:.1}", median(&mut times)));
    support::print_row(&cells);
}

fn print_head(title: &str) {
    println!("\n{title}\n");
    let mut columns = vec!["% right, 95 % interval"];
    columns.extend(TASKS);
    columns.extend(["all", "median ms"]);
    support::print_head(&columns);
}

/// One point of the chain: who is sure enough answers at once, the others are handed on.
struct Point {
    margin: f32,
    right: f64,
    handed_on: f64,
    mean_ms: f64,
}

fn chain(first: &PerTask, second: &PerTask) -> Vec<Point> {
    let pairs: Vec<(Said, Said)> =
        first.iter().flatten().copied().zip(second.iter().flatten().copied()).collect();
    let point = |&margin: &f32| {
        let (mut right, mut handed_on, mut ms) = (0, 0, 0.0);
        for (first, second) in &pairs {
            let sure = first.sure >= margin;
            // if neither is sure the surer one counts
            let counts = if sure || (second.sure < margin && first.sure > second.sure) {
                first
            } else {
                second
            };
            right += usize::from(counts.right);
            handed_on += usize::from(!sure);
            ms += first.ms + if sure { 0.0 } else { second.ms };
        }
        let all = pairs.len() as f64;
        let percent = |n: usize| n as f64 / all * 100.0;
        Point { margin, right: percent(right), handed_on: percent(handed_on), mean_ms: ms / all }
    };
    MARGINS.iter().map(point).collect()
}

/// The chain as a picture: share right and share handed on over the margin.
fn picture(points: &[Point]) -> String {
    let place = |margin: f32, percent: f64| {
        format!("{:.1},{:.1}", 60.0 + f64::from(margin) * 500.0, 320.0 - percent * 2.8)
    };
    let line = |colour: &str, of: fn(&Point) -> f64| {
        let at: Vec<String> = points.iter().map(|p| place(p.margin, of(p))).collect();
        let at = at.join(" ");
        format!(
            "<polyline points=\"{at}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"
        )
    };
    let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 600 370\" \
                   font-family=\"sans-serif\" font-size=\"12\">\n\
                   <rect width=\"600\" height=\"370\" fill=\"white\"/>\n"
        .to_owned();
    for percent in [0, 20, 40, 60, 80, 100] {
        let y = 320.0 - f64::from(percent) * 2.8;
        writeln!(svg, "<path d=\"M60,{y}H560\" stroke=\"#ddd\"/><text x=\"28\" y=\"{:.0}\">{percent} %</text>", y + 4.0).unwrap();
    }
    for margin in [0.0_f32, 0.2, 0.4, 0.6, 0.8, 1.0] {
        let x = 52.0 + f64::from(margin) * 500.0;
        writeln!(svg, "<text x=\"{x:.0}\" y=\"338\">{margin:.1}</text>").unwrap();
    }
    svg.push_str(&line("#c33", |point| point.right));
    svg.push_str(&line("#36c", |point| point.handed_on));
    svg.push_str("<text x=\"70\" y=\"30\" fill=\"#c33\">right</text>\n");
    svg.push_str("<text x=\"110\" y=\"30\" fill=\"#36c\">passed to the language model</text>\n");
    svg.push_str(
        "<text x=\"210\" y=\"358\">margin: least confidence of the encoder</text>\n</svg>\n",
    );
    svg
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut models = vec![("SmolLM2-135M Q8_0".to_owned(), model_file())];
    if let Some(path) = std::env::var_os("SECOND_GGUF").map(PathBuf::from) {
        models.push((path.file_stem().unwrap().to_string_lossy().into_owned(), path));
    }
    let calibrations = [
        ("scored, plain", Calibration::Plain),
        ("scored, contextual", Calibration::Contextual),
        ("scored, running", Calibration::Running),
    ];
    // `cargo bench --bench specialists -- written`: these rows alone
    let only_written = std::env::args().any(|argument| argument == "written");
    support::print_machine();
    print_head("Balanced");
    let encoder = sentence_encoder().await;
    let first = classify(&encoder, mixed).await;
    print_row("encoder, MiniLM-L6 int8", &first);
    let mut second = None;
    for (name, path) in &models {
        let writer = language_model(path, Calibration::Plain).await;
        print_row(&format!("{name}, written"), &written(&writer, false).await);
        print_row(&format!("{name}, written, held to the labels"), &written(&writer, true).await);
        drop(writer);
        if only_written {
            continue;
        }
        for (way, calibration) in calibrations {
            let model = language_model(path, calibration).await;
            let said = classify(&model, mixed).await;
            print_row(&format!("{name}, {way}"), &said);
            if calibration == Calibration::Running {
                second.get_or_insert(said);
            }
        }
    }
    if only_written {
        return;
    }
    print_head("Skewed: four of five prompts have one label");
    print_row("encoder, MiniLM-L6 int8", &classify(&encoder, skewed).await);
    for (name, path) in &models {
        for (way, calibration) in calibrations {
            let model = language_model(path, calibration).await;
            print_row(&format!("{name}, {way}"), &classify(&model, skewed).await);
        }
    }
    println!("\nThe encoder, and {} below the margin\n", models[0].0);
    support::print_head(&["margin", "% right", "% passed to the language model", "mean ms"]);
    let points = chain(&first, &second.unwrap());
    for Point { margin, right, handed_on, mean_ms } in &points {
        println!("| {margin:.1} | {right:.0} | {handed_on:.0} | {mean_ms:.1} |");
    }
    let picture = picture(&points);
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/specialists.svg"), picture)
        .unwrap();
}
