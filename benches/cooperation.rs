//! How two models work together: a small one on the device and a larger one that stands for the
//! cloud, asked as an application asks, through the service; every row of the table from one run.
//!
//! The small one is `SmolLM2-135M` of `models/`, the larger one the GGUF file that `SECOND_GGUF`
//! names. What `pilotlight calibrate` does sets the threshold of the cascade by other reports than those that
//! are asked. The lines of the picture are computed from each model's own answers: the cascade at
//! every threshold, as many prompts selected at random, and by an oracle that knows which answers are wrong.
//! Writes `docs/cooperation.svg`. `cargo bench --bench cooperation -- refine`: that row alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use pilotlight::calibrate::{Aim, LabelledAnswer, calibrate};
use pilotlight::model::generate::{TokenLogprob, Usage};
use pilotlight::scheduler::strategy::mean_logprob;
use serde_json::{Value, json};
use support::figures::median;
use support::reports::{Report, reports, task};
use support::service::Service;
use support::{model_file, print_head, print_machine};

/// Reports that are asked, and reports for the calibration.
const ASKED: usize = 120;
const KNOWN: usize = 150;
/// What is to be promised of what is kept, at most so much wrong; the first that can be is used.
const PROMISES: [f64; 6] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5];
const PATIENCE: Duration = Duration::from_secs(120);

/// What came of one report.
#[derive(Clone)]
struct Said {
    right: bool,
    /// It was answered by the larger model, or refined by it.
    far: bool,
    logprob: Option<f32>,
    ms: f64,
}

fn engine(path: &Path) -> Value {
    let path = path.to_str().unwrap();
    json!({"command": "pilotlight", "args": ["engine", "--gguf", path, "--context", "2048"]})
}

async fn ask(service: &Service, report: &Report, metadata: &Value, logprobs: bool) -> Said {
    let mut wishes = json!({"task": "report", "deadline_ms": "60000"});
    wishes.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    let mut body = json!({
        "model": "auto", "temperature": 0, "metadata": wishes,
        "messages": [{"role": "user", "content": report.input()}],
    });
    if logprobs {
        body["logprobs"] = json!(true);
    }
    let started = Instant::now();
    let (status, reply) = service.post("/v1/chat/completions", &body).await;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let text = reply["choices"][0]["message"]["content"].as_str();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array();
    let logprob = tokens.and_then(|tokens| {
        let tokens: Vec<TokenLogprob> =
            tokens.iter().map(|token| serde_json::from_value(token.clone()).unwrap()).collect();
        mean_logprob(&Usage { logprobs: tokens, ..Usage::one_piece("") })
    });
    assert!(status == 200 || text.is_none(), "{reply}");
    if text.is_none() {
        eprintln!("not answered: {}", reply["error"]);
    }
    let attempts = reply["pilotlight"]["decision"]["attempts"].as_array().cloned();
    Said {
        right: text.is_some_and(|text| report.is_right(text)),
        far: attempts.is_some_and(|all| all.iter().any(|one| one["server"] == "far")),
        logprob: logprob.filter(|_| reply["choices"][0]["finish_reason"] == "stop"),
        ms,
    }
}

async fn ask_all(
    service: &Service,
    asked: &[Report],
    metadata: Value,
    logprobs: bool,
) -> Vec<Said> {
    let mut said = Vec::new();
    for report in asked {
        said.push(ask(service, report, &metadata, logprobs).await);
    }
    said
}

fn share(said: &[Said], what: impl Fn(&Said) -> bool) -> f64 {
    100.0 * said.iter().filter(|said| what(said)).count() as f64 / said.len() as f64
}

