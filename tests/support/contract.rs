//! What everything that answers prompts must keep, whatever it is and however it is reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use pilotlight::model::generate::{Fault, Finish, Generate, Usage};
use pilotlight::model::out::channel;
use pilotlight::request::format::Format;
use pilotlight::request::job::{Job, Message, Role, Sampling};
use pilotlight::request::labels::Labels;
use pilotlight::request::refusal::Code;
use pilotlight::request::skill::{CLASSIFY, EMBED, GENERATE};
use tokio::time::timeout;

use super::{SOON, child, over_channels, over_http};

/// Prompts that make the model do what the suite needs.
pub struct Prompts {
    /// A short question.
    pub short: &'static str,
    /// Something that takes far longer than a test waits.
    pub endless: &'static str,
    /// A word that comes in the middle of the answer to `short` with these tokens.
    pub stop: &'static str,
}

/// For scripted models.
pub const SCRIPTED: Prompts = Prompts {
    short: "one two three four five six seven eight /tokens=24",
    endless: "on and on /tokens=8000 /delay-us=2000",
    stop: "four",
};

pub fn job(prompt: &str, max_tokens: u32) -> Job {
    let sampling = Sampling { max_tokens: Some(max_tokens), seed: Some(1), ..Sampling::default() };
    Job { sampling, ..Job::plain(prompt, 2 * SOON) }
}

/// Runs a job to its end and checks that its pieces come in order and are all there.
pub async fn run(model: &dyn Generate, job: &Job) -> Result<(String, Usage), Fault> {
    let (out, mut chunks) = channel();
    let read = async {
        let (mut text, mut count) = (String::new(), 0);
        while let Some(chunk) = chunks.recv().await {
            if chunk.text.is_empty() {
                continue;
            }
            assert_eq!(chunk.n, count, "a piece out of order");
            count += 1;
            text.push_str(&chunk.text);
        }
        (text, count)
    };
    let work = model.generate(job, out);
    let (usage, (text, count)) = timeout(SOON, async { tokio::join!(work, read) }).await.unwrap();
    let usage = usage?;
    assert_eq!(usage.chunks, count, "pieces that were sent and pieces that came");
    Ok((text, usage))
}

/// The whole suite on a real model in this process, through the typed channels, over HTTP and in a
/// child process with these arguments.
pub async fn holds_over_every_transport(
    model: Arc<dyn Generate>,
    arguments: &[&str],
    prompts: &Prompts,
) {
    holds(model.as_ref(), prompts).await;
    let (remote, _line) = over_channels(Arc::clone(&model)).await;
    holds(&remote, prompts).await;
    let (remote, _line, _stop) = over_http(model).await;
    holds(&remote, prompts).await;
    let all = [&["engine"], arguments].concat();
    let (remote, _line, _child) = child(&all).await;
    holds(&remote, prompts).await;
}

/// The whole suite.
pub async fn holds(model: &dyn Generate, prompts: &Prompts) {
    states_itself(model);
    classifies_or_says_no(model).await;
    embeds_or_says_no(model).await;
    if !model.context().capabilities.has(GENERATE) {
        return says_no(model, &job(prompts.short, 4)).await;
    }
    answers_and_counts(model, prompts).await;
    repeats_itself(model, prompts).await;
    stops_at_its_bound(model, prompts).await;
    stops_before_a_stop_string(model, prompts).await;
    ends_when_nobody_reads(model, prompts).await;
    refuses_what_is_too_long(model).await;
    keeps_schemas_or_says_no(model, prompts).await;
    answers_many_at_once(model, prompts).await;
}

fn states_itself(model: &dyn Generate) {
    let context = model.context();
    assert!(!context.identification.name.is_empty());
    assert!(!context.identification.family.is_empty());
    assert!(context.capabilities.context_tokens > 0);
    assert!(context.capabilities.modalities.contains(&"text".to_owned()));
    assert!(context.inference_settings.max_tokens > 0);
    assert!(!context.tokenizer.kind.is_empty());
    assert!(!context.runtime.backend.is_empty() && context.runtime.slots > 0);
}

async fn answers_and_counts(model: &dyn Generate, prompts: &Prompts) {
    let (text, usage) = run(model, &job(prompts.short, 24)).await.unwrap();
    assert!(!text.is_empty());
    assert!(usage.completion_tokens > 0 && usage.prompt_tokens > 0);
    assert_eq!(usage.model, model.context().identification.name);
}

async fn repeats_itself(model: &dyn Generate, prompts: &Prompts) {
    // the first run may find another cache: its shape is not compared
    run(model, &job(prompts.short, 16)).await.unwrap();
    let one = run(model, &job(prompts.short, 16)).await.unwrap().0;
    let two = run(model, &job(prompts.short, 16)).await.unwrap().0;
    assert_eq!(one, two);
}

async fn stops_at_its_bound(model: &dyn Generate, prompts: &Prompts) {
    let (_, usage) = run(model, &job(prompts.short, 5)).await.unwrap();
    assert_eq!((usage.finish, usage.completion_tokens), (Finish::Length, 5));
}

