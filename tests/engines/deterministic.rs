//! Answers that depend on the request alone.

use std::sync::Arc;
use std::time::Duration;

use pilotlight::engines::gguf;
use pilotlight::engines::gguf::GgufOptions;
use pilotlight::engines::worker::OnThread;
use pilotlight::model::generate::Usage;
use pilotlight::request::format::Format;
use pilotlight::request::job::Job;
use pilotlight::request::labels::Labels;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::gguf::options;
use crate::support::contract::{job, run};
use crate::support::model_file;
use crate::support::service::{Service, catalog};

const WORDS: [&str; 8] = ["river", "lamp", "seven", "red", "engine", "cold", "table", "north"];

async fn engine(context_tokens: u32) -> Arc<OnThread> {
    // two threads that wait for each other stall beside the other tests' engines
    let options = GgufOptions { threads: 1, context_tokens, ..options(&model_file()) };
    Arc::new(gguf::open(options).await.unwrap())
}

/// A text of about so many tokens.
fn text(random: &mut fastrand::Rng, tokens: usize) -> String {
    let words: Vec<&str> = (0..tokens).map(|_| WORDS[random.usize(..WORDS.len())]).collect();
    words.join(" ")
}

fn labels() -> Format {
    let of = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
    let examples = [
        ("good", of(["It works well.", "All is fine today."])),
        ("bad", of(["It does not work.", "The pump is broken again."])),
    ];
    let examples = examples.map(|(label, texts)| (label.to_owned(), texts));
    Format::Label(Arc::new(Labels { examples: examples.into(), margin: 0.0 }))
}

/// The requests whose answers must stay: a text of more than one step, JSON, and a label.
fn fixed(is_deterministic: bool) -> [Job; 3] {
    let mut random = fastrand::Rng::with_seed(3);
    let mut plain = job(&text(&mut random, 90), 12);
    plain.sampling.logprobs = Some(0);
    let mut object = job("Describe a lamp.", 24);
    object.format = Format::Schema(
        json!({
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "is_on": {"type": "boolean"}},
            "required": ["name", "is_on"],
            "additionalProperties": false,
        })
        .into(),
    );
    object.sampling.logprobs = Some(0);
    object.sampling.temperature = Some(0.7);
    let mut label = job("The engine is cold and makes a noise.", 1);
    label.format = labels();
    [plain, object, label].map(|mut job| {
        job.sampling.deterministic = is_deterministic;
        "fixed".clone_into(&mut job.cache_group);
        job
    })
}

/// The text, and the log-probability of each token or the score of each label.
fn figures((text, usage): (String, Usage)) -> (String, Vec<f32>) {
    let scores = usage.classification.map(|chosen| chosen.scores.into_values().collect());
    let tokens = || usage.logprobs.iter().map(|token| token.token.logprob).collect();
    (text, scores.unwrap_or_else(tokens))
}

async fn fixed_figures(model: &OnThread, is_deterministic: bool) -> Vec<(String, Vec<f32>)> {
    let mut all = Vec::new();
    for job in fixed(is_deterministic) {
        all.push(figures(run(model, &job).await.unwrap()));
    }
    all
}

/// Asks so many requests of different lengths, formats and groups, eight at once.
async fn ask_mixed(model: &Arc<OnThread>, count: u64) {
    let mut running = JoinSet::new();
    for n in 0..count {
        if running.len() == 8 {
            running.join_next().await.unwrap().unwrap();
        }
        let mut random = fastrand::Rng::with_seed(n);
        let tokens = random.usize(1..60);
        let mut asked = job(&text(&mut random, tokens), random.u32(1..5));
        asked.cache_group = format!("group-{}", n % 5);
        match n % 10 {
            3 => asked.format = Format::Json,
            7 => asked.format = labels(),
            9 => asked.sampling.deterministic = true,
            _ => {}
        }
        let asked = Job { time_left: Duration::from_secs(120), ..asked };
        let model = Arc::clone(model);
        running.spawn(async move { drop(run(&*model, &asked).await.unwrap()) });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stay_the_same_whatever_was_asked_before_and_beside() {
    let model = engine(1024).await;
    let first = fixed_figures(&model, true).await;
    assert_eq!(first[0].1.len(), 12, "{first:?}");
    assert_eq!(first[2].1.len(), 2, "{first:?}");
    let ((), beside) = tokio::join!(ask_mixed(&model, 200), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fixed_figures(&model, true).await
    });
    assert_eq!(beside, first);
    assert_eq!(fixed_figures(&model, true).await, first);
    drop(model);

    // after a restart, with another length of the context
    let model = engine(512).await;
    ask_mixed(&model, 8).await;
    assert_eq!(fixed_figures(&model, true).await, first);
}

/// Without a seed, and with a temperature.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_asks_for_it() {
    let path = model_file().display().to_string();
    let catalog = catalog(&["--gguf", &path, "--context", "512", "--threads", "1"]);
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    let text = async |metadata: Value| {
        let body = json!({
            "model": "auto", "max_tokens": 12, "temperature": 1.2, "metadata": metadata,
            "messages": [{"role": "user", "content": "Tell me about a lamp."}],
        });
        let (status, answer) = service.post("/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let same = json!({"deterministic": true});
    let first = text(same.clone()).await;
    assert_ne!(text(json!({})).await, first);
    assert_eq!(text(same).await, first);
    assert!(service.stop().await);
}
