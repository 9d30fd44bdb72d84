//! Our ONNX engine beside onnxruntime-genai and our GGUF engine: the same weights, the same run,
//! rounds that alternate, medians.
//!
//! The peer needs Python with onnxruntime-genai: `PEER_PYTHON=…/bin/python cargo bench --bench onnx`.
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

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use pilotlight::convert::{OnnxWeights, convert};
use pilotlight::mcp::client::{Closed, Remote};
use serde_json::Value;
use support::contract::{job, run};
use support::{Medians, Rates, child, memory_text, model_file, print_machine, runtime};

const ROUNDS: usize = 5;
const ANSWER: u32 = 64;

#[derive(Default)]
struct Figures {
    name: &'static str,
    load_ms: f64,
    rates: Rates,
    memory: String,
}

impl Figures {
    fn print(mut self) {
        let Medians { prefill, decode, first_ms } = self.rates.medians();
        let Figures { name, load_ms, memory, .. } = self;
        println!("{name:24} {prefill:8.0} {decode:8.1} {first_ms:10.1} {load_ms:8.0}   {memory}");
    }
}

/// An engine of ours in a child process.
struct Ours {
    remote: Remote,
    _line: Closed,
    process: tokio::process::Child,
    figures: Figures,
}

impl Ours {
    async fn start(name: &'static str, arguments: &[&str]) -> Ours {
        let mut all = vec!["engine", "--context", "1024"];
        all.extend(arguments);
        let started = Instant::now();
        let (remote, line, process) = child(&all).await;
        let load_ms = started.elapsed().as_secs_f64() * 1e3;
        Ours {
            remote,
            _line: line,
            process,
            figures: Figures { name, load_ms, ..Figures::default() },
        }
    }

    /// Gives the tokens that were read.
    async fn round(&mut self, n: usize) -> u32 {
        // a new beginning each time, so that nothing is left in the cache
        let text = "The pump in hall four is running and the pressure is good. ".repeat(18);
        let mut job = job(&format!("{n} {text}"), ANSWER + 1);
        job.sampling.temperature = Some(0.0);
        let (_, usage) = run(&self.remote, &job).await.unwrap();
        let read = usage.prompt_tokens - usage.cached_tokens;
        let written = f64::from(usage.completion_tokens - 1);
        let (read_s, write_s) = (usage.prefill_ms / 1e3, usage.decode_ms / 1e3);
        self.figures.rates.add(read.into(), read_s, written, write_s);
        read
    }

    fn print(mut self) {
        self.figures.memory = memory_text(self.process.id().unwrap());
        self.figures.print();
    }
}

/// onnxruntime-genai in a Python of its own.
struct Peer {
    process: std::process::Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    figures: Figures,
}

impl Peer {
    fn start(folder: &Path, threads: &str) -> Option<Peer> {
        let python = std::env::var("PEER_PYTHON").ok()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/genai.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(folder)
            .arg(threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let figures = Figures { name: "onnxruntime-genai", ..Figures::default() };
        Some(Peer { process, input, output: BufReader::new(output), figures })
    }

    fn round(&mut self, tokens: u32) {
        writeln!(self.input, "{tokens} {ANSWER}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let seconds = |key: &str| told[key].as_f64().unwrap();
        let (read_s, write_s) = (seconds("read"), seconds("write"));
        self.figures.rates.add(tokens.into(), read_s, ANSWER.into(), write_s);
        self.figures.load_ms = seconds("load") * 1e3;
        let memory = &told["memory"];
        self.figures.memory =
            format!("{} MiB resident, {} anonymous", memory["VmRSS"], memory["RssAnon"]);
    }

    fn print(mut self) {
        drop(self.input);
        self.process.wait().unwrap();
        self.figures.print();
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-onnx-int8");
    if !folder.exists() {
        convert(&model_file(), &folder, OnnxWeights::Int8, |_, _| ()).unwrap();
    }
    let (onnx, gguf) = (folder.display().to_string(), model_file().display().to_string());
    let library = runtime().display().to_string();
    let arguments = ["--onnx", &onnx, "--runtime", &library];
    print_machine();
    // the first start prepares the weights
    drop(Ours::start("", &arguments).await);
    for threads in ["1", "2"] {
        let mut ours =
            Ours::start("our ONNX engine", &[&arguments[..], &["--threads", threads]].concat())
                .await;
        let mut llama = Ours::start(
            "our GGUF engine",
            &["--gguf", &gguf, "--threads", threads, "--decode-threads", threads],
        )
        .await;
        let mut peer = Peer::start(&folder, threads);
        let mut tokens = 0;
        for round in 0..=ROUNDS {
            tokens = ours.round(round).await;
            llama.round(round).await;
            if let Some(peer) = &mut peer {
                peer.round(tokens);
            }
            if round == 0 {
                // the first round only warms up
                let figures = [
                    Some(&mut ours.figures),
                    Some(&mut llama.figures),
                    peer.as_mut().map(|p| &mut p.figures),
                ];
                for figures in figures.into_iter().flatten() {
                    figures.rates = Rates::default();
                }
            }
        }
        println!(
            "\n{threads} thread(s), {tokens} prompt tokens, {ANSWER} answer tokens, {ROUNDS} rounds"
        );
        println!("{:24} {:>8} {:>8} {:>10} {:>8}", "", "prefill", "decode", "prompt ms", "load ms");
        ours.print();
        llama.print();
        match peer {
            Some(peer) => peer.print(),
            None => println!("onnxruntime-genai: not run, PEER_PYTHON is not set"),
        }
    }
}
