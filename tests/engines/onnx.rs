//! The ONNX engine with a real model: the contract, parity with the GGUF engine on the same
//! weights, bad folders and runtimes, and a prompt on MQTT.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::support::contract::{holds_over_every_transport, job, run};
use crate::support::engine::{
    REAL, a_shared_prefix_is_read_once, says_how_likely_its_tokens_were,
    the_more_urgent_goes_first, works,
};
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog, program};
use crate::support::{model_file, runtime};
use pilotlight::benchmark::loss::WeightsLoss;
use pilotlight::convert::{OnnxWeights, convert};
use pilotlight::engines::gguf;
use pilotlight::engines::onnx;
use pilotlight::engines::onnx::OnnxOptions;
use pilotlight::engines::worker::OnThread;
use pilotlight::model::generate::Generate;
use pilotlight::request::job::{Message, Role};
use serde_json::{Value, json};

/// The model of the GGUF tests, converted once in a run of this program.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx-int8");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        convert(&model_file(), &folder, OnnxWeights::Int8, |_, _| ()).unwrap();
        folder
    })
}

fn options(path: &Path) -> OnnxOptions {
    OnnxOptions {
        name: Some("smollm2-135m".to_owned()),
        context_tokens: 1024,
        threads: 1,
        runtime: Some(runtime()),
        ..OnnxOptions::of(path)
    }
}

async fn model() -> OnThread {
    onnx::open(options(folder())).await.unwrap()
}

async fn gguf() -> OnThread {
    let options = crate::gguf::options(&model_file());
    gguf::open(gguf::GgufOptions { threads: 1, ..options }).await.unwrap()
}

fn arguments() -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let folder = path(folder());
    let runtime = path(&runtime());
    ["--onnx", &folder, "--runtime", &runtime, "--context", "1024", "--threads", "1"]
        .map(str::to_owned)
        .to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_over_every_transport() {
    let arguments = arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    holds_over_every_transport(Arc::new(model().await), &arguments, &REAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_as_an_engine_must() {
    works(&model().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_states_what_the_folder_says() {
    let model = model().await;
    let context = model.context();
    assert_eq!(context.identification.family, "llama");
    assert_eq!(context.identification.licence.as_deref(), Some("apache-2.0"));
    assert_eq!(context.identification.digest.as_ref().map(String::len), Some(64));
    assert_eq!((context.tokenizer.kind.as_str(), context.tokenizer.vocab_size), ("BPE", 49152));
    assert_eq!(context.tokenizer.special_tokens["eos"], "<|im_end|>");
    let other = gguf().await;
    let digest = &other.context().tokenizer.chat_template_digest;
    assert_eq!(&context.tokenizer.chat_template_digest, digest);
    assert_eq!(context.runtime.backend, "onnxruntime");
    assert_eq!(context.runtime.quantization, "int8");
    assert!(context.runtime.version.starts_with("1."), "{}", context.runtime.version);
    assert!(context.runtime.prefill_tokens_per_s.unwrap() > 1.0);
}

const TEXT: &str = include_str!("../data/parity.txt");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_read_a_text_alike() {
    let text: String = TEXT.chars().take(1200).collect();
    let (one, other) =
        (gguf().await.read(&text).await.unwrap(), model().await.read(&text).await.unwrap());
    let near = WeightsLoss::of(&one, &other).unwrap();
    println!("{} tokens: {near:?}", one.tokens.len());
    assert!(near.same_first >= 0.95, "{near:?}");
    assert!(near.divergence <= 0.01, "{near:?}");
    assert!((near.perplexity - 1.0).abs() <= 0.02, "{near:?}");
}

/// The tokenizer that was made from the GGUF file splits every text as llama.cpp does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_engines_split_texts_alike() {
    let (one, other) = (gguf().await, model().await);
    let mut texts: Vec<String> = [
        "it's 12345 degrees, isn't it?  Yes.\n\n\tAnd 3.14 °C",
        "fn main() { println!(\"{}\", 0x1F); }",
        "Grüße aus Köln, naïve café, 東京 東京, 🔥🔥, a\u{0301}",
        "   leading and trailing   ",
        "<|im_start|>system",
    ]
    .map(str::to_owned)
    .to_vec();
    for file in ["src/lib.rs", "docs/configuration.md", "Cargo.toml", "scripts/lib.sh"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = fs::read_to_string(path).unwrap();
        let letters: Vec<char> = text.chars().collect();
        texts.extend(letters.chunks(120).take(2).map(|part| part.iter().collect()));
    }
    for text in texts {
        let (a, b) = (one.read(&text).await.unwrap(), other.read(&text).await.unwrap());
        assert_eq!(a.tokens, b.tokens, "{text:?}");
    }
}

/// A folder as optimum writes it: the model's own description, and a cache that grows with each
/// step instead of lying in shared buffers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_optimum_is_read() {
    let work = tempfile::tempdir().unwrap();
    for name in ["model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"] {
        fs::hard_link(folder().join(name), work.path().join(name)).unwrap();
    }
    let ours: Value =
        serde_json::from_slice(&fs::read(folder().join("genai_config.json")).unwrap()).unwrap();
    let decoder = &ours["model"]["decoder"];
    let config = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": ours["model"]["eos_token_id"],
        "max_position_embeddings": ours["model"]["context_length"],
        "hidden_size": decoder["hidden_size"],
        "num_attention_heads": decoder["num_attention_heads"],
        "num_hidden_layers": decoder["num_hidden_layers"],
        "num_key_value_heads": decoder["num_key_value_heads"],
    });
    fs::write(work.path().join("config.json"), config.to_string()).unwrap();
    let growing = onnx::open(options(work.path())).await.unwrap();
    a_shared_prefix_is_read_once(&growing).await;
    says_how_likely_its_tokens_were(&growing).await;
    let text: String = TEXT.chars().take(400).collect();
    let (one, other) =
        (model().await.read(&text).await.unwrap(), growing.read(&text).await.unwrap());
    let near = WeightsLoss::of(&one, &other).unwrap();
    assert!(near.same_first >= 0.99 && near.divergence < 1e-4, "{near:?}");
}

