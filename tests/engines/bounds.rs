//! What one request or one model file can cost an engine: schemas, memory, files, networks.

use std::path::Path;
use std::time::{Duration, Instant};

use pilotlight::model::generate::Fault;
use pilotlight::request::format::Format;
use serde_json::{Value, json};

use crate::support::contract::{job, run};
use crate::support::service::{Service, catalog, program};
use crate::support::{child, model_file, pace, runtime};

/// A value of `/proc/PID/status`, in MiB.
fn status_mib(pid: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// The soft limit of writable private memory of a process, in MiB.
fn memory_limit_mib(pid: u32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max data size")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().expect("a limit") >> 20
}

fn nested(key: &str, times: usize, leaf: Value) -> Value {
    (0..times).fold(leaf, |inner, n| {
        json!({key: [inner.clone(), {"type": "object", "properties": {format!("p{n}"): inner}}]})
    })
}

fn named(count: usize, schema: &Value) -> Value {
    (0..count)
        .map(|n| (format!("name{n:04}"), schema.clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// References that lead to references, to a string at the end.
fn referred(count: usize, link: impl Fn(usize) -> Value) -> Value {
    let mut all: serde_json::Map<String, Value> =
        (0..count).map(|n| (n.to_string(), link(n + 1))).collect();
    all.insert(count.to_string(), json!({"type": "string"}));
    json!({"$ref": "#/$defs/0", "$defs": all})
}

/// Schemas that cost seconds or gigabytes in a library without bounds, or might.
fn costly_values() -> Vec<(&'static str, Value)> {
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    vec![
        (
            "wide multiple",
            json!({"type": "integer", "multipleOf": 99_999_989, "minimum": 0, "maximum": 999_999_999_999_999_u64}),
        ),
        (
            "wide decimal",
            json!({"type": "number", "multipleOf": 0.000_123_457, "minimum": 0.1, "maximum": 1e15}),
        ),
        (
            "several multiples",
            json!({"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}, {"multipleOf": 983}], "minimum": 1, "maximum": 999_999_999_999_999_u64}),
        ),
        (
            "many digits",
            json!({"type": "number", "minimum": 0.000_000_000_000_001_234_567, "maximum": 123_456_789_012_345_678.123}),
        ),
        (
            "many ranges",
            json!({"anyOf": (1..300).map(|n| json!({"type": "integer", "minimum": n * 1_000_003_u64, "maximum": n * 977_000_003_u64})).collect::<Vec<_>>()}),
        ),
        (
            "300 patterns",
            json!({"type": "object", "properties": (0..300).map(|n| (format!("p{n}"), text(&format!("^\\pL{{200}}{n}$")))).collect::<serde_json::Map<_, _>>(), "required": (0..300).map(|n| format!("p{n}")).collect::<Vec<_>>()}),
        ),
        ("a million repetitions", text("^a{1000000}$")),
        ("nested repetitions", text("^((((a|aa){1,1000}b){1,1000}c){1,1000})$")),
        ("a late choice", text("^.*a.{200}$")),
        (
            "many alternatives",
            text(&format!(
                "^({})$",
                (1..400).map(|n| format!("[a-z]{{{n}}}x{n}")).collect::<Vec<_>>().join("|")
            )),
        ),
        (
            "many classes",
            text(
                &(0..5000_u32)
                    .map(|n| format!("[^a{}]", char::from_u32(0x100 + n).unwrap()))
                    .collect::<Vec<_>>()
                    .concat(),
            ),
        ),
        ("optional letters", text(&format!("{}{}", "a?".repeat(15_000), "a".repeat(15_000)))),
    ]
}

/// The same, by their structure.
fn costly_structures() -> Vec<(&'static str, Value)> {
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let pattern_at = |n: usize| text(&format!(".*[a-e]{{{}}}[f-z].*", n + 1));
    vec![
        ("joined patterns", json!({"allOf": (0..13).map(pattern_at).collect::<Vec<_>>()})),
        (
            "joined references",
            json!({"allOf": (0..24).map(|n| json!({"$ref": format!("#/$defs/{n}")})).collect::<Vec<_>>(), "$defs": (0..24).map(|n| (n.to_string(), pattern_at(n))).collect::<serde_json::Map<_, _>>()}),
        ),
        (
            "patterns of properties",
            json!({"type": "object", "patternProperties": (0..200).map(|n| (format!("^x{n}[a-z]{{1,50}}$"), json!({"type": "integer"}))).collect::<serde_json::Map<_, _>>()}),
        ),
        (
            "a length of a million",
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 1_000_000}),
        ),
        (
            "a pattern and a length",
            json!({"type": "string", "pattern": "^(\\pL|\\pN){1,100000}$", "minLength": 5000, "maxLength": 90_000}),
        ),
        (
            "large arrays of arrays",
            json!({"type": "array", "minItems": 1_000_000, "items": {"type": "array", "minItems": 1_000_000, "maxItems": 1_000_000, "items": {"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}}}}),
        ),
        (
            "deep allOf",
            nested("allOf", 7, json!({"type": "object", "properties": {"a": {"type": "string"}}})),
        ),
        (
            "deep anyOf",
            nested("anyOf", 7, json!({"type": "object", "properties": {"a": {"type": "string"}}})),
        ),
        (
            "deep oneOf",
            nested("oneOf", 7, json!({"type": "object", "properties": {"a": {"type": "string"}}})),
        ),
        (
            "allOf of anyOf",
            json!({"allOf": (0..10).map(|n| json!({"anyOf": (0..6).map(|m| json!({"type": "object", "required": [format!("k{n}{m}")]})).collect::<Vec<_>>()})).collect::<Vec<_>>()}),
        ),
        (
            "many properties",
            json!({"type": "object", "properties": named(1400, &json!({"type": "integer"})), "additionalProperties": {"type": "string"}}),
        ),
        (
            "a million properties",
            json!({"type": "object", "minProperties": 1_000_000, "additionalProperties": {"type": "integer"}}),
        ),
        (
            "unique items",
            json!({"type": "array", "uniqueItems": true, "items": {"type": "integer"}, "maxItems": 100_000}),
        ),
        (
            "a long enum",
            json!({"enum": (0..1500).map(|n| format!("{}{n}", "x".repeat(30))).collect::<Vec<_>>()}),
        ),
        ("one long value", json!({"const": "y".repeat(60_000)})),
        (
            "formats",
            json!({"type": "array", "minItems": 1000, "items": {"type": "string", "format": "uri", "maxLength": 2000}}),
        ),
        ("itself", json!({"$ref": "#"})),
        (
            "a tree",
            json!({"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}, "required": ["l", "r"]}}}),
        ),
        (
            "a chain of references",
            referred(1500, |next| json!({"items": {"$ref": format!("#/$defs/{next}")}})),
        ),
        (
            "a chain of choices",
            referred(
                700,
                |next| json!({"anyOf": [{"$ref": format!("#/$defs/{next}")}, {"type": "null"}]}),
            ),
        ),
        (
            "doubling references",
            referred(
                25,
                |next| json!({"allOf": [{"$ref": format!("#/$defs/{next}")}, {"$ref": format!("#/$defs/{next}")}]}),
            ),
        ),
    ]
}

/// Each costly schema is answered or refused, in bounded time and memory, and the next prompt is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn costly_schemas_are_bounded() {
    pace::watch();
    let path = model_file().display().to_string();
    let (remote, _closed, process) =
        child(&["engine", "--gguf", &path, "--context", "512", "--threads", "1"]).await;
    let pid = process.id().unwrap();
    let plain = || job("Name a river.", 8);
    let mut simple = plain();
    simple.format =
        Format::Schema(json!({"type": "object", "properties": {"a": {"type": "string"}}}).into());
    // the first one allocates what all need
    drop(run(&remote, &simple).await);
    let began = Instant::now();
    run(&remote, &plain()).await.unwrap();
    let usual = began.elapsed();
    let before = status_mib(pid, "VmHWM:");
    for (name, schema) in costly_values().into_iter().chain(costly_structures()) {
        assert!(
            schema.to_string().len() <= 64 * 1024,
            "{name} is no schema that an interface takes"
        );
        let mut asked = plain();
        asked.format = Format::Schema(schema.into());
        let began = Instant::now();
        let result = run(&remote, &asked).await;
        let most = 2 * usual + pace::stretched(Duration::from_millis(1500));
        assert!(
            began.elapsed() < most,
            "{name} took {:?} of {most:?}: {result:?}",
            began.elapsed()
        );
        if let Err(fault) = &result {
            let Fault::Rejected(refusal) = fault else { panic!("{name}: {fault:?}") };
            assert_eq!(refusal.field.as_deref(), Some("schema"), "{name}: {refusal:?}");
        }
        let (_, usage) =
            run(&remote, &plain()).await.unwrap_or_else(|e| panic!("after {name}: {e}"));
        assert!(usage.completion_tokens > 0, "after {name}");
        let grown = status_mib(pid, "VmHWM:") - before;
        assert!(grown <= 64, "{name}: {grown} MiB");
    }
}

/// What is refused is named, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wide_multiple_is_refused_by_name() {
    let service = Service::start(&catalog(&["--gguf", &model_file().display().to_string()])).await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 99_999_989}}});
    let request = json!({"model": "auto", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    let (status, body) = service.chat(request).await;
    let message = body["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(status, 400, "{body}");
    assert!(message.contains("schema.properties.n.multipleOf is 99999989"), "{body}");
    assert!(message.contains("use a smaller one"), "{body}");
}

/// An engine's memory is bounded, by what its model needs or as configured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_has_a_memory_bound() {
    let path = model_file().display().to_string();
    let mut configured = catalog(&["--gguf", &path, "--context", "512"]);
    let service = Service::start(&configured).await;
    let derived = memory_limit_mib(service.engine().try_into().unwrap());
    assert!((512..2048).contains(&derived), "{derived} MiB");
    drop(service);
    configured["pilotlight"]["servers"] = json!({"local": {"memory_mb": 700}});
    let service = Service::start(&configured).await;
    assert_eq!(memory_limit_mib(service.engine().try_into().unwrap()), 700);
    let hello =
        json!({"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    assert_eq!(service.chat(hello).await.0, 200);
}

/// A model that is not the pinned one is not loaded, and its state says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_can_be_pinned() {
    let path = model_file();
    let digest = sha256(&path).await;
    let mut pinned = catalog(&["--gguf", &path.display().to_string(), "--context", "512"]);
    pinned["pilotlight"]["servers"] = json!({"local": {"digest": format!("sha256:{digest}")}});
    let service = Service::start(&pinned).await;
    let state = service.ready().await;
    assert!(state.to_string().contains(&digest), "{state}");
    drop(service);
    let other = digest.replace(|c: char| c.is_ascii_digit(), "a");
    pinned["pilotlight"]["servers"]["local"]["digest"] = json!(format!("sha256:{other}"));
    let service = Service::launch(&pinned, "embedded", &[]);
    let state = service
        .until("refused", |state| state["servers"][0]["health"].to_string().contains("failed"))
        .await;
    assert!(state["servers"][0]["model"].is_null(), "{state}");
    let (path, wrong) = (path.display().to_string(), format!("sha256:{other}"));
    let args = ["engine", "--gguf", &path, "--digest", &wrong];
    let (code, _, err) = program(service.folder.path(), &args, &[]).await;
    assert!(code == 1 && err.contains(&digest) && err.contains("is pinned"), "{err}");
}

#[cfg(feature = "onnx")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_digest_of_a_folder_can_be_pinned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/minilm-l6-int8");
    let command =
        "find . -type f ! -path './prepared-*' | LC_ALL=C sort | xargs sha256sum | sha256sum";
    let mut shell = tokio::process::Command::new("sh");
    let said = shell.args(["-c", command]).current_dir(&folder).output().await.unwrap().stdout;
    let digest = String::from_utf8(said).unwrap().split_whitespace().next().unwrap().to_owned();
    let (folder, library) = (folder.display().to_string(), runtime().display().to_string());
    let open = async |digest: &str| {
        let args = ["engine", "--onnx", &folder, "--runtime", &library, "--digest", digest];
        program(Path::new("."), &args, &[]).await.2
    };
    let sound = open(&format!("sha256:{digest}")).await;
    assert!(!sound.contains("is pinned") && sound.contains("ONNX Runtime is loaded"), "{sound}");
    let other = open(&format!("sha256:{}", "0".repeat(64))).await;
    assert!(other.contains(&digest) && other.contains("is pinned"), "{other}");
}

/// A folder with links to the files of the ONNX decoder, and this chat template.
#[cfg(feature = "onnx")]
pub fn folder_with_template(template: &str) -> tempfile::TempDir {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-onnx-int8");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::os::unix::fs::symlink(&path, folder.path().join(path.file_name().unwrap()))
                .unwrap();
        }
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

/// A chat template that computes or writes too much is refused by name when its model is loaded; one that
/// needs more memory than its bound ends the engine.
#[cfg(feature = "onnx")]
#[tokio::test]
async fn a_chat_template_has_bounds() {
    let doubles = "{% set ns = namespace(x='xxxxxxxx') %}{% for n in range(40) %}\
                   {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ messages[0].content }}";
    let adds = "{% set ns = namespace(x=[1, 1, 1, 1]) %}{% for n in range(40) %}\
                {% set ns.x = ns.x + ns.x %}{% endfor %}{{ messages[0].content }}";
    let writes = "{% for n in range(9000) %}{{ 'x' * 100 }}{% endfor %}";
    let lossy = "<user>{{ messages[0].words }}";
    let sound = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let library = runtime().display().to_string();
    for (template, expected) in [
        (doubles, "ran out of fuel"),
        (adds, "memory allocation of"),
        (writes, "it writes more than"),
        (lossy, "it leaves out the text of messages"),
        // the end of the input is the end of the connection; the model has been loaded
        (sound, "ONNX Runtime is loaded"),
    ] {
        let folder = folder_with_template(template);
        let path = folder.path().display().to_string();
        let args = ["engine", "--onnx", &path, "--runtime", &library, "--context", "64"];
        let (_, _, err) = program(Path::new("."), &args, &[]).await;
        assert!(err.contains(expected), "{expected}: {err}");
        assert_eq!(err.contains("ONNX Runtime is loaded"), template == sound, "{err}");
    }
}

async fn sha256(path: &Path) -> String {
    let out = tokio::process::Command::new("sha256sum").arg(path).output().await.unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// An engine has no network, starts no program and reads no file but its model's and the system's.
#[tokio::test]
async fn an_engine_runs_in_a_sandbox() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file().display().to_string();
    let probe = async |env: &[(&str, &str)]| {
        let args = ["engine", "--gguf", &path, "--probe-sandbox"];
        let (code, out, err) = program(folder.path(), &args, env).await;
        assert_eq!(code, 0, "{err}");
        let denied: Value = serde_json::from_str(&out).unwrap();
        (denied, err)
    };
    let (denied, log) = probe(&[]).await;
    // older kernels restrict no files
    let lacks_landlock = log.contains("no Landlock in this kernel");
    for (what, is_denied) in denied.as_object().unwrap() {
        let may_be_allowed = lacks_landlock && matches!(what.as_str(), "read" | "write");
        assert!(*is_denied == true || may_be_allowed, "{what} is allowed: {denied}\n{log}");
    }
    assert!(log.contains("sandbox of the engine"), "{log}");
    let (denied, log) = probe(&[("PILOTLIGHT_ENGINE_SANDBOX", "off")]).await;
    assert!(denied.as_object().unwrap().values().all(|denied| *denied == false), "{denied}");
    assert!(log.contains("without its sandbox"), "{log}");
}
