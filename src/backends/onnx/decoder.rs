//! ONNX Runtime behind the port of the engine's thread: one session, key-value buffers that past
//! and present share.

use std::path::Path;
use std::time::Instant;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};
use ort::session::{IoBinding, Session};
use ort::value::{Tensor, TensorElementType, ValueType};
use sha2::{Digest, Sha256};
use toktrie::TokTrie;

use super::Options;
use super::folder::{Folder, TOKENIZER};
use super::prepared;
use super::runtime::{self, Runtime};
use super::vocabulary::Vocabulary;
use crate::backends::engine::{Decoder, Line, common, now, threads_or_all};
use crate::device::memory;
use crate::generate::Fault;
use crate::limits::OUTPUT_TOKENS_MAX;
use crate::model::{self, Capabilities, Identification, InferenceSettings, ModelContext};
use crate::prompt::{Message, Refusal};

/// Prompt tokens that are read in one step: room to stop in between, and a lower peak of memory.
const STEP_TOKENS: usize = 256;
/// The longest context that may be asked for.
const CONTEXT_TOKENS_MAX: u32 = 131_072;
/// Most prefixes that may be kept.
const PREFIXES_MAX: u32 = 64;
/// Work space for one step, measured on models of this size, with head-room.
const WORK_BYTES: u64 = 48 * 1024 * 1024;

/// Loads the model and serves the line.
pub(super) fn run(mut options: Options, line: Line) {
    options.threads = threads_or_all(options.threads);
    let started: Instant = now();
    match load(&options) {
        Ok((decoder, facts)) => line.serve(decoder, facts, started),
        Err(fault) => line.fail(fault),
    }
}

