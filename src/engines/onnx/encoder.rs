//! Sentence encoder: embeddings of length 1, and classification of texts by their embeddings.
//!
//! Folders are those of `pilotlight model convert` and of optimum: a graph from token ids and an
//! attention mask to a vector for each token or each text, with the pooling configuration of
//! sentence-transformers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::session::{Session, SessionInputValue};
use ort::value::{Outlet, Tensor};
use serde_json::Value;
use tokenizers::Tokenizer;

use super::OnnxOptions;
use super::files::{CONFIG, FolderFiles, MODEL, MODEL_CONFIG, TOKENIZER, json};
use super::{graph, runtime};
use crate::clock::now;
use crate::engines::classifier::Classifier;
use crate::engines::worker::memory;
use crate::engines::worker::memory::WORK_BYTES;
use crate::engines::worker::{EngineModel, LabelCache, PromptQueue, serve_each};
use crate::model::context;
use crate::model::context::{Capabilities, InferenceSettings, ModelContext};
use crate::model::generate::{Fault, Usage};
use crate::model::out::Out;
use crate::request::format::Format;
use crate::request::job::Job;
use crate::request::labels::{Classification, Labels};
use crate::request::refusal::{Code, Refusal};
use crate::request::skill;
use crate::sandbox::memory::EngineBounds;

/// File with the longest text, in tokens.
pub(crate) const LENGTH_CONFIG: &str = "sentence_bert_config.json";
/// File with the pooling of token vectors.
pub(crate) const POOLING_CONFIG: &str = "1_Pooling/config.json";
/// Texts of one batch; a request can be stopped between two batches.
const BATCH: usize = 8;
/// Longest text, in tokens, by default.
const LENGTH: usize = 256;
/// Words of the text that the measurement at start evaluates.
const PROBE_WORDS: usize = 32;
/// Known outputs, in the order of preference; else the first output of the graph is used.
const OUTPUTS: [&str; 3] = ["sentence_embedding", "last_hidden_state", "token_embeddings"];

/// Whether a folder holds an encoder: its configuration names an architecture, and none that is a
/// language model.
pub(super) fn is_encoder(path: &Path) -> bool {
    let config = json(&path.join(MODEL_CONFIG)).ok().flatten().unwrap_or_default();
    let names = config["architectures"].as_array();
    let names: Vec<&str> = names.into_iter().flatten().filter_map(Value::as_str).collect();
    let writes = |name: &&str| name.contains("CausalLM") || name.contains("LMHead");
    !path.join(CONFIG).exists() && !names.is_empty() && !names.iter().any(writes)
}

/// Pooling of the vectors of tokens to that of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token (`[CLS]`).
    First,
}

/// The classifier of one set of labels, and the examples that it is fitted to.
#[derive(Debug, Default)]
struct LearnedCentroids {
    /// Examples without an embedding, with the index of their label.
    pending: Vec<(usize, String)>,
    embedded: Vec<(usize, Vec<f32>)>,
    classifier: Option<Classifier>,
}

impl LearnedCentroids {
    fn of(labels: &Labels) -> LearnedCentroids {
        // a label without examples has its own name as example
        let bare = labels.examples.iter().enumerate().filter(|(_, (_, texts))| texts.is_empty());
        let bare = bare.map(|(n, (label, _))| (n, label.replace(['_', '-'], " ")));
        let pending = labels.all().map(|(n, text)| (n, text.to_owned())).chain(bare).collect();
        LearnedCentroids { pending, ..LearnedCentroids::default() }
    }
}

pub(super) struct Encoder {
    session: Session,
    tokenizer: Tokenizer,
    facts: ModelContext,
    /// Most tokens of a text.
    longest: usize,
    pooling: Pooling,
    /// The graph has the input `token_type_ids`.
    types: bool,
    output: String,
    label_cache: LabelCache<LearnedCentroids>,
}

impl Encoder {
    /// Loads the folder.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] that states what is wrong and what to do.
    pub(super) fn load(options: &OnnxOptions, bounds: &EngineBounds) -> Result<Encoder, Fault> {
        let files = FolderFiles::read(&options.path, MODEL)?;
        let memory_bytes = files.bytes() + WORK_BYTES;
        memory::check_model(&files.path, memory_bytes)?;
        graph::bound_memory(bounds, options, memory_bytes);
        let runtime = runtime::start(options.runtime.as_deref())?;
        let (opened, digest) = graph::open(&files, runtime, options, bounds)?;
        let config = json(&files.path.join(MODEL_CONFIG))?.unwrap_or_default();
        let longest = longest(&files, &config)?;
        let mut tokenizer = tokenizer(&files.path.join(TOKENIZER))?;
        // control tokens are not recognized in a client's text
        tokenizer.set_encode_special_tokens(true);
        let (types, output) = check_graph(&files, &opened.session)?;
        let facts = ModelContext {
            identification: graph::identity(
                &files,
                options,
                config["model_type"].as_str().unwrap_or_default(),
                digest,
            ),
            capabilities: Capabilities {
                context_tokens: u32::try_from(longest).unwrap_or(u32::MAX),
                modalities: vec!["text".to_owned()],
                embeddings: true,
                skills: vec![skill::CLASSIFY.to_owned(), skill::EMBED.to_owned()],
                ..Capabilities::default()
            },
            inference_settings: InferenceSettings::default(),
            tokenizer: context::Tokenizer {
                kind: "WordPiece".to_owned(),
                vocab_size: u32::try_from(tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX),
                ..context::Tokenizer::default()
            },
            runtime: graph::runtime_facts(&files, options, runtime, &opened, memory_bytes),
        };
        let pooling = pooling(&files)?;
        let session = opened.session;
        let label_cache = LabelCache::default();
        Ok(Encoder { session, tokenizer, facts, longest, pooling, types, output, label_cache })
    }

