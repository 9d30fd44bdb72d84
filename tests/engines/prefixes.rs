//! The beginnings that prompts have in common, and how they survive the end of an engine and of the service.

use std::path::Path;

use pilotlight::engines::gguf;
use pilotlight::engines::gguf::GgufOptions;
use pilotlight::engines::worker::OnThread;
use pilotlight::model::generate::Usage;
use pilotlight::request::job::Job;
use serde_json::json;

use crate::gguf::options;
use crate::support::contract::{job, run};
use crate::support::model_file;
use crate::support::service::{Service, catalog};

async fn engine(folder: Option<&Path>) -> OnThread {
    let prefixes = folder.map(Path::to_owned);
    let options = GgufOptions { threads: 1, prefixes, ..options(&model_file()) };
    gguf::open(options).await.unwrap()
}

/// A prompt of about 170 tokens, of which all but the last few are those of the others.
fn text(n: usize) -> String {
    let house =
        "In the cellar of the house there is a shelf with nine boxes and a lamp. ".repeat(9);
    format!("{house}What is in box {n}?")
}

fn asked(group: &str, n: usize) -> Job {
    let mut asked = job(&text(n), 12);
    asked.sampling.logprobs = Some(0);
    Job { cache_group: group.to_owned(), ..asked }
}

/// The log-probabilities of the answer's tokens.
fn likely(usage: &Usage) -> Vec<f32> {
    usage.logprobs.iter().map(|token| token.token.logprob).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_prefix_gives_the_same_answer() {
    let folder = tempfile::tempdir().unwrap();
    let files = || {
        let all = std::fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path());
        all.filter(|file| file.extension() == Some("prefix".as_ref()))
    };
    let before = {
        let model = engine(Some(folder.path())).await;
        for n in 0..4 {
            run(&model, &asked("app", n)).await.unwrap();
        }
        run(&model, &asked("app", 7)).await.unwrap()
    };
    assert_eq!(files().count(), 1);

    let model = engine(Some(folder.path())).await;
    let (_, of_another) = run(&model, &asked("other", 7)).await.unwrap();
    assert!(of_another.cached_tokens < 20, "{of_another:?}");
    let (answer, usage) = run(&model, &asked("app", 7)).await.unwrap();
    assert!(usage.cached_tokens > 120, "{usage:?}");
    assert_eq!((answer, likely(&usage)), (before.0, likely(&before.1)));
    drop(model);

    // a bit of the state has changed
    let file = files().next().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let model = engine(Some(folder.path())).await;
    let (_, usage) = run(&model, &asked("app", 7)).await.unwrap();
    assert_eq!(usage.cached_tokens, 0);
    assert_eq!(files().count(), 0);
}

/// The engine of a service, in its sandbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_survives_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let path = model_file().display().to_string();
    let catalog = catalog(&["--gguf", &path, "--context", "1024", "--threads", "1"]);
    let ask = async |service: &Service, n: usize| {
        let body = json!({
            "model": "auto", "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": text(n)}],
        });
        let (status, answer) = service.post("/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let start = async |folder: &str| {
        let service = Service::launch(&catalog, "off", &[("PILOTLIGHT_PREFIX_CACHE", folder)]);
        service.ready_all().await;
        service
    };
    let named = folder.path().join("prefixes");
    let named = named.to_str().unwrap();
    let service = start(named).await;
    assert_eq!(ask(&service, 0).await, 0);
    for n in 1..5 {
        assert!(ask(&service, n).await > 120);
    }
    assert!(service.stop().await);

    let service = start(named).await;
    assert!(ask(&service, 5).await > 120);
    assert!(service.stop().await);

    let service = start("off").await;
    assert_eq!(ask(&service, 6).await, 0);
    assert!(service.stop().await);
}
