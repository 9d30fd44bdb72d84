//! Loads a model folder: runtime, weights and tokenizer, with checks that they fit together.

use ort::session::Session;
use ort::value::{TensorElementType, ValueType};

use super::OnnxOptions;
use super::decoder::Onnx;
use super::files::TOKENIZER;
use super::folder::Folder;
use super::vocabulary::Vocabulary;
use super::{encoder, graph, runtime};
use crate::clock::now;
use crate::engines::template::ChatTemplate;
use crate::engines::worker::memory::WORK_BYTES;
use crate::engines::worker::{Engine, EngineWorker, memory, template_digest, threads_or_all};
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::context;
use crate::model::context::{Capabilities, InferenceSettings, ModelContext};
use crate::model::generate::Fault;
use crate::request::skill;
use crate::sandbox::memory::EngineBounds;

/// Most conversations in the prefix cache.
const PREFIXES_MAX: u32 = 64;

/// Body of the worker thread: loads the model and serves it.
pub(super) fn run(mut options: OnnxOptions, bounds: &EngineBounds, worker: EngineWorker) {
    options.threads = threads_or_all(options.threads);
    let started = now();
    if encoder::is_encoder(&options.path) {
        return match encoder::Encoder::load(&options, bounds) {
            Ok(encoder) => worker.serve(encoder, started),
            Err(fault) => worker.fail(fault),
        };
    }
    match load(&options, bounds) {
        Ok((decoder, facts)) => {
            worker.serve(Engine::new(decoder, facts, options.calibration), started);
        }
        Err(fault) => worker.fail(fault),
    }
}

/// Loads a decoder.
///
/// # Errors
/// [`Fault::Unavailable`] that states what is wrong and what to do.
pub(crate) fn load(
    options: &OnnxOptions,
    bounds: &EngineBounds,
) -> Result<(Onnx, ModelContext), Fault> {
    memory::check_context(options.context_tokens)?;
    if !(1..=PREFIXES_MAX).contains(&options.prefixes) {
        let asked = options.prefixes;
        return Err(Fault::unavailable(format!(
            "--prefixes is {asked}, must be 1 to {PREFIXES_MAX}"
        )));
    }
    let mut folder = Folder::read(&options.path)?;
    let length = options.context_tokens.min(folder.context);
    let memory_bytes = needed_bytes(&folder, length, options.prefixes);
    memory::check_model(&folder.files.path, memory_bytes)?;
    graph::bound_memory(bounds, options, memory_bytes);
    let adapted = folder.template.take().map(ChatTemplate::adapted);
    folder.template = adapted.transpose().map_err(Fault::unavailable)?;
    let runtime = runtime::start(options.runtime.as_deref())?;
    let (opened, vocabulary) = std::thread::scope(|threads| {
        let vocabulary = threads.spawn(|| {
            let bos = folder.bos.as_deref().filter(|_| folder.add_bos);
            let path = folder.files.path.join(TOKENIZER);
            Vocabulary::read(&path, bos, &folder.ends, folder.eos.as_deref())
        });
        (graph::open(&folder.files, runtime, options, bounds), vocabulary.join())
    });
    let broken = |_| Fault::ProtocolError("a loader thread failed".to_owned());
    let (opened, digest) = opened?;
    let vocabulary = vocabulary.map_err(broken)??;
    check_graph(&opened.session, &folder)?;
    let mut facts = describe(&folder, &vocabulary, options, digest, length);
    facts.runtime = graph::runtime_facts(&folder.files, options, runtime, &opened, memory_bytes);
    let session = opened.session;
    let decoder = Onnx::new(session, folder, vocabulary, length as usize, options.prefixes)?;
    Ok((decoder, facts))
}

/// Bytes of weights, KV cache and working memory.
fn needed_bytes(folder: &Folder, length: u32, prefixes: u32) -> u64 {
    // keys and values, four bytes each
    let token = (folder.layers * folder.kv_heads * folder.head * 2 * 4) as u64;
    folder.files.bytes() + token * u64::from(length) * u64::from(prefixes) + WORK_BYTES
}

/// Checks that the graph has the expected inputs, of the expected types.
fn check_graph(session: &Session, folder: &Folder) -> Result<(), Fault> {
    let refuse = |why: String| {
        Err(Fault::unavailable(format!(
            "the graph {} cannot be used: {why}",
            folder.files.graph.display()
        )))
    };
    let names = &folder.names;
    let mut wanted = vec![names.input_ids.clone(), names.attention_mask.clone()];
    for layer in 0..folder.layers {
        wanted.extend(names.past.iter().map(|name| name.replace("%d", &layer.to_string())));
    }
    for name in &wanted {
        let Some(input) = session.inputs().iter().find(|input| input.name() == name) else {
            return refuse(format!("it has no input {name}"));
        };
        let ValueType::Tensor { ty, .. } = input.dtype() else {
            return refuse(format!("its input {name} is not a tensor"));
        };
        let past = name != &names.input_ids && name != &names.attention_mask;
        let expected = if past { TensorElementType::Float32 } else { TensorElementType::Int64 };
        if *ty != expected {
            return refuse(format!("its input {name} is of type {ty}, not {expected}"));
        }
    }
    let known = |name: &str| wanted.iter().any(|want| want == name) || name == names.position_ids;
    match session.inputs().iter().find(|input| !known(input.name())) {
        Some(other) => refuse(format!("its input {} is not known", other.name())),
        None => Ok(()),
    }
}

fn describe(
    folder: &Folder,
    vocabulary: &Vocabulary,
    options: &OnnxOptions,
    digest: String,
    context_tokens: u32,
) -> ModelContext {
    let special = [("bos", &folder.bos), ("eos", &folder.eos)];
    ModelContext {
        identification: graph::identity(&folder.files, options, &folder.family, digest),
        capabilities: Capabilities {
            context_tokens,
            max_output_tokens: OUTPUT_TOKENS_MAX.min(context_tokens),
            modalities: vec!["text".to_owned()],
            json_schema: true,
            streaming: true,
            logprobs: true,
            skills: vec![skill::GENERATE.to_owned(), skill::CLASSIFY.to_owned()],
            ..Capabilities::default()
        },
        inference_settings: InferenceSettings::default(),
        tokenizer: context::Tokenizer {
            kind: vocabulary.kind(),
            vocab_size: vocabulary.size(),
            special_tokens: special
                .into_iter()
                .filter_map(|(name, text)| Some((name.to_owned(), text.clone()?)))
                .collect(),
            chat_template_digest: folder.template.as_ref().map(template_digest),
            template_adaptations: folder
                .template
                .as_ref()
                .map_or_else(Vec::new, ChatTemplate::adaptation_names),
        },
        ..ModelContext::default()
    }
}
