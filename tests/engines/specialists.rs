//! Classification and embeddings: rules, a chain of models that are not sure, a real encoder, labels
//! scored by a real language model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::support::contract::{holds_over_every_transport, job, run};
use crate::support::engine::REAL;
use crate::support::labelled::{encoder, label_job, labels, prompts};
use crate::support::mqtt::App;
use crate::support::service::Service;
use crate::support::{model_file, runtime};
use pilotlight::convert::{OnnxWeights, convert};
use pilotlight::engines::gguf;
use pilotlight::engines::onnx;
use pilotlight::engines::onnx::{ExecutionProvider, OnnxOptions};
use pilotlight::engines::worker::{Calibration, OnThread};
use pilotlight::model::generate::{Fault, Generate};
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role};
use pilotlight::request::labels::Labels;
use pilotlight::request::refusal::Code;
use serde_json::{Value, json};

fn options(path: &Path) -> OnnxOptions {
    OnnxOptions {
        name: Some("minilm".to_owned()),
        context_tokens: 512,
        threads: 1,
        runtime: Some(runtime()),
        ..OnnxOptions::of(path)
    }
}

/// The language model of the tests, on one thread.
fn language_model(context_tokens: u32, calibration: Calibration) -> gguf::GgufOptions {
    let options = crate::gguf::options(&model_file());
    gguf::GgufOptions { context_tokens, threads: 1, calibration, ..options }
}

async fn model() -> OnThread {
    onnx::open(options(&encoder())).await.unwrap()
}

