//! This program beside llama-server, over HTTP with streams: the same model files, clients and machine, in
//! alternating rounds. `LLAMA_SERVER` names the program of the peer; `benches/peers/install` builds it and
//! prints its path.
//!
//! `ROUNDS=5` sets how many rounds a figure is the median of, `ROWS=words` chooses groups of rows by their name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod load;
mod servers;
#[path = "../support/mod.rs"]
mod support;
mod work;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use load::{Load, Request, ask, load};
use servers::{Kind, Server, Setup};
use support::figures::median;
use support::{model_file, print_head, print_machine, print_row};

/// Answers at once, and tokens of all of them.
const SETUP: Setup = Setup { slots: 8, context: 8192, prefixes: None };
/// The same memory for half of the templates that are asked.
const NARROW: Setup = Setup { slots: 4, context: 4096, prefixes: None };
/// The long prompt arrives this long after the short ones began.
const LATER: Duration = Duration::from_millis(300);

/// A figure of both servers, by round.
struct Row {
    name: String,
    unit: &'static str,
    /// The ratio, ours to the peer's, that is aimed at.
    aim: &'static str,
    values: [Vec<f64>; 2],
}

/// All rows, in the order of their first value.
#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, kind: Kind, name: &str, unit: &'static str, aim: &'static str, value: f64) {
        let at = self.0.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.0.push(Row { name: name.to_owned(), unit, aim, values: [vec![], vec![]] });
            self.0.len() - 1
        });
        self.0[at].values[kind as usize].push(value);
    }

    /// Requests a second, and the first token's 95 % quantile, of some requests.
    fn add_load(&mut self, kind: Kind, name: &str, aims: [&'static str; 2], done: &Load) {
        self.add(kind, name, "requests/s", aims[0], done.per_second());
        self.add(kind, &format!("{name}: first token p95"), "ms", aims[1], done.first_ms(0.95));
    }

    fn print(mut self) {
        print_head(&["work", "unit", "pilotlight", "llama-server", "ratio", "aim"]);
        for row in &mut self.0 {
            let [ours, peer] = &mut row.values;
            let (ours, peer) = (median(ours), median(peer));
            let text = |value: f64| {
                if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
            };
            let ratio = format!("{:.2}", ours / peer);
            let (name, unit, aim) = (row.name.clone(), row.unit.to_owned(), row.aim.to_owned());
            print_row(&[name, unit, text(ours), text(peer), ratio, aim]);
        }
    }
}

fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// In each round the other server is the first.
fn order(round: usize) -> [Kind; 2] {
    let [one, other] = Kind::ALL;
    if round.is_multiple_of(2) { [one, other] } else { [other, one] }
}

/// Both servers with these files, running at the same time; one of them has work at a time.
async fn both(models: [&Path; 2], setup: Setup) -> [Server; 2] {
    let [ours, peer] = models;
    [Server::start(Kind::Ours, ours, setup).await, Server::start(Kind::Peer, peer, setup).await]
}

/// Decode and prefill of one user, and several users whose prompts share their beginning.
async fn plain(server: &Server, table: &mut Table) {
    let kind = server.kind;
    let Load { answers, .. } = load(server, 1, 1, &work::unique(330, 128)).await;
    table.add(kind, "1 at once, 512 in, 128 out: decode", "tokens/s", "1.0", answers[0].decode());
    table.add(kind, "1 at once, 512 in: prefill", "tokens/s", "0.98", answers[0].prefill());
    for at_once in [1, 4, 8] {
        let done = load(server, at_once, 3 * at_once, &work::shared()).await;
        let name = format!("{at_once} at once, shared prefix, 32 out");
        let aims = if at_once == 8 { ["1.3", "0.7"] } else { [""; 2] };
        table.add_load(kind, &name, aims, &done);
    }
}

async fn json(server: &Server, table: &mut Table) {
    let validator = jsonschema::validator_for(&work::schema()).unwrap();
    for at_once in [1, 8] {
        let done = load(server, at_once, 2 * at_once, &work::by_schema()).await;
        let name = format!("JSON by schema, {at_once} at once");
        table.add(server.kind, &name, "answers/s", "1.5", done.per_second());
        let is_valid =
            |text: &str| serde_json::from_str(text).is_ok_and(|json| validator.is_valid(&json));
        let valid = done.answers.iter().filter(|answer| is_valid(&answer.text)).count();
        let share = valid as f64 / done.answers.len() as f64 * 100.0;
        table.add(server.kind, &format!("{name}: valid"), "%", "", share);
    }
}

async fn labels(server: &Server, table: &mut Table) {
    let done = load(server, 8, 32, &work::labelled(server.kind)).await;
    table.add(server.kind, "one of 4 labels, 8 at once", "answers/s", "3", done.per_second());
}