fn load(options: &Options) -> Result<(Onnx, ModelContext), Fault> {
    let within = 1..=CONTEXT_TOKENS_MAX;
    if !within.contains(&options.context_tokens) || !(1..=PREFIXES_MAX).contains(&options.prefixes)
    {
        return Err(Fault::Away(format!(
            "{} contexts of {} tokens are not possible, at most {PREFIXES_MAX} of \
             {CONTEXT_TOKENS_MAX}",
            options.prefixes, options.context_tokens
        )));
    }
    let folder = Folder::read(&options.path)?;
    let length = options.context_tokens.min(folder.context);
    let memory_bytes = enough_memory(&folder, length, options.prefixes)?;
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

fn enough_memory(folder: &Folder, length: u32, prefixes: u32) -> Result<u64, Fault> {
    // keys and values, four bytes each
    let token = (folder.layers * folder.kv_heads * folder.head * 2 * 4) as u64;
    let needed = folder.bytes() + token * u64::from(length) * u64::from(prefixes) + WORK_BYTES;
    let free = memory::read().map_or(u64::MAX, |memory| memory.available);
    if needed > free {
        return Err(Fault::Away(format!(
            "the model {} needs {} MiB of memory and {} MiB are free; use a smaller model or a \
             shorter --context",
            folder.path.display(),
            needed >> 20,
            free >> 20
        )));
    }
    Ok(needed)
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

/// The beginning of one conversation, kept ready.
struct Prefix {
    /// The tokens whose keys and values the buffers hold.
    tokens: Vec<u32>,
    /// Keys and values of each layer, for a whole context.
    buffers: Vec<[Tensor<f32>; 2]>,
    used: u64,
}

struct Onnx {
    session: Session,
    binding: IoBinding,
    folder: Folder,
    vocabulary: Vocabulary,
    prefixes: Vec<Prefix>,
    /// The prefix that is bound to the session.
    current: usize,
    requests: u64,
    capacity: usize,
    positions: bool,
    logits: Vec<f32>,
}

impl Onnx {
    fn new(
        session: Session,
        folder: Folder,
        vocabulary: Vocabulary,
        capacity: usize,
        prefixes: u32,
    ) -> Result<Onnx, Fault> {
        let positions = session.inputs().iter().any(|i| i.name() == folder.names.position_ids);
        let mut made = Vec::new();
        for _ in 0..prefixes {
            let buffers = (0..folder.layers).map(|_| buffers(&session, &folder, capacity));
            let buffers = buffers.collect::<ort::Result<_>>().map_err(|e| {
                Fault::Away(format!("there is no room for a context of {capacity} tokens: {e}"))
            })?;
            made.push(Prefix { tokens: Vec::new(), buffers, used: 0 });
        }
        let binding = session.create_binding().map_err(broken)?;
        let mut onnx = Onnx {
            session,
            binding,
            folder,
            vocabulary,
            prefixes: made,
            current: 0,
            requests: 0,
            capacity,
            positions,
            logits: Vec::new(),
        };
        onnx.bind(0).map_err(broken)?;
        Ok(onnx)
    }

    /// Makes the session read from and write to the buffers of one prefix.
    fn bind(&mut self, prefix: usize) -> ort::Result<()> {
        self.current = prefix;
        let names = &self.folder.names;
        for (layer, pair) in self.prefixes[prefix].buffers.iter_mut().enumerate() {
            let layer = layer.to_string();
            for (part, buffer) in pair.iter_mut().enumerate() {
                self.binding
                    .bind_output(names.present[part].replace("%d", &layer), &mut *buffer)?;
                self.binding.bind_input(names.past[part].replace("%d", &layer), &*buffer)?;
            }
        }
        let memory = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        self.binding.bind_output_to_device(names.logits.clone(), &memory)
    }

    /// The prefix that goes on in this prompt; else the one that was not used for the longest time.
    fn choose(&self, prompt: &[u32]) -> usize {
        let goes_on = |prefix: &Prefix| {
            let kept = common(&prefix.tokens, prompt);
            // all conversations begin with the template's words: that alone is no reason to throw
            // another one's away
            (2 * kept >= prefix.tokens.len() && kept > 0).then_some(kept)
        };
        let all = || self.prefixes.iter().enumerate();
        let longest = all().filter_map(|(n, prefix)| Some((goes_on(prefix)?, n))).max();
        let oldest = || all().min_by_key(|(_, prefix)| prefix.used).map(|(n, _)| n);
        longest.map(|(_, n)| n).or_else(oldest).unwrap_or(0)
    }

    fn step_through(&mut self, tokens: &[u32]) -> ort::Result<()> {
        let names = &self.folder.names;
        let past = self.prefixes[self.current].tokens.len();
        let total = past + tokens.len();
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::from_array(([1, tokens.len()], ids))?;
        self.binding.bind_input(names.input_ids.clone(), &ids)?;
        let mask = Tensor::from_array(([1, total], vec![1_i64; total]))?;
        self.binding.bind_input(names.attention_mask.clone(), &mask)?;
        if self.positions {
            let positions: Vec<i64> = (past..total).filter_map(|n| i64::try_from(n).ok()).collect();
            let positions = Tensor::from_array(([1, tokens.len()], positions))?;
            self.binding.bind_input(names.position_ids.clone(), &positions)?;
        }
        let outputs = self.session.run_binding(&self.binding)?;
        let logits = outputs.get(&names.logits).ok_or_else(|| ort::Error::new("no logits"))?;
        let (shape, numbers) = logits.try_extract_tensor::<f32>()?;
        let width = shape.last().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
        let last = numbers.len().saturating_sub(width);
        // a graph may have room for more tokens than the tokenizer knows
        let known = width.min(self.vocabulary.size() as usize);
        self.logits.clear();
        self.logits.extend_from_slice(&numbers[last..last + known]);
        Ok(())
    }
}

fn buffers(session: &Session, folder: &Folder, capacity: usize) -> ort::Result<[Tensor<f32>; 2]> {
    let shape = [1, folder.kv_heads, capacity, folder.head];
    let make = || Tensor::<f32>::new(session.allocator(), shape);
    Ok([make()?, make()?])
}

#[expect(clippy::needless_pass_by_value, reason = "it is what map_err hands on")]
fn broken(error: ort::Error) -> Fault {
    Fault::Broken(format!("ONNX Runtime could not go on: {error}"))
}

impl Decoder for Onnx {
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal> {
        self.vocabulary.conversation(self.folder.template.as_ref(), messages)
    }

    fn encode(&mut self, text: &str) -> Result<Vec<u32>, Refusal> {
        self.vocabulary.encode(text, false)
    }

    fn reuse(&mut self, prompt: &[u32]) -> Result<usize, Fault> {
        self.requests += 1;
        let best = self.choose(prompt);
        if best != self.current {
            self.bind(best).map_err(broken)?;
        }
        let requests = self.requests;
        let prefix = &mut self.prefixes[best];
        let kept = common(&prefix.tokens, prompt);
        prefix.tokens.truncate(kept);
        prefix.used = requests;
        Ok(kept)
    }

    fn read(&mut self, tokens: &[u32]) -> Result<(), Fault> {
        // the runtime trusts the mask and the ids: a wrong one ends the process
        let past = self.prefixes[self.current].tokens.len();
        let wrong = tokens.iter().find(|&&token| token >= self.vocabulary.size());
        if tokens.is_empty() || past + tokens.len() > self.capacity || wrong.is_some() {
            let n = tokens.len();
            return Err(Fault::Broken(format!("{n} tokens can't be read behind {past}")));
        }
        self.step_through(tokens).map_err(broken)?;
        self.prefixes[self.current].tokens.extend_from_slice(tokens);
        Ok(())
    }

    fn step(&self) -> usize {
        STEP_TOKENS
    }

    fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    fn is_end(&self, token: u32) -> bool {
        self.vocabulary.ends.contains(&token)
    }

    fn piece(&self, token: u32) -> Vec<u8> {
        self.vocabulary.piece(token)
    }

    fn trie(&self) -> TokTrie {
        self.vocabulary.trie()
    }
}