    /// The embeddings of some texts, and the number of their tokens.
    fn embed(
        &mut self,
        texts: &[&str],
        stop: &AtomicBool,
    ) -> Result<(Vec<Vec<f32>>, usize), Fault> {
        let mut vectors = Vec::with_capacity(texts.len());
        let mut count = 0;
        for batch in texts.chunks(BATCH) {
            if stop.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            let tokens: Vec<Vec<u32>> =
                batch.iter().map(|text| self.tokens(text)).collect::<Result<_, _>>()?;
            count += tokens.iter().map(Vec::len).sum::<usize>();
            let embedded = self.eval(&tokens).map_err(|error| {
                Fault::ProtocolError(format!("ONNX Runtime could not read a text: {error}"))
            })?;
            vectors.extend(embedded);
        }
        Ok((vectors, count))
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, Fault> {
        let unfit =
            |message| Err(Fault::Rejected(Refusal::field(Code::Incapable, "prompt", message)));
        let tokens = match self.tokenizer.encode_fast(text, true) {
            Ok(encoded) => encoded.get_ids().to_vec(),
            Err(error) => return unfit(format!("the text cannot be tokenized: {error}")),
        };
        let (n, most) = (tokens.len(), self.longest);
        if n > most {
            return unfit(format!("a text has {n} tokens and this model reads at most {most}"));
        }
        Ok(tokens)
    }

    fn eval(&mut self, texts: &[Vec<u32>]) -> ort::Result<Vec<Vec<f32>>> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let shape = [texts.len(), longest];
        let padded = |of: fn(u32) -> i64| {
            let rows = texts.iter().flat_map(move |tokens| {
                let fill = std::iter::repeat_n(0, longest - tokens.len());
                tokens.iter().map(move |&token| of(token)).chain(fill)
            });
            Tensor::from_array((shape, rows.collect::<Vec<i64>>()))
        };
        let ids = padded(i64::from)?;
        let mut inputs: Vec<(&str, SessionInputValue<'_>)> =
            vec![("input_ids", ids.into()), ("attention_mask", padded(|_| 1)?.into())];
        if self.types {
            inputs.push(("token_type_ids", padded(|_| 0)?.into()));
        }
        let outputs = self.session.run(inputs)?;
        let output = outputs.get(&self.output).ok_or_else(|| ort::Error::new("no output"))?;
        let (shape, numbers) = output.try_extract_tensor::<f32>()?;
        let width = shape.last().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0).max(1);
        // one vector for each text, or for each token of each text
        let each = if shape.len() == 2 { 1 } else { longest };
        let vectors = numbers.chunks(width * each).zip(texts).map(|(rows, tokens)| {
            let counted = match self.pooling {
                Pooling::Mean if each > 1 => tokens.len(),
                Pooling::Mean | Pooling::First => 1,
            };
            unit(rows.chunks(width).take(counted), width)
        });
        Ok(vectors.collect())
    }

    /// Embeds the pending examples and fits the classifier. Embeddings that were computed before the
    /// request was stopped are kept.
    fn learn(
        &mut self,
        labels: &Labels,
        learned: &mut LearnedCentroids,
        stop: &AtomicBool,
    ) -> Result<(), Fault> {
        while !learned.pending.is_empty() {
            let from = learned.pending.len().saturating_sub(BATCH);
            let texts: Vec<&str> =
                learned.pending[from..].iter().map(|(_, t)| t.as_str()).collect();
            let (vectors, _) = self.embed(&texts, stop)?;
            let indices = learned.pending.drain(from..).map(|(n, _)| n);
            learned.embedded.extend(indices.zip(vectors));
        }
        let fit = || Classifier::fit(&learned.embedded, labels.examples.len());
        learned.classifier.get_or_insert_with(fit);
        Ok(())
    }

    fn classify(
        &mut self,
        job: &Job,
        labels: &Arc<Labels>,
        stop: &AtomicBool,
    ) -> Result<(Classification, usize), Fault> {
        let mut learned = self
            .label_cache
            .take(labels, job.label_owner())
            .unwrap_or_else(|| LearnedCentroids::of(labels));
        let result = self.learn(labels, &mut learned, stop).and_then(|()| {
            let (vectors, tokens) = self.embed(&[&job.text()], stop)?;
            let fitted = learned.classifier.as_ref().zip(vectors.first());
            let classification = fitted.and_then(|(classifier, vector)| {
                Classification::of(labels, &classifier.probabilities(vector))
            });
            let none = || Fault::ProtocolError("there are no labels".to_owned());
            Ok((classification.ok_or_else(none)?, tokens))
        });
        self.label_cache.put(labels, job.label_owner(), learned);
        result
    }
}