/// How much a long prompt delays short ones.
async fn long(server: &Server, table: &mut Table) {
    let alone = load(server, 4, 16, &work::short()).await.end_ms(0.95);
    let to = (server.kind, server.url("/v1/chat/completions"));
    let body = work::unique(1300, 8)(load::number());
    let long = tokio::spawn(async move {
        tokio::time::sleep(LATER).await;
        ask(to, body).await
    });
    let beside = load(server, 4, 16, &work::short()).await.end_ms(0.95);
    let long = long.await.unwrap();
    let name = "2,000 tokens beside 4 short prompts";
    table.add(
        server.kind,
        &format!("{name}: their p95 to alone"),
        "×",
        "1.2 (ours)",
        beside / alone,
    );
    table.add(
        server.kind,
        &format!("{name}: first token of the long one"),
        "ms",
        "",
        long.first_ms,
    );
}

/// A process that computes without an end.
struct Busy(Child);

impl Busy {
    fn start() -> Busy {
        Busy(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn beside_busy(server: &Server, table: &mut Table) {
    let busy = Busy::start();
    for at_once in [1, 8] {
        let done = load(server, at_once, 2 * at_once, &work::shared()).await;
        let name = format!("{at_once} at once beside a busy process");
        let aim = if at_once == 8 { "2" } else { "" };
        table.add_load(server.kind, &name, [aim, ""], &done);
    }
    drop(busy);
}

/// A start, and the first tokens after it.
async fn start(kind: Kind, model: &Path, setup: Setup, table: &mut Table) {
    let began = Instant::now();
    let server = Server::start(kind, model, setup).await;
    load(&server, 1, 1, &work::short()).await;
    let took = began.elapsed().as_secs_f64() * 1e3;
    table.add(kind, "start to first answer", "ms", "0.5", took);
    let first = load(&server, 1, 1, &work::shared()).await.first_ms(0.5);
    table.add(kind, "shared prefix after a restart: first token", "ms", "0.3", first);
    server.stop().await;
}

/// Starts after each other; before the first one the prompts have been asked.
async fn starts(model: &Path, table: &mut Table) {
    let folder = tempfile::tempdir().unwrap().keep();
    let setup = Setup { prefixes: Some(Box::leak(folder.clone().into_boxed_path())), ..SETUP };
    for kind in Kind::ALL {
        let server = Server::start(kind, model, setup).await;
        load(&server, 1, 5, &work::shared()).await;
        server.stop().await;
    }
    for round in 0..rounds() {
        for kind in order(round) {
            start(kind, model, setup, table).await;
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

fn is_wanted(group: &str) -> bool {
    std::env::var("ROWS").map_or(true, |rows| rows.split_whitespace().any(|row| row == group))
}

async fn same_file(model: &Path, table: &mut Table) {
    let servers = both([model, model], SETUP).await;
    for round in 0..rounds() {
        for kind in order(round) {
            let server = &servers[kind as usize];
            if is_wanted("plain") {
                plain(server, table).await;
            }
            if is_wanted("json") {
                json(server, table).await;
            }
            if is_wanted("labels") {
                labels(server, table).await;
            }
            if is_wanted("long") {
                long(server, table).await;
            }
            if is_wanted("busy") {
                beside_busy(server, table).await;
            }
        }
        eprintln!("round {} of {}", round + 1, rounds());
    }
    for server in servers {
        let (own, resident) = server.memory();
        table.add(server.kind, "memory of its own, after all", "MiB", "0.5", own);
        table.add(server.kind, "resident memory", "MiB", "0.5", resident);
        server.stop().await;
    }
}

/// Eight requests at once, with models and a setup of their own.
async fn eight(
    models: [&Path; 2],
    setup: Setup,
    request: &Request,
    (name, aim): (&str, &'static str),
    table: &mut Table,
) {
    let servers = both(models, setup).await;
    for round in 0..rounds() {
        for kind in order(round) {
            let done = load(&servers[kind as usize], 8, 32, request).await;
            table.add_load(kind, name, [aim, ""], &done);
        }
    }
    for server in servers {
        server.stop().await;
    }
}

#[tokio::main]
async fn main() {
    let model = std::env::var_os("MODEL").map_or_else(model_file, PathBuf::from);
    print_machine();
    println!("{}, {} rounds\n", model.file_name().unwrap().to_string_lossy(), rounds());
    let mut table = Table::default();
    if ["plain", "json", "labels", "long", "busy"].into_iter().any(is_wanted) {
        same_file(&model, &mut table).await;
    }
    if is_wanted("templates") {
        let row = ("8 templates, 8 at once, half the slots", "2");
        eight([&model, &model], NARROW, &work::rotating(), row, &mut table).await;
    }
    if is_wanted("packaged") {
        let packaged = model_file().with_file_name("SmolLM2-135M-Instruct.Q4_1.gguf");
        let row = ("8 at once, the Q4_1 file, prepared by ours", "2");
        eight([&model_file(), &packaged], SETUP, &work::shared(), row, &mut table).await;
    }
    if is_wanted("start") {
        starts(&model, &mut table).await;
    }
    table.print();
}
