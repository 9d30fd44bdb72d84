//! What a service between an asker and a provider adds to a provider that answers at once: ours, ours
//! with caps on spending and with redaction, a bare hop that reads nothing and hands each request on
//! (what the libraries and the system cost in any case), an earlier version of ours if `PREVIOUS` names
//! its program, and `LiteLLM`'s proxy if `LITELLM` names its program.
//! The same client asks the provider itself and each service in turn, at a fixed rate whatever comes
//! back, in rounds; every figure of the table is the median of the rounds. Processor time is that of
//! the service in the middle, for each request. None is asked while
//! `LiteLLM` works off what it was sent before.
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

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use support::figures::{median, memory, processor_s};
use support::service::{Service, catalog, free_port};
use support::{PROGRAM, print_head, print_machine, print_row, quantile};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// Requests a second, and seconds of each round.
const RATES: [u32; 3] = [50, 250, 1000];
const ROUND: Duration = Duration::from_secs(4);
const ROUNDS: usize = 5;
/// An answer that takes longer is not waited for.
const LATE: Duration = Duration::from_secs(5);
/// Requests under way at once; more are not sent and count as late.
const OPEN_MAX: usize = 512;

/// Longest wait until a service has worked off what it was sent.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// A provider that answers at once, whole or as a stream.
async fn provider() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let routes = axum::Router::new()
        .route("/v1/chat/completions", post(answer))
        .route("/v1/models", get(async || axum::Json(json!({"object": "list", "data": []}))));
    tokio::spawn(async move { axum::serve(NoDelay(listener), routes).await });
    url
}

struct NoDelay(tokio::net::TcpListener);

impl axum::serve::Listener for NoDelay {
    type Io = tokio::net::TcpStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (line, from) = self.0.accept().await.unwrap();
        line.set_nodelay(true).unwrap();
        (line, from)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

async fn answer(body: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12});
    let head = json!({"id": "x", "created": 1, "model": "big-1"});
    let with = |object: &str, choice: Value| {
        let mut value = head.clone();
        (value["object"], value["choices"]) = (json!(object), json!([choice]));
        value
    };
    if asked["stream"] != true {
        let message = json!({"role": "assistant", "content": "All is well"});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        let mut whole = with("chat.completion", choice);
        whole["usage"] = usage;
        return axum::Json(whole).into_response();
    }
    let piece = |delta: Value, end: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": end});
        format!("data: {}\n\n", with("chat.completion.chunk", choice))
    };
    let mut last = head.clone();
    (last["choices"], last["usage"]) = (json!([]), usage);
    let text = piece(json!({"role": "assistant", "content": "All is well"}), Value::Null)
        + &piece(json!({}), json!("stop"))
        + &format!("data: {last}\n\ndata: [DONE]\n\n");
    ([(CONTENT_TYPE, "text/event-stream")], text).into_response()
}

/// What one round at one rate took, in milliseconds; answers that did not come are at the end.
struct Round {
    p50: f64,
    p99: f64,
    late: usize,
    /// Processor time of the service for each request, in microseconds.
    processor_us: f64,
}

/// A way to the provider, with the process of the service in the middle.
struct Way {
    name: &'static str,
    url: String,
    service: Option<u32>,
}

impl Way {
    fn through(name: &'static str, url: String, service: &Child) -> Way {
        Way { name, url, service: service.id() }
    }

    fn processor_s(&self) -> f64 {
        self.service.map_or(0.0, processor_s)
    }
}