fn print_row(name: &str, said: &[Said]) -> (f64, f64) {
    let (far, right) = (share(said, |said| said.far), share(said, |said| said.right));
    let half = 196.0 * ((right / 100.0) * (1.0 - right / 100.0) / said.len() as f64).sqrt();
    let ms = median(&mut said.iter().map(|said| said.ms).collect::<Vec<f64>>());
    support::print_row(&[
        name.to_owned(),
        format!("{right:.0} ± {half:.0}"),
        format!("{far:.0}"),
        format!("{ms:.0}"),
    ]);
    (far, right)
}

/// Points of a line: % sent to the larger model, % right.
type Points = Vec<(f64, f64)>;

/// With the answers that the two models give, sorted by which is sent first.
fn line(order: &[usize], near: &[Said], far: &[Said]) -> Points {
    let all = order.len() as f64;
    let mut right = near.iter().filter(|said| said.right).count() as i64;
    let mut points = vec![(0.0, 100.0 * right as f64 / all)];
    for (n, at) in order.iter().enumerate() {
        right += i64::from(far[*at].right) - i64::from(near[*at].right);
        points.push((100.0 * (n + 1) as f64 / all, 100.0 * right as f64 / all));
    }
    points
}

fn picture(lines: &[(&str, &str, Points)], marks: &[(String, (f64, f64))]) -> String {
    let x = |far: f64| 60.0 + far * 5.0;
    let y = |right: f64| 330.0 - right * 3.0;
    let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 600 400\" \
                   font-family=\"sans-serif\" font-size=\"12\">\n\
                   <rect width=\"600\" height=\"400\" fill=\"white\"/>\n"
        .to_owned();
    for percent in [0.0, 20.0, 40.0, 60.0, 80.0, 100.0] {
        let (h, v) = (x(percent), y(percent));
        writeln!(svg, "<path d=\"M60,{v}H560\" stroke=\"#ddd\"/><text x=\"22\" y=\"{:.0}\">{percent} %</text><text x=\"{:.0}\" y=\"348\">{percent} %</text>", v + 4.0, h - 10.0).unwrap();
    }
    for (n, (name, color, points)) in lines.iter().enumerate() {
        let path: Vec<String> =
            points.iter().map(|(far, right)| format!("{:.1},{:.1}", x(*far), y(*right))).collect();
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/><text x=\"{}\" y=\"384\" fill=\"{color}\">{name}</text>", path.join(" "), 60 + 130 * n).unwrap();
    }
    for (name, (far, right)) in marks {
        let (h, v) = (x(*far), y(*right));
        let end = if *far > 50.0 { "end" } else { "start" };
        writeln!(svg, "<circle cx=\"{h:.1}\" cy=\"{v:.1}\" r=\"4\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{end}\">{name}</text>", if *far > 50.0 { h - 8.0 } else { h + 8.0 }, v - 7.0).unwrap();
    }
    svg + "<text x=\"200\" y=\"366\">sent to the larger model; y axis: right answers</text>\n</svg>\n"
}

