//! The GGUF engine with a real model: the contract, JSON, bad files, and every way to break it.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::support::contract::{holds_over_every_transport, job, run};
use crate::support::engine::{REAL, works};
use crate::support::mqtt::App;
use crate::support::reports;
use crate::support::service::{Service, catalog, program, signal};
use crate::support::{model_file, over_channels};
use nix::sys::signal::Signal;
use pilotlight::engines::gguf;
use pilotlight::engines::gguf::GgufOptions;
use pilotlight::engines::worker::Calibration;
use pilotlight::engines::worker::OnThread;
use pilotlight::model::generate::{Generate, Pace};
use pilotlight::request::format::Format;
use pilotlight::request::labels::Labels;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

/// An engine with all processors for prompts and one thread for answers.
pub fn options(path: &Path) -> GgufOptions {
    GgufOptions {
        path: path.to_owned(),
        name: Some("smollm2-135m".to_owned()),
        context_tokens: 1024,
        threads: 0,
        decode_threads: 1,
        gpu_layers: 0,
        calibration: Calibration::default(),
        prefixes: None,
    }
}

async fn model() -> OnThread {
    gguf::open(options(&model_file())).await.unwrap()
}

/// Over the line that the service uses: its pauses are told apart from its work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_engine_pauses() {
    let (remote, _closed) = over_channels(Arc::new(model().await)).await;
    let mut slow = Vec::new();
    for duty in [1.0, 0.2] {
        remote.pace(Pace { duty, ..Pace::default() });
        let began = std::time::Instant::now();
        let (_, usage) = run(&remote, &job("Count to one hundred.", 30)).await.unwrap();
        let computed = usage.prefill_ms + usage.decode_ms;
        slow.push(began.elapsed().as_secs_f64() * 1e3 / computed);
    }
    assert!(slow[0] < 2.0 && slow[1] > 2.5, "a paced engine took {slow:?} times its work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_over_every_transport() {
    let path = model_file().display().to_string();
    let arguments = ["--gguf", &path, "--context", "1024"];
    holds_over_every_transport(Arc::new(model().await), &arguments, &REAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_as_an_engine_must() {
    works(&model().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_states_what_the_file_says() {
    let model = model().await;
    let context = model.context();
    assert_eq!(context.identification.family, "llama");
    assert_eq!(context.identification.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(context.identification.digest.as_ref().map(String::len), Some(64));
    assert_eq!((context.tokenizer.kind.as_str(), context.tokenizer.vocab_size), ("gpt2", 49152));
    assert_eq!(context.tokenizer.special_tokens["eos"], "<|im_end|>");
    assert!(context.tokenizer.chat_template_digest.is_some());
    assert_eq!(context.runtime.quantization, "Q8_0");
    assert!(context.runtime.prefill_tokens_per_s.unwrap() > 1.0);
    assert!(context.runtime.decode_tokens_per_s.unwrap() > 0.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_files_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read(model_file()).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect();
    let mut bad_head = good[..1 << 20].to_vec();
    bad_head[4..4096].copy_from_slice(&noise[..4092]);
    let cases = [
        ("missing", folder.path().join("nothing.gguf"), "cannot be read"),
        ("a folder", folder.path().to_owned(), "is not a GGUF file"),
        ("empty", write("empty.gguf", b""), "is not a GGUF file"),
        ("noise", write("noise.gguf", &noise), "is not a GGUF file"),
        ("magic and noise", write("head.gguf", &bad_head), "damaged"),
        ("cut in the head", write("cut1.gguf", &good[..100_000]), "damaged"),
        ("cut in the weights", write("cut2.gguf", &good[..good.len() / 2]), "cannot load"),
    ];
    for (name, path, said) in cases {
        let error =
            gguf::open(options(&path)).await.err().unwrap_or_else(|| panic!("{name} was loaded"));
        assert!(error.to_string().contains(said), "{name}: {error}");
    }
    let absurd = GgufOptions { context_tokens: 2_000_000, ..options(&model_file()) };
    assert!(gguf::open(absurd).await.err().unwrap().to_string().contains("at most"));
}

fn ask(prompt: &str, max_tokens: u32) -> Value {
    json!({"model": "auto", "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens})
}

fn real_catalog() -> Value {
    let path = model_file().display().to_string();
    let mut catalog = catalog(&["--gguf", &path, "--name", "smollm2-135m", "--context", "1024"]);
    // one thread, and patience: beside other engines two that spin stand still for seconds
    catalog["mcpServers"]["local"]["args"]
        .as_array_mut()
        .unwrap()
        .extend([json!("--threads"), json!("1")]);
    catalog["pilotlight"]["servers"] = json!({"local": {"silence_ms": 6000}});
    catalog
}

/// A prompt on MQTT is answered by a real model, token by token, with a decision record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_light() {
    let service = Service::start(&real_catalog()).await;
    let mut app = App::of(service.mqtt, "app").await;
    let request = json!({"id": "r", "prompt": REAL.short, "max_tokens": 12, "stream": true});
    app.send("pilotlight/dev/request/app", request.to_string(), PublishProperties::default()).await;
    let (mut text, mut reply) = (String::new(), Value::Null);
    let mut count = None;
    while reply.is_null() || count.is_none() {
        let publish = app.next().await;
        let value: Value = serde_json::from_slice(&publish.payload).unwrap();
        if value["status"].is_string() {
            reply = value;
        } else if value["done"] == true {
            count = value["count"].as_u64();
        } else {
            text.push_str(value["text"].as_str().unwrap());
        }
    }
    assert_eq!(reply["status"], "ok", "{reply}");
    assert_eq!(reply["text"], text);
    assert_eq!(reply["usage"]["completion_tokens"], 12);
    assert_eq!(reply["source"]["model"], "smollm2-135m");
    assert_eq!(reply["decision"]["attempts"][0]["server"], "local");
    let task = json!({"id": "t", "task": "label", "input": {"reading": 93}}).to_string();
    let reply = app.ask("app", task).await;
    assert!(["ok", "hot"].contains(&reply["json"]["state"].as_str().unwrap()), "{reply}");
    let cut = json!({"prompt": "x", "schema": {"type": "object", "properties": {"s": {"type": "string", "minLength": 50}}, "required": ["s"]}, "max_tokens": 4});
    let reply = app.ask("app", cut.to_string()).await;
    assert_eq!((&reply["status"], &reply["error"]["code"]), (&json!("failed"), &json!("cut_off")));
    let long = json!({"prompt": "word ".repeat(3000)}).to_string();
    let reply = app.ask("app", long).await;
    assert_eq!(
        (&reply["status"], &reply["error"]["field"]),
        (&json!("refused"), &json!("prompt")),
        "{reply}"
    );
    let bad = json!({"prompt": "x", "schema": {"type": "nonsense"}}).to_string();
    let reply = app.ask("app", bad).await;
    assert_eq!(
        (&reply["status"], &reply["error"]["field"]),
        (&json!("refused"), &json!("schema")),
        "{reply}"
    );
    assert_eq!(
        app.ask("app", json!({"prompt": "hi", "max_tokens": 3}).to_string()).await["status"],
        "ok"
    );
}

/// Killed, aborted, stopped: a fault for the answer that was under way, a restart, and the next
/// prompt is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_engine_never_breaks_the_service() {
    let service = Service::start(&real_catalog()).await;
    for (kill, word) in
        [(Signal::SIGKILL, "crashed"), (Signal::SIGABRT, "crashed"), (Signal::SIGSTOP, "hung")]
    {
        let before = service.engine();
        let request = {
            let mut request = ask(REAL.endless, 800);
            request["stream"] = json!(true);
            request
        };
        let url = service.url("/v1/chat/completions");
        let mut answer =
            crate::support::service::client().post(url).json(&request).send().await.unwrap();
        // a piece has been sent, so no other attempt may be made
        let mut text = String::new();
        while !text.contains("\"content\":\" ") {
            text.push_str(&String::from_utf8_lossy(&answer.chunk().await.unwrap().unwrap()));
        }
        signal(before, kill);
        while let Some(chunk) = answer.chunk().await.unwrap() {
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert!(text.contains(&format!("\"code\":\"{word}\"")), "{kill}: {text}");
        // one that comes while the engine is away waits for it
        let (status, body) = service.chat(ask("hello", 4)).await;
        assert_eq!(status, 200, "{kill}: {body}");
        assert_ne!(service.engine(), before, "{kill}");
    }
    assert_eq!(service.state().await.unwrap()["ready"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_missing_leaves_the_service_up() {
    let mut catalog = real_catalog();
    catalog["mcpServers"]["local"]["args"] = json!(["engine", "--gguf", "models/nothing.gguf"]);
    let service = Service::launch(&catalog, "embedded", &[]);
    service.until("listening", |_| true).await;
    // a request that waits for it is told as well
    let waiting = service.chat(ask("hello", 4));
    let failed =
        service.until("failed", |state| state["servers"][0]["health"]["state"] == "failed");
    let ((status, body), state) = tokio::join!(waiting, failed);
    assert_eq!(state["ready"], false);
    let reason = state["servers"][0]["health"]["reason"].as_str().unwrap();
    assert!(reason.contains("models/nothing.gguf cannot be read"), "{state}");
    assert_eq!(status, 503, "{body}");
    let asked = std::time::Instant::now();
    let (status, body) = service.chat(ask("hello", 4)).await;
    assert_eq!(status, 503, "{body}");
    assert!(asked.elapsed() < std::time::Duration::from_secs(2), "{:?}", asked.elapsed());
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("the model local can't be started: "), "{body}");
    // without its folder, which is nothing for a client
    assert!(message.contains("model file nothing.gguf cannot be read"), "{body}");
    // it comes when the file does
    let folder = service.folder.path().join("models");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(model_file(), folder.join("nothing.gguf")).unwrap();
    service.until("ready", |state| state["ready"] == true).await;
    assert_eq!(service.chat(ask("hello", 4)).await.0, 200);
}

/// A real engine answers for a few seconds on a board of which only the heat is imagined.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_engine_can_be_simulated_on_another_board() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), real_catalog().to_string()).unwrap();
    let args = ["simulate", "--engine", "--board", "pi4", "--load", "0.3", "--hours", "0.003"];
    let args = [&args[..], &["--seed", "3", "--json", "--svg", "day.svg"]].concat();
    let (code, out, log) = program(folder.path(), &args, &[("PILOTLIGHT_STATE", "off")]).await;
    assert_eq!(code, 0, "{log}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let day = &told["policies"][0];
    assert!(day["jobs"].as_u64().unwrap() > 0 && day["tokens"].as_u64().unwrap() > 0, "{told}");
    assert!(day["peak_c"].as_f64().unwrap() > 40.0 && day["needless"].is_null(), "{told}");
    assert!(std::fs::read_to_string(folder.path().join("day.svg")).unwrap().starts_with("<svg"));
}

/// More tokens than are read at once, on more branches than there are at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_may_be_many_and_long() {
    // two threads that wait for each other stall beside the other tests' engines
    let model = gguf::open(GgufOptions { threads: 1, ..options(&model_file()) }).await.unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let mut name = |n: usize| {
        let letters: String = (0..17).map(|_| random.alphanumeric()).collect();
        (format!("{n} {letters}"), Vec::new())
    };
    let examples = (10..27).map(&mut name).collect();
    let labels = Labels { examples, margin: 0.0 };
    let mut asked = job("Which of these?", 4);
    asked.format = Format::Label(Arc::new(labels.clone()));
    let (text, usage) = run(&model, &asked).await.unwrap();
    assert!(labels.examples.contains_key(&text), "{text}");
    assert_eq!(usage.classification.unwrap().scores.len(), labels.examples.len());
}

/// What the model knows is measured, and the threshold that keeps the promise goes into the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_is_calibrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp.json");
    let model = model_file();
    let engine = ["engine", "--gguf", model.to_str().unwrap(), "--context", "1024"];
    let catalog = json!({
        "mcpServers": {"local": {"command": "pilotlight", "args": engine}},
        "pilotlight": {"tasks": {"report": reports::task()}},
    });
    std::fs::write(&path, serde_json::to_string_pretty(&catalog).unwrap()).unwrap();
    let known = |n| {
        let line = |report: reports::Report| {
            json!({"input": report.input(), "answer": report.reply()}).to_string() + "\n"
        };
        let lines: String = reports::reports(5, n).into_iter().map(line).collect();
        std::fs::write(folder.path().join("known.jsonl"), lines).unwrap();
    };
    let run = async |more: &[&str]| {
        let args = [&["calibrate", "report", "known.jsonl"], more].concat();
        program(folder.path(), &args, &[]).await
    };

    known(20);
    let (code, out, err) = run(&[]).await;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("20 samples are too few") && err.contains("needs at least 61"), "{err}");
    std::fs::write(folder.path().join("known.jsonl"), "{\"input\": \"x\"}\n").unwrap();
    let (_, _, err) = run(&[]).await;
    assert!(err.contains("line 1: give either answer or answers"), "{err}");

    known(20);
    let (code, out, err) = run(&["--wrong", "0.97", "--json"]).await;
    assert_eq!(code, 0, "{out} {err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["samples"], 20, "{out}");
    let mut set: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let task = set["pilotlight"]["tasks"]["report"].as_object_mut().unwrap();
    assert_eq!(task.remove("strategy").unwrap(), "cascade");
    let threshold = task.remove("threshold").unwrap();
    assert_eq!(threshold.as_f64(), told["best"]["threshold"].as_f64());
    assert_eq!(set, catalog);
    let (code, out, err) = program(folder.path(), &["check"], &[]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
}