async fn stops_before_a_stop_string(model: &dyn Generate, prompts: &Prompts) {
    let mut job = job(prompts.short, 24);
    job.sampling.stop = vec![prompts.stop.to_owned()];
    let (text, usage) = run(model, &job).await.unwrap();
    assert_eq!(usage.finish, Finish::Stop);
    assert!(!text.contains(prompts.stop), "{text:?}");
}

async fn ends_when_nobody_reads(model: &dyn Generate, prompts: &Prompts) {
    let job = job(prompts.endless, 8000);
    let (out, mut chunks) = channel();
    let work = model.generate(&job, out);
    let leave = async move {
        chunks.recv().await.unwrap();
        drop(chunks);
    };
    let (result, ()) = timeout(SOON, async { tokio::join!(work, leave) }).await.unwrap();
    assert_eq!(result, Err(Fault::Cancelled));
    // and it is free for the next at once
    run(model, &self::job(prompts.short, 5)).await.unwrap();
}

async fn refuses_what_is_too_long(model: &dyn Generate) {
    let long = "word ".repeat(model.context().capabilities.context_tokens as usize + 10);
    let result = run(model, &job(&long, 5)).await;
    let Err(Fault::Rejected(refusal)) = result else { panic!("{result:?}") };
    assert_eq!(refusal.code, Code::Incapable);
    assert_eq!(refusal.field.as_deref(), Some("prompt"));
}

async fn keeps_schemas_or_says_no(model: &dyn Generate, prompts: &Prompts) {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"state": {"enum": ["ok", "hot"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["state", "level"],
        "additionalProperties": false,
    });
    let mut job = job(prompts.short, 64);
    job.format = Format::Schema(schema.into());
    let result = run(model, &job).await;
    if !model.context().capabilities.json_schema {
        let Err(Fault::Rejected(refusal)) = result else { panic!("{result:?}") };
        assert_eq!(refusal.code, Code::Incapable);
        return;
    }
    let (text, usage) = result.unwrap();
    assert_eq!(usage.finish, Finish::Stop, "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(["ok", "hot"].contains(&value["state"].as_str().unwrap()), "{text}");
    assert!((0..=9).contains(&value["level"].as_i64().unwrap()), "{text}");
}

async fn says_no(model: &dyn Generate, job: &Job) {
    let result = run(model, job).await;
    let Err(Fault::Rejected(refusal)) = result else { panic!("{result:?}") };
    assert_eq!(refusal.code, Code::Incapable);
}

async fn classifies_or_says_no(model: &dyn Generate) {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let examples = BTreeMap::from([
        ("fire".to_owned(), texts(&["There is smoke in the kitchen", "Flames in hall two"])),
        ("money".to_owned(), texts(&["Pay the electricity bill", "How much was the invoice"])),
        ("water".to_owned(), texts(&["The tap drips", "The basement is flooded"])),
    ]);
    let labels = Labels { examples, margin: 0.0 };
    let mut job = job("The stove is burning", 4);
    job.format = Format::Label(Arc::new(labels.clone()));
    if !model.context().capabilities.has(CLASSIFY) {
        return says_no(model, &job).await;
    }
    let (text, usage) = run(model, &job).await.unwrap();
    let said = usage.classification.expect("a label and how sure it is");
    assert_eq!(said.label, text);
    assert!(labels.names().eq(said.scores.keys().map(String::as_str)), "{said:?}");
    assert!((said.scores.values().sum::<f32>() - 1.0).abs() < 1e-3, "{said:?}");
    assert!(said.scores.values().all(|score| *score <= said.scores[&text]), "{said:?}");
    assert!((said.scores[&text] - said.confidence).abs() < 1e-6, "{said:?}");
}

async fn embeds_or_says_no(model: &dyn Generate) {
    let texts = ["The stove is burning", "There is a fire on the cooker", "Pay the invoice"];
    let mut job = job(texts[0], 4);
    job.messages = texts.iter().map(|text| Message::new(Role::User, *text)).collect();
    job.format = Format::Embedding;
    if !model.context().capabilities.has(EMBED) {
        return says_no(model, &job).await;
    }
    let (text, usage) = run(model, &job).await.unwrap();
    assert!(usage.prompt_tokens > 10, "{usage:?}");
    let vectors: Vec<Vec<f32>> = serde_json::from_str(&text).unwrap();
    assert_eq!(vectors.len(), texts.len());
    let product =
        |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum::<f32>();
    for n in 0..texts.len() {
        assert!((product(n, n) - 1.0).abs() < 1e-3, "a vector of another length than 1");
    }
    assert!(product(0, 1) > product(0, 2) + 0.2, "{} {}", product(0, 1), product(0, 2));
}

async fn answers_many_at_once(model: &dyn Generate, prompts: &Prompts) {
    let jobs: Vec<Job> = (0..8).map(|_| job(prompts.short, 6)).collect();
    let all = futures::future::join_all(jobs.iter().map(|job| run(model, job))).await;
    assert!(all.iter().all(|answer| answer.as_ref().is_ok_and(|(text, _)| !text.is_empty())));
}