/// The threshold that `pilotlight calibrate` would set, by reports that are not asked later; where it
/// would set none, one that sends half of them on.
fn calibrated(known: &[Said]) -> f32 {
    let sample = |said: &Said| LabelledAnswer { score: said.logprob, right: said.right };
    let samples: Vec<LabelledAnswer> = known.iter().map(sample).collect();
    println!("Calibrated by {} reports, {:.0} % right\n", known.len(), share(known, |s| s.right));
    print_head(&["maximum wrong", "threshold", "kept %"]);
    let mut best = None;
    for wrong_max in PROMISES {
        let found = calibrate(&samples, Aim { wrong_max, confidence: 0.95 });
        let row = found.ok().and_then(|found| found.best);
        match row {
            Some(row) => {
                let kept = 100.0 * row.kept as f64 / known.len() as f64;
                println!("| {:.0} % | {} | {kept:.0} |", 100.0 * wrong_max, row.threshold);
            }
            None => println!("| {:.0} % | no threshold | |", 100.0 * wrong_max),
        }
        best = best.or(row.map(|row| row.threshold));
    }
    let mut scores: Vec<f32> = known.iter().filter_map(|said| said.logprob).collect();
    scores.sort_by(f32::total_cmp);
    best.unwrap_or(scores[scores.len() / 2])
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    support::pace::turn_off();
    let Some(second) = std::env::var_os("SECOND_GGUF") else {
        println!("SECOND_GGUF must name the larger model's file; nothing was measured");
        return;
    };
    let cloud = json!({"mcpServers": {"large": engine(Path::new(&second))}});
    let cloud = Service::launch(&cloud, "off", &[]);
    cloud.until_within(PATIENCE, "the larger model is ready", |state| state["ready"] == true).await;
    print_machine();
    let mut catalog = json!({
        "mcpServers": {
            "near": engine(&model_file()), "far": {"type": "http", "url": cloud.url("/mcp")},
        },
        "pilotlight": {"tasks": {"report": task()}, "servers": {"far": {"reach": "cloud"}}},
    });
    let single = |mode: &str| json!({"strategy": "single", "mode": mode});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    if std::env::args().any(|argument| argument == "refine") {
        let said =
            ask_all(&service, &reports(2, ASKED), json!({"strategy": "refine"}), false).await;
        print_row("refine", &said);
        return;
    }
    let known = ask_all(&service, &reports(1, KNOWN), single("local-only"), true).await;
    drop(service);
    let threshold = calibrated(&known);
    let task = &mut catalog["pilotlight"]["tasks"]["report"];
    (task["strategy"], task["threshold"]) = (json!("cascade"), json!(threshold));
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;

    let asked = reports(2, ASKED);
    println!("\n{ASKED} reports\n");
    print_head(&["method", "% right", "% sent to the larger model", "median ms"]);
    let near = ask_all(&service, &asked, single("local-only"), true).await;
    let far = ask_all(&service, &asked, single("cloud-only"), false).await;
    let mut marks = Vec::new();
    for (name, said) in [("device alone", &near), ("cloud alone", &far)] {
        marks.push((name.to_owned(), print_row(name, said)));
    }
    for strategy in ["cascade", "refine", "compare", "judged"] {
        let (wishes, name) = match strategy {
            "cascade" => (json!({"strategy": "cascade"}), format!("cascade at {threshold:.2}")),
            "judged" => {
                let wishes = json!({"strategy": "compare", "judge": "far"});
                (wishes, "compare, judged by the larger".to_owned())
            }
            other => (json!({"strategy": other}), other.to_owned()),
        };
        let said = ask_all(&service, &asked, wishes, false).await;
        let point = print_row(&name, &said);
        marks.push((name, point));
    }

    let mut by_doubt: Vec<usize> = (0..asked.len()).collect();
    let doubt = |at: &usize| near[*at].logprob.unwrap_or(f32::NEG_INFINITY);
    by_doubt.sort_by(|a, b| doubt(a).total_cmp(&doubt(b)));
    let mut by_truth = by_doubt.clone();
    by_truth.sort_by_key(|at| i64::from(near[*at].right) - i64::from(far[*at].right));
    let cascade = line(&by_doubt, &near, &far);
    let oracle = line(&by_truth, &near, &far);
    let random = vec![cascade[0], cascade[cascade.len() - 1]];
    println!();
    print_head(&[
        "% sent to the larger model",
        "random choice",
        "by log-probability",
        "ideal choice",
    ]);
    for percent in [10, 20, 30, 50, 70] {
        let at = percent * asked.len() / 100;
        let lot = random[0].1 + (random[1].1 - random[0].1) * percent as f64 / 100.0;
        println!("| {percent} | {lot:.0} | {:.0} | {:.0} |", cascade[at].1, oracle[at].1);
    }
    let lines = [
        ("random choice", "#999", random),
        ("by log-probability", "#c33", cascade),
        ("ideal choice", "#36c", oracle),
    ];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cooperation.svg");
    std::fs::write(path, picture(&lines, &marks)).unwrap();
}