async fn vectors(model: &dyn Generate, texts: &[&str]) -> Vec<Vec<f32>> {
    let message = |text: &&str| Message::new(Role::User, *text);
    let messages = texts.iter().map(message).collect();
    let job = Job { messages, format: Format::Embedding, ..job("", 1) };
    serde_json::from_str(&run(model, &job).await.unwrap().0).unwrap()
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// How many of the prompts get their label.
async fn accuracy(model: &dyn Generate, task: &str, step: usize) -> f64 {
    let labels = labels(task);
    let (mut right, mut all) = (0, 0_usize);
    for (label, text) in prompts(task, "test").into_iter().step_by(step) {
        let (said, _) = run(model, &label_job(&text, &labels)).await.unwrap();
        right += usize::from(said == label);
        all += 1;
    }
    right as f64 / all as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_holds_the_contract_over_every_transport() {
    let (path, runtime) = (encoder().display().to_string(), runtime().display().to_string());
    let arguments = ["--onnx", &path, "--runtime", &runtime, "--threads", "1"];
    holds_over_every_transport(Arc::new(model().await), &arguments, &REAL).await;
}

/// The products of these texts' vectors as the unquantized weights give them, computed with numpy
/// from the equations of the paper, in 32 bits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantized_vectors_mean_what_the_weights_mean() {
    let texts: Vec<&str> = REFERENCE.iter().map(|(text, _)| *text).collect();
    let model = model().await;
    let got = vectors(&model, &texts).await;
    for (a, (text, products)) in REFERENCE.iter().enumerate() {
        for (b, expected) in products.iter().enumerate() {
            let product = product(&got[a], &got[b]);
            assert!((product - expected).abs() < 0.03, "{text:?}, {b}: {product} for {expected}");
        }
    }
    // alone or padded beside a longer text, a text means the same
    for (n, text) in texts.iter().enumerate() {
        let alone = vectors(&model, &[*text]).await.remove(0);
        assert!(product(&alone, &got[n]) > 0.999, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoder_states_itself_and_reads_no_further_than_it_can() {
    let model = model().await;
    let context = model.context();
    assert_eq!(context.identification.family, "bert");
    assert_eq!(context.capabilities.skills, ["classify", "embed"]);
    assert!(context.capabilities.embeddings && context.capabilities.max_output_tokens == 0);
    assert_eq!(context.capabilities.context_tokens, 256);
    assert_eq!(context.runtime.quantization, "int8");
    let long = "the boiler is cold ".repeat(100);
    let job = Job { format: Format::Embedding, ..job(&long, 1) };
    let Err(Fault::Rejected(refusal)) = run(&model, &job).await else { panic!("it was read") };
    assert_eq!(refusal.code, Code::Incapable);
    // a text is no control token
    let plain = vectors(&model, &["stop", "[SEP] stop"]).await;
    assert!(product(&plain[0], &plain[1]) < 0.98);
}

/// On labels and prompts that were kept apart from the examples. Chance is 33, 25 and 17 %; what
/// was measured stands in `docs/measurements.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_encoder_classifies() {
    let model = model().await;
    for (task, least) in [("severity", 0.65), ("topic", 0.85), ("intent", 0.65)] {
        let accuracy = accuracy(&model, task, 1).await;
        assert!(accuracy >= least, "{task}: {accuracy}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_language_model_scores_labels() {
    let running = gguf::open(language_model(1024, Calibration::Running)).await.unwrap();
    let with = accuracy(&running, "topic", 3).await;
    drop(running);
    let plain = gguf::open(language_model(1024, Calibration::Plain)).await.unwrap();
    let without = accuracy(&plain, "topic", 3).await;
    assert!(with >= 0.7 && with > without, "{with} calibrated, {without} not");
}

/// The engine learns its bias from the texts of a cache group, and uses it for that group alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_one_group_do_not_change_the_labels_of_another() {
    let model = gguf::open(language_model(1024, Calibration::Running)).await.unwrap();
    let labels = labels("severity");
    let prompts: Vec<String> =
        prompts("severity", "test").into_iter().map(|(_, prompt)| prompt).collect();
    let answer_of = async |group: &str, text: &str, seed: Option<u32>| {
        let mut job = label_job(text, &labels);
        job.sampling.seed = seed;
        let job = Job { cache_group: group.to_owned(), open_bytes: 1, ..job };
        run(&model, &job).await.unwrap().1.classification.unwrap().scores
    };
    let scores = async |group: &str, text: &str| answer_of(group, text, None).await;
    let furthest = |a: &BTreeMap<String, f32>, b: &BTreeMap<String, f32>| {
        a.iter().map(|(label, score)| (score - b[label]).abs()).fold(0.0, f32::max)
    };
    let text = &prompts[0];
    scores("warm", &prompts[1]).await;
    let first = scores("alpha", text).await;
    for prompt in prompts.iter().skip(1).step_by(4) {
        scores("beta", prompt).await;
        answer_of("delta", prompt, Some(1)).await;
    }
    let (gamma, beta) = (scores("gamma", text).await, scores("beta", text).await);
    // a prefix that was read in other batches, or lies elsewhere in the KV cache, gives slightly other scores: the order
    // of the sums of flash attention depends on both
    let (other, own) = (furthest(&first, &gamma), furthest(&first, &beta));
    assert!(other < 0.03 && own > 3.0 * other, "{first:?} {beta:?} {gamma:?}");
    // with a seed neither the group's texts before count nor does this one count for those after it
    let (repeated, unchanged) =
        (answer_of("beta", text, Some(1)).await, scores("delta", text).await);
    let (repeated, unchanged) = (furthest(&first, &repeated), furthest(&first, &unchanged));
    assert!(repeated < 0.03 && unchanged < 0.04, "{first:?}: {repeated}, {unchanged}");
}

/// The other engine scores the same labels from the same weights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_score_alike() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("smollm2");
    convert(&model_file(), &made, OnnxWeights::Int8, |_, _| ()).unwrap();
    let plain = Calibration::Plain;
    let one = onnx::open(OnnxOptions { calibration: plain, ..options(&made) }).await.unwrap();
    let other = gguf::open(language_model(512, plain)).await.unwrap();
    // labels of several tokens, of which only the last tells them apart
    let names = ["access", "heat", "power", "radio"].map(|what| format!("a problem with {what}"));
    let examples = names.map(|name| (name, Vec::new())).into_iter().collect();
    let labels = Arc::new(Labels { examples, margin: 0.0 });
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for (_, text) in prompts("topic", "test").into_iter().step_by(20) {
        let job = label_job(&text, &labels);
        let said = async |model: &dyn Generate| {
            run(model, &job).await.unwrap().1.classification.unwrap().scores
        };
        let (a, b) = (said(&one).await, said(&other).await);
        for (label, score) in &a {
            assert!((score - b[label]).abs() < 0.05, "{text}: {a:?} {b:?}");
        }
        seen.push(b.into_values().collect());
    }
    // and what comes before them counts
    let moved = seen.iter().flat_map(|row| row.iter().zip(&seen[0]).map(|(x, y)| (x - y).abs()));
    assert!(moved.fold(0.0, f32::max) > 0.1, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accelerator_that_is_not_there_is_an_error_unless_others_may_be_tried() {
    let providers = vec![ExecutionProvider::Tensorrt, ExecutionProvider::Cuda];
    let strict = OnnxOptions { providers: providers.clone(), ..options(&encoder()) };
    let error = onnx::open(strict).await.err().expect("this runtime has no CUDA").to_string();
    assert!(error.contains("tensorrt") && error.contains("--fallback"), "{error}");
    let lenient = OnnxOptions { providers, fallback: true, ..options(&encoder()) };
    let model = onnx::open(lenient).await.unwrap();
    let runtime = &model.context().runtime;
    assert_eq!(runtime.accelerator, None);
    let why = runtime.fallback.as_deref().unwrap();
    assert!(why.contains("tensorrt") && why.contains("cuda"), "{why}");
    assert_eq!(vectors(&model, &["it works"]).await.len(), 1);

    // weights that have changed are no more taken for an accelerator than for the processor
    let work = tempfile::tempdir().unwrap();
    for name in ["model.onnx", "tokenizer.json", "config.json", "pilotlight.json"] {
        std::fs::copy(encoder().join(name), work.path().join(name)).unwrap();
    }
    let mut weights = std::fs::read(encoder().join("model.onnx.data")).unwrap();
    weights[1 << 20] ^= 1;
    std::fs::write(work.path().join("model.onnx.data"), weights).unwrap();
    let changed = OnnxOptions { providers: vec![ExecutionProvider::Cuda], ..options(work.path()) };
    let error = onnx::open(changed).await.err().unwrap().to_string();
    assert!(error.contains("SHA-256 mismatch"), "{error}");
}

#[test]
fn encoders_that_are_not_supported_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    let config =
        |value: &Value| std::fs::write(from.join("config.json"), value.to_string()).unwrap();
    let refused =
        || format!("{:#}", convert(&from, &to, OnnxWeights::Int8, |_, _| ()).unwrap_err());
    assert!(refused().contains("config.json"));
    config(&json!({"model_type": "mpnet"}));
    assert!(refused().contains("mpnet is not supported, only bert is"));
    let sizes = json!({"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 8});
    config(&sizes);
    assert!(refused().contains("model.safetensors cannot be read"));
    std::fs::write(from.join("model.safetensors"), b"not tensors").unwrap();
    assert!(refused().contains("is damaged"));
    assert!(!to.exists() && !to.with_extension("part").exists(), "nothing is left behind");
}

/// Three scripted models that classify, the last one far away.
fn chain() -> Value {
    let scripted =
        |name: &str| json!({"command": "pilotlight", "args": ["engine", "--scripted", name]});
    json!({
        "mcpServers": {"a": scripted("a"), "b": scripted("b"), "c": scripted("c")},
        "pilotlight": {
            "device": {"name": "dev"},
            "servers": {"c": {"reach": "cloud"}},
            "tasks": {"state": {
                "template": "{{input}}",
                "labels": {"cold": [], "hot": ["it burns"], "ok": []},
                "margin": 0.6,
                "rules": [{"when": "reading > 90", "label": "hot"}]
            }}
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_models_that_are_not_sure() {
    let service = Service::start(&chain()).await;
    service.ready_all().await;
    let mut app = App::of(service.mqtt, "app").await;
    let mut ask = async |value: Value| app.ask("app/state", value.to_string()).await;
    let who = |reply: &Value| reply["source"]["server"].as_str().map(str::to_owned);

    let reply = ask(json!({"id": "1", "prompt": "it is hot"})).await;
    assert_eq!((reply["text"].as_str(), who(&reply).as_deref()), (Some("hot"), Some("a")));
    assert_eq!(reply["confidence"], 1.0);
    assert_eq!(reply["decision"]["reason"], "feasible");

    let reply = ask(json!({"id": "2", "prompt": "it is hot /sure-a=0.5"})).await;
    assert_eq!((reply["text"].as_str(), who(&reply).as_deref()), (Some("hot"), Some("b")));
    assert_eq!(reply["decision"]["reason"], "quality:confidence");
    assert_eq!(reply["decision"]["attempts"][0]["outcome"], "unsure");

    let both = "it is hot /sure-a=0.5 /sure-b=0.5";
    let reply = ask(json!({"id": "3", "prompt": both})).await;
    assert_eq!(who(&reply).as_deref(), Some("c"), "{reply}");
    assert_eq!(reply["decision"]["route"], "cloud");

    // what is private stays, and the surest word is the answer
    let reply =
        ask(json!({"id": "4", "prompt": format!("{both} /sure-b=0.55"), "mode": "local-only"}))
            .await;
    assert_eq!(
        (reply["status"].as_str(), who(&reply).as_deref()),
        (Some("ok"), Some("b")),
        "{reply}"
    );
    assert!((reply["confidence"].as_f64().unwrap() - 0.55).abs() < 1e-6);
    let sum: f64 = reply["scores"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
    assert!((sum - 1.0).abs() < 1e-6);

    // the next one says nothing until the time is over: an unsure word is better than none
    let hangs = "it is hot /sure-a=0.5 /fail-b=hang";
    let reply =
        ask(json!({"id": "8", "prompt": hangs, "mode": "local-only", "deadline_ms": 2000})).await;
    assert_eq!(
        (reply["status"].as_str(), reply["text"].as_str(), who(&reply).as_deref()),
        (Some("ok"), Some("hot"), Some("a")),
        "{reply}"
    );
    assert_eq!(reply["decision"]["attempts"][1]["outcome"], "cancelled");

    // a rule needs no model
    let reply = ask(json!({"id": "5", "input": {"input": "x", "reading": 95}})).await;
    assert_eq!(
        (reply["text"].as_str(), reply["decision"]["reason"].as_str()),
        (Some("hot"), Some("rule"))
    );
    assert_eq!(who(&reply), None);
    let reply = ask(json!({"id": "6", "input": {"input": "ok /sure=0.9", "reading": 12}})).await;
    assert_eq!((reply["text"].as_str(), who(&reply).as_deref()), (Some("ok"), Some("a")));
    let reply = ask(json!({"id": "7", "input": {"input": "x", "reading": "warm"}})).await;
    assert_eq!(
        (reply["status"].as_str(), reply["error"]["field"].as_str()),
        (Some("refused"), Some("input.reading"))
    );

    over_http(&service).await;
}

async fn over_http(service: &Service) {
    let chat = json!({"model": "auto", "metadata": {"task": "state"},
        "messages": [{"role": "user", "content": "it is hot /sure-a=0.5"}]});
    let (status, body) = service.chat(chat).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "hot");
    assert_eq!(body["pilotlight"]["decision"]["reason"], "quality:confidence");
    assert_eq!(body["pilotlight"]["confidence"], 1.0);
    // nobody here embeds
    let (status, body) =
        service.post("/v1/embeddings", &json!({"model": "auto", "input": "x"})).await;
    assert_eq!((status, body["error"]["param"].as_str()), (400, Some("talent")), "{body}");
    let two = json!({"model": "auto", "messages": [{"role": "user", "content": "x"}], "metadata": {"task": "no"}});
    assert_eq!(service.chat(two).await.0, 404);
}

/// An encoder and a language model in one service: each is chosen for what it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_engine_does_what_it_can() {
    let text = |path: &Path| path.display().to_string();
    let config = json!({
        "mcpServers": {
            "encoder": {"command": "pilotlight", "args": ["engine", "--onnx", text(&encoder()), "--runtime", text(&runtime()), "--name", "minilm", "--threads", "1"]},
            "local": {"command": "pilotlight", "args": ["engine", "--gguf", text(&model_file()), "--name", "smollm2", "--context", "512", "--threads", "1"]}
        },
        "pilotlight": {
            "device": {"name": "dev"},
            "servers": {"local": {"talents": ["poetry"]}},
            "tasks": {"topic": {"template": "{{input}}", "labels": labels("topic").examples, "margin": 0.5}}
        }
    });
    let service = Service::start(&config).await;
    service.ready_all().await;
    let mut app = App::of(service.mqtt, "app").await;
    let reply = app.ask("app/topic", "The radiator in room 3 stays cold").await;
    assert_eq!(
        (reply["text"].as_str(), reply["source"]["model"].as_str()),
        (Some("climate"), Some("minilm")),
        "{reply}"
    );
    let reply = app.ask("app", json!({"prompt": "Say hello.", "max_tokens": 4}).to_string()).await;
    assert_eq!(reply["source"]["model"], "smollm2", "{reply}");
    assert_eq!(reply["decision"]["reason"], "capability:talent");
    let reply = app
        .ask("app", json!({"prompt": "A line.", "max_tokens": 4, "talent": "poetry"}).to_string())
        .await;
    assert_eq!(reply["source"]["model"], "smollm2", "{reply}");
    let reply =
        app.ask("app", json!({"prompt": "A line.", "talent": "painting"}).to_string()).await;
    assert_eq!(
        (reply["status"].as_str(), reply["error"]["field"].as_str()),
        (Some("refused"), Some("talent"))
    );

    let ask = json!({"model": "minilm", "input": ["a fire", "a flame", "an invoice"]});
    let (status, body) = service.post("/v1/embeddings", &ask).await;
    assert_eq!((status, body["data"].as_array().map(Vec::len)), (200, Some(3)), "{body}");
    let vector = |n: usize| -> Vec<f32> {
        serde_json::from_value(body["data"][n]["embedding"].clone()).unwrap()
    };
    assert!(product(&vector(0), &vector(1)) > product(&vector(0), &vector(2)));
    assert!(body["usage"]["prompt_tokens"].as_u64() > Some(6));
    // as the official clients ask: the bytes of the numbers
    let ask = json!({"model": "minilm", "input": "a fire", "encoding_format": "base64"});
    let (_, packed) = service.post("/v1/embeddings", &ask).await;
    let packed = packed["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(packed.len(), (384_usize * 4).div_ceil(3) * 4);
    let (status, body) =
        service.post("/v1/embeddings", &json!({"model": "smollm2", "input": "x"})).await;
    assert_eq!(status, 400, "a model that writes embeds nothing: {body}");
    let (status, body) =
        service.post("/v1/embeddings", &json!({"model": "auto", "input": []})).await;
    assert_eq!(status, 400, "{body}");
}

/// Texts, and the products of their vectors.
const REFERENCE: [(&str, [f32; 5]); 5] = [
    ("The stove is burning", [1.000, 0.682, 0.054, 0.062, 0.023]),
    ("There is a fire on the cooker", [0.682, 1.000, 0.007, 0.098, 0.027]),
    ("Pay the electricity invoice before Friday", [0.054, 0.007, 1.000, 0.081, 0.058]),
    ("The MQTT client reconnects every minute", [0.062, 0.098, 0.081, 1.000, -0.017]),
    ("hello", [0.023, 0.027, 0.058, -0.017, 1.000]),
];
