//! `bench` and `model prepare` with a real model.

use std::path::Path;

use serde_json::Value;

use crate::support::model_file;
use crate::support::service::program;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_file_is_measured() {
    let model = model_file().display().to_string();
    let args = ["bench", &model, "--json", "--rounds", "1", "--context", "512"];
    let (code, out, err) = program(Path::new("."), &args, &[]).await;
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let found = &report["models"][0];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
    assert_eq!(found["backend"], "llama.cpp");
    // a prompt of half the context, and a sentence more or less
    assert!((200.0..=280.0).contains(&number(&found["prompt_tokens"])), "{report}");
    assert!(number(&found["prefill_tokens_per_s"]) > 1.0, "{report}");
    let rates = found["at_once"].as_array().unwrap();
    let numbers: Vec<_> = rates.iter().map(|rate| rate["answers"].as_u64().unwrap()).collect();
    assert_eq!(numbers[..2], [1, 2], "{report}");
    // what the engine has stated of itself at start is near
    let alone = number(&rates[0]["tokens_per_s"]);
    assert!(rates.iter().all(|rate| number(&rate["first_token_ms"]) > 0.0), "{report}");
    // reading all weights once for each token takes longer than half of what memory allows
    assert!(alone < 2.0 * number(&found["memory_bound_tokens_per_s"]), "{report}");
    assert!(number(&report["memory_bytes_per_s"]) > 1e8, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_is_no_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.gguf"), "no model").unwrap();
    let (code, _, err) = program(folder.path(), &["bench", "m.gguf"], &[]).await;
    assert!(code == 4 && err.contains("m: "), "{code} {err}");
    let (code, _, err) = program(folder.path(), &["bench", "missing.gguf"], &[]).await;
    assert!(code == 1 && err.contains("missing.gguf cannot be read"), "{code} {err}");
    let args = ["model", "prepare", "m.gguf", "out.gguf"];
    let (code, _, err) = program(folder.path(), &args, &[]).await;
    assert!(code == 1 && !folder.path().join("out.gguf").exists(), "{code} {err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_best_weights_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (model, to) = (model_file().display().to_string(), folder.path().join("best.gguf"));
    let to_text = to.display().to_string();
    let prepare = async |more: &[&str]| {
        let args =
            ["model", "prepare", &model, &to_text, "--json", "--rounds", "1", "--context", "256"];
        let (code, out, err) = program(Path::new("."), &[&args[..], more].concat(), &[]).await;
        let report: Value =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {err}"));
        (code, report)
    };
    // 8 bits have no room, so that the fewest bits that keep to the loss are taken
    let (code, report) = prepare(&["--loss-max", "10", "--memory-mb", "400"]).await;
    assert_eq!(code, 0, "{report}");
    let all = report["candidates"].as_array().unwrap();
    let names: Vec<_> =
        all.iter().map(|one| one["measured"]["weights"].as_str().unwrap()).collect();
    assert_eq!(names, ["Q8_0", "Q6_K", "Q4_K_M", "Q4_0"]);
    let divergence = |at: usize| all[at]["loss"]["divergence"].as_f64().unwrap();
    assert!(divergence(0).abs() < 1e-12);
    assert!(divergence(1) > 0.0 && divergence(1) < divergence(3), "{report}");
    assert!(all[3]["loss"]["same_first"].as_f64().unwrap() > 0.5, "{report}");
    assert!(!report["best"].is_null(), "{report}");
    assert_eq!(to.exists(), report["best"] != "Q8_0", "{report}");
    let kept: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(kept.len() <= 1 && kept.iter().all(|path| *path == to), "{kept:?}");
    let _ = std::fs::remove_file(&to);
    // nothing may be lost: the model stays as it is
    let (code, report) = prepare(&["--loss-max", "0"]).await;
    assert_eq!(
        (code, report["best"].as_str(), &report["written"]),
        (0, Some("Q8_0"), &Value::Null),
        "{report}"
    );
    assert!(!to.exists());
}