/// Each of several conversations is kept ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_prefixes_are_kept() {
    let model = onnx::open(OnnxOptions { prefixes: 2, ..options(folder()) }).await.unwrap();
    let long = |what: &str| format!("{what} runs from the hills to the sea. ").repeat(10);
    let mut answers = Vec::new();
    for round in 0..2 {
        for what in ["The river", "A road"] {
            let (text, usage) = run(&model, &job(&long(what), 6)).await.unwrap();
            assert_eq!(usage.cached_tokens > 50, round == 1, "{what}: {usage:?}");
            answers.push(text);
        }
    }
    assert_eq!(answers[..2], answers[2..]);
    assert_eq!(model.context().runtime.slots, 2);
    the_more_urgent_goes_first(&model).await;
}

/// Weights in the processor's own order are made once, used again, and made anew when damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_weights_are_made_once() {
    let work = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            fs::hard_link(&file, work.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    let answer = async || {
        let model = onnx::open(options(work.path())).await.unwrap();
        run(&model, &job("hello", 8)).await.unwrap().0
    };
    let prepared = || {
        let entries = fs::read_dir(work.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut found = entries.filter(|path| path.is_dir() && path.extension().is_none());
        let home = found.next().unwrap();
        assert!(found.next().is_none(), "{home:?}");
        home.join("model.onnx.data")
    };
    let made = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let first = answer().await;
    let (data, when) = (prepared(), made(&prepared()));
    // left behind by a process that did not come to its end
    fs::create_dir(data.parent().unwrap().with_extension("999999999-0.part")).unwrap();
    assert_eq!(answer().await, first);
    assert_eq!((&prepared(), made(&data)), (&data, when), "it was made twice");
    let mut bytes = fs::read(&data).unwrap();
    let at = bytes.len() / 3;
    bytes[at] ^= 1;
    fs::write(&data, bytes).unwrap();
    assert_eq!(answer().await, first);
    assert_ne!(made(&prepared()), when, "a damaged one was used");
    let folders =
        fs::read_dir(work.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
    assert_eq!(folders.count(), 1, "something was left behind");
}

/// Templates of some families refuse instructions without a question: what begins a prompt is looked for with the
/// instructions alone. Others take typed parts only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_is_answered_whatever_form_the_template_takes() {
    let answer = async |template: &str| {
        let folder = crate::bounds::folder_with_template(template);
        let model = onnx::open(options(folder.path())).await.unwrap();
        let mut job = job("Name a river.", 12);
        job.messages.insert(0, Message::new(Role::System, "Answer in one word."));
        let (text, usage) = run(&model, &job).await.unwrap();
        (text, usage.prompt_tokens, model.context().tokenizer.template_adaptations.clone())
    };
    let begin = "{% for m in messages %}<|im_start|>{{ m.role }}\n";
    let end = "<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let plain = answer(&format!("{begin}{{{{ m.content }}}}{end}")).await;
    assert_eq!(plain.2, Vec::<String>::new());
    let asks = "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}\
                {{ raise_exception('no question') }}{% endif %}";
    let needs_question = answer(&format!("{asks}{begin}{{{{ m.content }}}}{end}")).await;
    assert_eq!(needs_question, plain);
    let parts =
        answer(&format!("{begin}{{% for p in m.content %}}{{{{ p.text }}}}{{% endfor %}}{end}"))
            .await;
    assert_eq!((parts.0, parts.1), (plain.0, plain.1));
    assert_eq!(parts.2, ["content_parts"]);
}

async fn said(options: OnnxOptions) -> String {
    onnx::open(options).await.err().expect("it was opened").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_folders_are_clear_errors() {
    let work = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    // a copy of the folder in which one file is another; only ours has digests
    let with = |name: &str, digests: bool, change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>| {
        let copy = work.path().join(format!("copy-{name}-{}", fastrand::u32(..)));
        fs::create_dir(&copy).unwrap();
        for file in &files {
            let target = copy.join(file.file_name().unwrap());
            if file.ends_with(name) {
                if let Some(bytes) = change(fs::read(file).unwrap()) {
                    fs::write(target, bytes).unwrap();
                }
            } else if digests || !file.ends_with("pilotlight.json") {
                fs::hard_link(file, target).unwrap();
            }
        }
        options(&copy)
    };
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        with(name, true, &|bytes| {
            let mut value = serde_json::from_slice(&bytes).unwrap();
            change(&mut value);
            Some(serde_json::to_vec(&value).unwrap())
        })
    };
    let flip = |mut bytes: Vec<u8>| {
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        Some(bytes)
    };
    let half = |bytes: Vec<u8>| Some(bytes[..bytes.len() / 2].to_vec());
    let cases = [
        (options(&work.path().join("nothing")), "no model folder"),
        (options(work.path()), "neither genai_config.json nor config.json"),
        (with("model.onnx.data", true, &flip), "SHA-256 mismatch"),
        (with("model.onnx.data", true, &half), "SHA-256 mismatch"),
        (with("model.onnx.data", false, &half), "ONNX Runtime cannot load"),
        (with("model.onnx.data", false, &|_| None), "ONNX Runtime cannot load"),
        (with("model.onnx", false, &half), "ONNX Runtime cannot load"),
        (with("tokenizer.json", false, &half), "the tokenizer"),
        (with("tokenizer.json", true, &|_| None), "tokenizer.json cannot be read"),
        (with("genai_config.json", true, &half), "genai_config.json cannot be read"),
        (
            edit("genai_config.json", &|c| c["model"]["decoder"]["num_hidden_layers"] = json!(31)),
            "no input past_key_values.30.key",
        ),
        (OnnxOptions { context_tokens: 2_000_000, ..options(folder()) }, "at most"),
        (OnnxOptions { prefixes: 0, ..options(folder()) }, "must be 1 to"),
    ];
    for (options, expected) in cases {
        let path = options.path.clone();
        let error = said(options).await;
        assert!(error.contains(expected), "{}: {error}", path.display());
    }
    // and a good one is opened in the same process
    run(&model().await, &job("hello", 2)).await.unwrap();
}

/// Each in a process of its own: a runtime is loaded once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_runtimes_are_clear_errors() {
    let work = tempfile::tempdir().unwrap();
    let library = fs::read_dir(runtime()).unwrap().map(|entry| entry.unwrap().path());
    let library = library.filter(|path| path.extension().is_none_or(|e| e != "sha256"));
    let good = fs::read(library.max().unwrap()).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = work.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let mut flipped = good.clone();
    flipped[1 << 20] ^= 1;
    let changed = write("libonnxruntime.so.2", &flipped);
    write("libonnxruntime.so.2.sha256", &fs::read(sidecar()).unwrap());
    let cases = [
        (work.path().join("nothing.so").display().to_string(), "no ONNX Runtime library"),
        (write("cut.so", &good[..good.len() - 4096]), "truncated"),
        (
            write("text.so", b"not a library, but long enough to have a head of sixty-four bytes"),
            "shared library",
        ),
        (changed, "SHA-256"),
        // a library, but another one
        (some_other_library(), "cannot be used"),
    ];
    let folder = folder().display().to_string();
    for (runtime, expected) in cases {
        let arguments = ["engine", "--onnx", &folder, "--runtime", &runtime];
        let (code, _, log) = program(work.path(), &arguments, &[]).await;
        assert!(code > 0, "{runtime}: {log}");
        assert!(log.contains(expected), "{runtime}: {log}");
    }
}