async fn round(client: &reqwest::Client, way: &Way, rate: u32, length: Duration) -> Round {
    let body: Arc<Bytes> = Arc::new(
        json!({
            "model": "big", "messages": [{"role": "user", "content": "How is the pump in hall 4?"}],
            "metadata": {"mode": "cloud-only"},
        })
        .to_string()
        .into(),
    );
    let count = (f64::from(rate) * length.as_secs_f64()) as usize;
    let before = way.processor_s();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asked = JoinSet::new();
    let mut times = Vec::with_capacity(count);
    let mut late = 0;
    for _ in 0..count {
        ticks.tick().await;
        while let Some(done) = asked.try_join_next() {
            times.push(done.unwrap());
        }
        if asked.len() >= OPEN_MAX {
            late += 1;
            continue;
        }
        let sent = client.post(format!("{}/chat/completions", way.url)).timeout(LATE);
        let sent = sent.header(CONTENT_TYPE, "application/json").body(body.as_ref().clone());
        asked.spawn(async move {
            let started = Instant::now();
            let reply = sent.send().await.ok()?;
            let is_ok = reply.status().is_success();
            let text = reply.text().await.ok()?;
            let took = started.elapsed().as_secs_f64() * 1e3;
            (is_ok && text.contains("All is well")).then_some(took)
        });
    }
    while let Some(done) = asked.join_next().await {
        times.push(done.unwrap());
    }
    late += times.iter().filter(|time| time.is_none()).count();
    let mut times: Vec<f64> = times.into_iter().flatten().collect();
    times.resize(count, f64::INFINITY);
    Round {
        p50: quantile(&mut times, 0.5),
        p99: quantile(&mut times, 0.99),
        late,
        processor_us: (way.processor_s() - before) * 1e6 / count as f64,
    }
}

/// A service of ours before that provider.
async fn ours(program: &str, provider: &str, policy: Value) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    let price = json!({"input": 1.0, "output": 2.0});
    catalog["pilotlight"]["providers"] = json!({"big": {
        "kind": "openai", "base_url": provider, "model": "big-1", "key": "none", "slots": 256,
        "price": price,
    }});
    catalog["pilotlight"]["policy"] = policy;
    let service = Service::launch_program(program, &catalog, "off");
    service.ready_all().await;
    service
}

/// Names the provider to the process that is the bare hop.
const HOP: &str = "GATEWAY_BENCH_HOP";

/// A process of this program that only hands on, by the same libraries and by one thread as ours.
async fn hop(provider: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(HOP, provider)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next_line().await.unwrap().unwrap();
    (child, url)
}