impl EngineModel for Encoder {
    fn context(&mut self) -> &mut ModelContext {
        &mut self.facts
    }

    fn measure(&mut self) -> Result<(), Fault> {
        let text = ["light"; PROBE_WORDS].join(" ");
        let never = AtomicBool::new(false);
        // the first run also allocates working memory
        self.embed(&[&text], &never)?;
        let started = now();
        let (_, tokens) = self.embed(&[&text], &never)?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rate = tokens as f64 / started.elapsed().as_secs_f64();
        self.facts.runtime.prefill_tokens_per_s = Some((rate * 10.0).round() / 10.0);
        Ok(())
    }

    fn serve(&mut self, queue: &mut PromptQueue) {
        serve_each(queue, |job, out, stop| self.answer(job, out, stop));
    }
}

impl Encoder {
    fn answer(&mut self, job: &Job, out: &mut Out, stop: &AtomicBool) -> Result<Usage, Fault> {
        let started = now();
        let texts: Vec<&str> = job.messages.iter().map(|m| m.content.as_str()).collect();
        let (text, tokens, classification) = match &job.format {
            Format::Label(labels) => {
                let (classification, tokens) = self.classify(job, labels, stop)?;
                (classification.label.clone(), tokens, Some(classification))
            }
            Format::Embedding => {
                let (vectors, tokens) = self.embed(&texts, stop)?;
                let text = serde_json::to_string(&vectors);
                (text.map_err(|e| Fault::ProtocolError(e.to_string()))?, tokens, None)
            }
            Format::Text | Format::Json | Format::Schema(_) => {
                let message = "this model classifies and embeds; it does not generate text";
                return Err(Fault::Rejected(Refusal::field(Code::Incapable, "format", message)));
            }
        };
        out.write_blocking(text).map_err(|_| Fault::Cancelled)?;
        Ok(Usage {
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            prefill_ms: started.elapsed().as_secs_f64() * 1e3,
            classification,
            ..Usage::one_piece(&self.facts.identification.name)
        })
    }
}

/// The mean of some vectors, normalized to length 1.
fn unit<'v>(rows: impl Iterator<Item = &'v [f32]>, width: usize) -> Vec<f32> {
    let mut sum = vec![0.0_f32; width];
    for row in rows {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    sum.iter().map(|x| x / length).collect()
}

fn tokenizer(path: &Path) -> Result<Tokenizer, Fault> {
    let shown = path.display();
    let unreadable = |e: &dyn std::fmt::Display| {
        Fault::unavailable(format!("the tokenizer {shown} cannot be read: {e}"))
    };
    let mut tokenizer = Tokenizer::from_file(path).map_err(|e| unreadable(&e))?;
    tokenizer.with_truncation(None).map_err(|e| unreadable(&e))?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Length of the longest text, in tokens.
fn longest(files: &FolderFiles, config: &Value) -> Result<usize, Fault> {
    let sentence = json(&files.path.join(LENGTH_CONFIG))?.unwrap_or_default();
    let most = sentence["max_seq_length"].as_u64().or(config["max_position_embeddings"].as_u64());
    Ok(most.and_then(|n| usize::try_from(n).ok()).unwrap_or(LENGTH))
}

fn pooling(files: &FolderFiles) -> Result<Pooling, Fault> {
    let path = files.path.join(POOLING_CONFIG);
    let Some(config) = json(&path)? else {
        return Ok(Pooling::Mean);
    };
    let on = |key: &str| config[key] == true;
    match (on("pooling_mode_mean_tokens"), on("pooling_mode_cls_token")) {
        (true, false) => Ok(Pooling::Mean),
        (false, true) => Ok(Pooling::First),
        _ => Err(Fault::unavailable(format!(
            "{} asks for a pooling that is not supported, only mean or first token are",
            path.display()
        ))),
    }
}

/// Checks the inputs of the graph: returns whether it has `token_type_ids`, and the output to use.
fn check_graph(files: &FolderFiles, session: &Session) -> Result<(bool, String), Fault> {
    let refuse = |why: String| {
        Err(Fault::unavailable(format!(
            "the graph {} cannot be used: {why}",
            files.graph.display()
        )))
    };
    let mut types = false;
    for input in session.inputs() {
        match input.name() {
            "input_ids" | "attention_mask" => {}
            "token_type_ids" => types = true,
            other => return refuse(format!("its input {other} is not known")),
        }
    }
    let names: Vec<&str> = session.outputs().iter().map(Outlet::name).collect();
    let known = OUTPUTS.iter().copied().find(|name| names.contains(name));
    match known.or_else(|| names.first().copied()) {
        Some(name) => Ok((types, name.to_owned())),
        None => refuse("it has no output".to_owned()),
    }
}