fn sidecar() -> PathBuf {
    let files = fs::read_dir(runtime()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "sha256")).max().unwrap()
}

/// The C library of this process.
fn some_other_library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let paths = maps.lines().filter_map(|line| line.split_whitespace().last());
    paths.filter(|path| path.contains("libc.so")).map(str::to_owned).next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_converted_is_named() {
    let work = tempfile::tempdir().unwrap();
    let good = fs::read(model_file()).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|part| part == from).expect("it is there");
        bytes[at..at + from.len()].copy_from_slice(to);
        bytes
    };
    let cases = [
        (b"no model".to_vec(), "damaged"),
        (good[..200_000].to_vec(), "damaged"),
        (good[..good.len() / 2].to_vec(), "the file ends before tensor"),
        (changed(b"llama", b"mamba"), "architecture mamba is not supported, only llama"),
        (changed(b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0smxllm"), "pre-tokenizer"),
    ];
    for (n, (bytes, expected)) in cases.into_iter().enumerate() {
        let from = work.path().join(format!("{n}.gguf"));
        fs::write(&from, bytes).unwrap();
        let to = work.path().join(format!("{n}"));
        let error = format!("{:#}", convert(&from, &to, OnnxWeights::Int8, |_, _| ()).unwrap_err());
        assert!(error.contains(expected), "{n}: {error}");
        assert!(!to.exists());
    }
    let error = convert(&model_file(), folder(), OnnxWeights::Int8, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("already there"), "{error}");
}

/// Both engines behind one service: each answers when it is asked for, and the ONNX one answers
/// when the other has gone; a runtime that is missing leaves the service up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_on_mqtt_is_answered_by_the_engine_that_was_asked() {
    let arguments = arguments();
    let mut onnx = vec!["engine".to_owned()];
    onnx.extend(arguments);
    onnx.extend(["--name", "onnx-model"].map(str::to_owned));
    let path = model_file().display().to_string();
    let mut catalog =
        catalog(&["--gguf", &path, "--name", "gguf-model", "--context", "1024", "--threads", "1"]);
    catalog["mcpServers"]["onnx"] = json!({"command": "pilotlight", "args": onnx});
    let mut lost = onnx.clone();
    let at = lost.iter().position(|word| word == "--runtime").unwrap();
    lost[at + 1] = "/nowhere".to_owned();
    catalog["mcpServers"]["lost"] = json!({"command": "pilotlight", "args": lost});
    catalog["pilotlight"]["servers"] = json!({
        "local": {"reach": "device"}, "onnx": {"reach": "device"}, "lost": {"reach": "device"}
    });
    let service = Service::start(&catalog).await;
    service
        .until("both ready, and the other failed", |state| {
            let is = |name: &str, health: &str| {
                let servers = state["servers"].as_array().unwrap();
                servers.iter().any(|s| s["server"] == name && s["health"]["state"] == health)
            };
            is("local", "ready") && is("onnx", "ready") && is("lost", "failed")
        })
        .await;
    let mut app = App::of(service.mqtt, "app").await;
    for (model, server) in [("gguf-model", "local"), ("onnx-model", "onnx")] {
        let request = json!({"prompt": REAL.short, "max_tokens": 8, "model": model});
        let reply = app.ask("app", request.to_string()).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        assert_eq!(reply["source"]["model"], model, "{reply}");
        assert_eq!(reply["decision"]["attempts"][0]["server"], server, "{reply}");
        assert_eq!(reply["usage"]["completion_tokens"], 8, "{reply}");
    }
}