async fn be_the_hop(provider: String) {
    pilotlight::net::tls::install_provider();
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let pass = async move |body: Bytes| {
        let sent = client.post(format!("{provider}/chat/completions"));
        let sent = sent.header(CONTENT_TYPE, "application/json").body(body);
        let answer = sent.send().await.unwrap().bytes().await.unwrap();
        ([(CONTENT_TYPE, "application/json")], answer)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/v1", listener.local_addr().unwrap());
    let routes = axum::Router::new().route("/v1/chat/completions", post(pass));
    axum::serve(NoDelay(listener), routes).await.unwrap();
}

/// `LiteLLM`'s proxy before that provider, once it answers.
async fn litellm(provider: &str, program: &str, folder: &std::path::Path) -> (Child, Way) {
    let port = free_port();
    let config = format!(
        "model_list:\n  - model_name: big\n    litellm_params:\n      model: openai/big-1\n      \
         api_base: {provider}\n      api_key: none\n"
    );
    let file = folder.join("litellm.yaml");
    std::fs::write(&file, config).unwrap();
    let log = std::fs::File::create(folder.join("litellm.log")).unwrap();
    let child = Command::new(program)
        .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--num_workers", "1"])
        .arg("--config")
        .arg(file)
        .env("LITELLM_LOG", "ERROR")
        // as ours: on loopback, without a key
        .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let way = Way::through("LiteLLM", format!("http://127.0.0.1:{port}/v1"), &child);
    let client = support::service::client();
    let end = Instant::now() + Duration::from_secs(180);
    while round(&client, &way, 1, Duration::from_secs(1)).await.late > 0 {
        let log = std::fs::read_to_string(folder.join("litellm.log")).unwrap_or_default();
        assert!(Instant::now() < end, "it does not answer: {log}");
    }
    (child, way)
}

/// Waits until a process has worked off what it was sent, so that it takes no time from others.
async fn idle(child: &Child) {
    let pid = child.id().unwrap();
    let end = Instant::now() + IDLE_MAX;
    loop {
        let before = processor_s(pid);
        tokio::time::sleep(Duration::from_secs(1)).await;
        if processor_s(pid) - before < 0.1 {
            return;
        }
        assert!(Instant::now() < end, "it still works after {IDLE_MAX:?}");
    }
}

fn main() {
    support::pace::turn_off();
    let one_thread = std::env::var(HOP);
    let mut runtime = match one_thread {
        Ok(_) => tokio::runtime::Builder::new_current_thread(),
        Err(_) => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    match one_thread {
        Ok(provider) => runtime.block_on(be_the_hop(provider)),
        Err(_) => runtime.block_on(measure()),
    }
}

async fn measure() {
    let provider = provider().await;
    let (hop, bare) = hop(&provider).await;
    let plain = ours(PROGRAM, &provider, json!({})).await;
    let caps = json!({"budget": {"usd_per_day": 1000.0}});
    let capped = ours(PROGRAM, &provider, caps).await;
    let redact = json!({"redact": ["email", "phone", "coordinates"]});
    let hiding = ours(PROGRAM, &provider, redact).await;
    let previous = match std::env::var("PREVIOUS") {
        Ok(program) => Some(ours(&program, &provider, json!({})).await),
        Err(_) => None,
    };
    let folder = tempfile::tempdir().unwrap();
    let (other, litellm) = match std::env::var("LITELLM") {
        Ok(program) => Some(litellm(&provider, &program, folder.path()).await),
        Err(_) => None,
    }
    .unzip();
    let through = |name, service: &Service| Way::through(name, service.url("/v1"), &service.child);
    let mut ways = vec![
        Way { name: "provider itself", url: provider.clone(), service: None },
        Way::through("a bare hop", bare, &hop),
    ];
    ways.extend(previous.as_ref().map(|previous| through("pilotlight, previous", previous)));
    ways.push(through("pilotlight", &plain));
    ways.push(through("pilotlight, caps", &capped));
    ways.push(through("pilotlight, redaction", &hiding));
    ways.extend(litellm);
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    print_machine();
    println!("Added to the provider's own time, ms; medians of {ROUNDS} rounds of {ROUND:?}\n");
    print_head(&[
        "path",
        "requests a second",
        "p50",
        "p99",
        "added p50",
        "added p99",
        "late %",
        "processor, µs",
    ]);
    for rate in RATES {
        let mut rounds: Vec<Vec<Round>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for (way, rounds) in ways.iter().zip(&mut rounds) {
                if let Some(child) = &other {
                    idle(child).await;
                }
                round(&client, way, rate, Duration::from_millis(500)).await;
                rounds.push(round(&client, way, rate, ROUND).await);
            }
        }
        let middle = |rounds: &[Round], what: fn(&Round) -> f64| {
            median(&mut rounds.iter().map(what).collect::<Vec<f64>>())
        };
        let own = (middle(&rounds[0], |r| r.p50), middle(&rounds[0], |r| r.p99));
        for (way, rounds) in ways.iter().zip(&rounds) {
            let (p50, p99) = (middle(rounds, |r| r.p50), middle(rounds, |r| r.p99));
            let asked = f64::from(rate) * ROUND.as_secs_f64();
            let late = 100.0 * middle(rounds, |r| r.late as f64) / asked;
            let (more50, more99) = (p50 - own.0, p99 - own.1);
            let mut cells = vec![way.name.to_owned(), rate.to_string()];
            cells.extend([p50, p99, more50, more99].map(|ms| format!("{ms:.2}")));
            cells.push(format!("{late:.1}"));
            cells.push(match way.service {
                Some(_) => format!("{:.0}", middle(rounds, |r| r.processor_us)),
                None => "-".to_owned(),
            });
            print_row(&cells);
        }
    }
    println!("\nMiB resident after it");
    for way in &ways {
        if let Some(pid) = way.service {
            println!("{:24} {:.1}", way.name, memory(pid).resident);
        }
    }
}
