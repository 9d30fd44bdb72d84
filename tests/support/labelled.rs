//! The labelled prompts of `tests/data`, and the encoder that reads them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pilotlight::request::format::Format;
use pilotlight::request::job::Job;
use pilotlight::request::labels::Labels;

use super::SOON;

/// The tasks that there are prompts for.
pub const TASKS: [&str; 3] = ["severity", "topic", "intent"];

/// The prompts of a task, `train` or `test`, each behind its label.
pub fn prompts(task: &str, split: &str) -> Vec<(String, String)> {
    let path = format!("{}/tests/data/{task}.{split}.tsv", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let pair = |line: &str| {
        let (label, text) = line.split_once('\t').unwrap();
        (label.to_owned(), text.to_owned())
    };
    text.lines().map(pair).collect()
}

/// The labels of a task with their examples.
pub fn labels(task: &str) -> Arc<Labels> {
    let mut examples = BTreeMap::<String, Vec<String>>::new();
    for (label, text) in prompts(task, "train") {
        examples.entry(label).or_default().push(text);
    }
    Arc::new(Labels { examples, margin: 0.0 })
}

/// A text to be given one of these labels.
pub fn label_job(text: &str, labels: &Arc<Labels>) -> Job {
    let format = Format::Label(Arc::clone(labels));
    Job { format, ..Job::plain(text, 2 * SOON) }
}

/// The folder of the converted encoder, if `scripts/test` has made it.
pub fn encoder() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/minilm-l6-int8");
    assert!(path.is_dir(), "{} is missing: run scripts/test, which makes it", path.display());
    path
}
