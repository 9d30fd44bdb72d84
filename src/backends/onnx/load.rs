//! Opens a model folder: runtime, weights, tokenizer, and whether they fit together.

use std::path::Path;

use ort::session::Session;
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};
use ort::value::{TensorElementType, ValueType};
use sha2::{Digest, Sha256};

use super::Options;
use super::decoder::Onnx;
use super::folder::{Folder, TOKENIZER};
use super::prepared;
use super::runtime::{self, Runtime};
use super::vocabulary::Vocabulary;
use crate::backends::engine::room::{self, WORK_BYTES};
use crate::backends::engine::{Line, now, threads_or_all};
use crate::generate::Fault;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::{self, Capabilities, Identification, InferenceSettings, ModelContext};

/// Most prefixes that may be kept.
const PREFIXES_MAX: u32 = 64;

/// Loads the model and serves the line.
pub(super) fn run(mut options: Options, line: Line) {
    options.threads = threads_or_all(options.threads);
    let started = now();
    match load(&options) {
        Ok((decoder, facts)) => line.serve(decoder, facts, started),
        Err(fault) => line.fail(fault),
    }
}

/// Everything up to the first prompt.
///
/// # Errors
/// [`Fault::Away`] that says what is wrong and what to do.
fn load(options: &Options) -> Result<(Onnx, ModelContext), Fault> {
    room::for_context(options.context_tokens)?;
    if !(1..=PREFIXES_MAX).contains(&options.prefixes) {
        let asked = options.prefixes;
        return Err(Fault::Away(format!(
            "{asked} prefixes are not possible, at least 1 and at most {PREFIXES_MAX}"
        )));
    }
    let folder = Folder::read(&options.path)?;
    let length = options.context_tokens.min(folder.context);
    let memory_bytes = needed_bytes(&folder, length, options.prefixes);
    room::for_model(&folder.path, memory_bytes)?;
    let runtime = runtime::start(options.runtime.as_deref())?;
    let (session, vocabulary) = std::thread::scope(|threads| {
        let vocabulary = threads.spawn(|| {
            let bos = folder.bos.as_deref().filter(|_| folder.add_bos);
            Vocabulary::read(&folder.path.join(TOKENIZER), bos, &folder.ends)
        });
        let session = folder.verify().and_then(|()| folder.digest()).and_then(|digest| {
            let prepared = prepared::graph(&folder, &digest, runtime)?;
            let session = session(runtime, &folder, prepared.as_deref(), options.threads);
            let shown = folder.graph.display();
            let session = session
                .map_err(|e| Fault::Away(format!("ONNX Runtime can't load {shown}: {e}")))?;
            Ok((session, digest))
        });
        (session, vocabulary.join())
    });
    let broken = |_| Fault::Broken("a thread of the loader has ended".to_owned());
    let (session, digest) = session?;
    let mut vocabulary = vocabulary.map_err(broken)??;
    if vocabulary.ends.is_empty() {
        let eos = folder.eos.as_deref().and_then(|eos| vocabulary.id(eos));
        vocabulary.ends.extend(eos);
    }
    check_graph(&session, &folder)?;
    let facts = describe(&folder, &vocabulary, options, runtime, digest, length, memory_bytes);
    let decoder = Onnx::new(session, folder, vocabulary, length as usize, options.prefixes)?;
    Ok((decoder, facts))
}

/// Weights, key-value buffers and work space.
fn needed_bytes(folder: &Folder, length: u32, prefixes: u32) -> u64 {
    // keys and values, four bytes each
    let token = (folder.layers * folder.kv_heads * folder.head * 2 * 4) as u64;
    folder.bytes() + token * u64::from(length) * u64::from(prefixes) + WORK_BYTES
}

fn session(
    runtime: &Runtime,
    folder: &Folder,
    prepared: Option<&Path>,
    threads: u32,
) -> ort::Result<Session> {
    // what was prepared is optimized already
    let (graph, level) = match prepared {
        Some(path) => (path, GraphOptimizationLevel::Disable),
        None => (folder.graph.as_path(), GraphOptimizationLevel::Level3),
    };
    let mut builder = Session::builder(&runtime.environment)?
        .with_intra_threads(threads as usize)?
        // a spinning thread halves the rate beside a busy neighbour
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(level)?
        .with_auto_device(AutoDevicePolicy::PreferCPU)?;
    builder.commit_from_file(graph)
}

/// Whether the graph is one that can be driven here.
fn check_graph(session: &Session, folder: &Folder) -> Result<(), Fault> {
    let refuse = |why: String| {
        Err(Fault::Away(format!("the graph {} can't be used: {why}", folder.graph.display())))
    };
    if !folder.shared {
        return refuse(
            "its key-value buffers are not shared (past_present_share_buffer); convert the model \
             with `pilotlight model convert` or onnxruntime-genai's builder"
                .to_owned(),
        );
    }
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
            return refuse(format!("its input {name} is no tensor"));
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
    options: &Options,
    runtime: &Runtime,
    digest: String,
    context_tokens: u32,
    memory_bytes: u64,
) -> ModelContext {
    let origin = &folder.origin;
    let own_name = || {
        let name = options.path.file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_else(|| "onnx".to_owned())
    };
    let special = [("bos", &folder.bos), ("eos", &folder.eos)];
    ModelContext {
        identification: Identification {
            name: options.name.clone().unwrap_or_else(own_name),
            family: folder.family.clone(),
            version: origin.version.clone(),
            provider: origin.provider.clone(),
            digest: Some(digest),
            licence: origin.licence.clone(),
        },
        capabilities: Capabilities {
            context_tokens,
            max_output_tokens: OUTPUT_TOKENS_MAX.min(context_tokens),
            modalities: vec!["text".to_owned()],
            json_schema: true,
            streaming: true,
            ..Capabilities::default()
        },
        inference_settings: InferenceSettings::default(),
        tokenizer: model::Tokenizer {
            kind: vocabulary.kind(),
            vocab_size: vocabulary.size(),
            special_tokens: special
                .into_iter()
                .filter_map(|(name, text)| Some((name.to_owned(), text.clone()?)))
                .collect(),
            chat_template_digest: folder
                .template
                .as_ref()
                .map(|t| format!("{:x}", Sha256::digest(t.source().as_bytes()))),
        },
        runtime: model::Runtime {
            backend: "onnxruntime".to_owned(),
            version: runtime.version.clone(),
            quantization: origin.quantization.clone(),
            location: "device".to_owned(),
            threads: options.threads,
            slots: 1,
            memory_bytes,
            ..model::Runtime::default()
        },
    }
}
