//! Our GGUF engine beside bare llama.cpp: the loop of its own bench tool (random tokens, no
//! sampling, no text) on the same library, model, threads and run. Rounds alternate; medians.
//!
//! llama.cpp's crate does not ship the source of `llama-bench`, so its loop is repeated here.
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

use std::num::NonZeroU32;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use pilotlight::model::generate::{Generate, Usage};
use support::contract::{job, run};
use support::{Medians, Rates, child, memory_text, model_file, print_machine};

const ROUNDS: usize = 7;
const DECODE: usize = 64;
const STEP: usize = 256;

fn print(name: &str, rates: &mut Rates, than: Option<Medians>) -> Medians {
    let found = rates.medians();
    let Medians { prefill, decode, first_ms } = found;
    let ratio = than.map_or(String::new(), |than| {
        let (prefill, decode) = (prefill / than.prefill, decode / than.decode);
        format!("   {prefill:.3} x prefill, {decode:.3} x decode")
    });
    println!("{name:28} {prefill:8.0} {decode:8.1} {first_ms:10.1}{ratio}");
    found
}

/// What llama.cpp's bench tool does: read `n` tokens in steps, then write one after the other.
fn bare(context: &mut LlamaContext<'_>, vocab: i32, n: usize, rates: &mut Rates) {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let mut token = || LlamaToken(random.i32(0..vocab));
    context.clear_kv_cache();
    let mut batch = LlamaBatch::new(STEP, 1);
    let start = Instant::now();
    let prompt: Vec<LlamaToken> = (0..n).map(|_| token()).collect();
    for (step, tokens) in prompt.chunks(STEP).enumerate() {
        batch.clear();
        for (i, token) in tokens.iter().enumerate() {
            batch.add(*token, (step * STEP + i) as i32, &[0], i + 1 == tokens.len()).unwrap();
        }
        context.decode(&mut batch).unwrap();
    }
    context.synchronize();
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in 0..DECODE {
        batch.clear();
        batch.add(token(), (n + i) as i32, &[0], true).unwrap();
        context.decode(&mut batch).unwrap();
        context.synchronize();
    }
    rates.add(n as f64, prefill, DECODE as f64, start.elapsed().as_secs_f64());
}

/// The same through the port; the engine's own clock gives the two parts.
async fn ours(model: &dyn Generate, round: usize, rates: &mut Rates) -> Usage {
    // a new beginning each time, so that nothing is left in the cache
    let text = format!(
        "{round} {}",
        "The pump in hall four is running and the pressure is good. ".repeat(21)
    );
    let mut job = job(&text, DECODE as u32 + 1);
    job.sampling.temperature = Some(0.0);
    let (_, usage) = run(model, &job).await.unwrap();
    let read = f64::from(usage.prompt_tokens - usage.cached_tokens);
    let written = f64::from(usage.completion_tokens - 1);
    rates.add(read, usage.prefill_ms / 1e3, written, usage.decode_ms / 1e3);
    usage
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let path = model_file();
    let threads = std::thread::available_parallelism().unwrap().get() as u32;
    let file = path.display().to_string();
    let (remote, _line, process) = child(&["engine", "--gguf", &file, "--context", "1024"]).await;
    let backend = LlamaBackend::init().unwrap();
    let model = LlamaModel::load_from_file(&backend, &path, &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(1024))
        .with_n_batch(STEP as u32)
        .with_n_ubatch(STEP as u32)
        .with_n_threads(1)
        .with_n_threads_batch(threads as i32);
    let mut context = model.new_context(&backend, params).unwrap();

    let (mut raw, mut ours_rates) = (Rates::default(), Rates::default());
    let mut tokens = 256;
    for round in 0..=ROUNDS {
        if round == 1 {
            // the first round only warms up
            (raw, ours_rates) = (Rates::default(), Rates::default());
        }
        let usage = ours(&remote, round, &mut ours_rates).await;
        tokens = (usage.prompt_tokens - usage.cached_tokens) as usize;
        bare(&mut context, model.n_vocab(), tokens, &mut raw);
    }
    print_machine();
    println!(
        "{tokens} prompt tokens, {DECODE} answer tokens, {threads} threads to read and 1 to write, {ROUNDS} rounds"
    );
    println!("{:28} {:>8} {:>8} {:>10}", "", "prefill", "decode", "prompt ms");
    let base = print("llama.cpp, bare loop", &mut raw, None);
    print("our engine, child over MCP", &mut ours_rates, Some(base));
    println!("engine process: {}", memory_text(process.id().unwrap()));
}
