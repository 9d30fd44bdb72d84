//! [`Decoder`] on llama.cpp: one context whose KV cache holds a few conversations, and short-lived
//! branches of one of them while labels are scored; beside it, one for a deterministic answer.

use std::ffi::c_void;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use toktrie::TokTrie;

use super::alone::AloneContext;
use super::ids::{id, number_i32, token};
use super::kv_cache::{CACHED, KvCache};
use super::load;
use super::load::{BATCH_TOKENS, Loaded};
use super::prefix_folder::PrefixFolder;
use super::sequences::LlamaSequences;
use super::start_record::StartRecord;
use super::{GgufOptions, cpu_variant, template, threads};
use crate::clock::now;
use crate::engines::template::ChatTemplate;
use crate::engines::worker::constraint::{VocabToken, trie};
use crate::engines::worker::{
    Decoder, Engine, EngineWorker, Measurement, PrefixScope, SLOTS, StepPart, Threads, Tokenize,
    log_probabilities, score_each, score_first_tokens, sha256_of, threads_or_all,
};
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::request::job::Message;
use crate::request::refusal::Refusal;
use crate::sandbox::memory::EngineBounds;

/// Sequences of the KV cache: those whose tokens are kept, and branches.
const SEQUENCES: u32 = CACHED + BRANCHES;
/// Continuations that are scored in one batch.
const BRANCHES: u32 = 15;
/// The sequence of the context of its own.
const ALONE: usize = SEQUENCES as usize;

/// Body of the worker thread: loads the model and serves it.
pub(super) fn run(mut options: GgufOptions, bounds: &EngineBounds, worker: EngineWorker) {
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
    options.threads = threads_or_all(options.threads);
    let started = now();
    let loaded =
        backend().and_then(|backend| Ok((load::load(backend, &options, bounds)?, backend)));
    let (loaded, backend) = match loaded {
        Ok(loaded) => loaded,
        Err(fault) => return worker.fail(fault),
    };
    let loaded = Arc::new(loaded);
    let stop = Box::new(StopSignal::default());
    match LlamaDecoder::new(backend, &loaded, &options, &stop) {
        Ok((decoder, facts)) => {
            worker.serve(Engine::new(decoder, facts, options.calibration), started);
        }
        Err(fault) => worker.fail(fault),
    }
}

/// The llama.cpp backend, initialized once in a process and never freed.
fn backend() -> Result<&'static LlamaBackend, Fault> {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    let started = BACKEND.get_or_init(|| {
        cpu_variant();
        LlamaBackend::init().ok()
    });
    started.as_ref().ok_or_else(|| Fault::unavailable("llama.cpp cannot start".to_owned()))
}

/// Pointer to the stop flag of the current request; null between requests.
#[derive(Default)]
struct StopSignal(AtomicPtr<AtomicBool>);

/// Abort callback: llama.cpp calls it between the operations of a batch.
#[expect(unsafe_code, reason = "called from C")]
extern "C" fn must_stop(data: *mut c_void) -> bool {
    // SAFETY: `data` is the `StopSignal` that `run` keeps in a box for longer than the context.
    let signal = unsafe { &*data.cast_const().cast::<StopSignal>() };
    let flag = signal.0.load(Ordering::Acquire);
    // SAFETY: the pointer is null or to a flag that `LlamaDecoder::raised` keeps alive; the pointer is
    // cleared before the flag is dropped, and only the thread that calls this does either.
    unsafe { flag.as_ref() }.is_some_and(|flag| flag.load(Ordering::Relaxed))
}

struct LlamaDecoder<'m> {
    backend: &'m LlamaBackend,
    /// For other threads, which tokenize.
    loaded: Arc<Loaded>,
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    /// While there is a deterministic answer.
    alone: Option<AloneContext<'m>>,
    template: Option<ChatTemplate>,
    batch: LlamaBatch<'static>,
    cache: KvCache,
    /// Of each part of the last step.
    logits: Vec<Vec<f32>>,
    stop: &'m StopSignal,
    /// The flag that `stop` points to.
    raised: Option<Arc<AtomicBool>>,
    /// The threads of the options.
    threads: Threads,
    start: Option<KnownStart>,
}

/// The record of earlier starts, and what this one is known by in it.
struct KnownStart {
    record: StartRecord,
    digest: String,
    with: String,
}

impl<'m> LlamaDecoder<'m> {
    fn new(
        backend: &'m LlamaBackend,
        loaded: &'m Arc<Loaded>,
        options: &GgufOptions,
        stop: &'m StopSignal,
    ) -> Result<(LlamaDecoder<'m>, ModelContext), Fault> {
        let model = &loaded.model;
        let template = template::of(model).map_err(Fault::unavailable)?;
        let length = options.context_tokens.min(model.n_ctx_train());
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(length))
            .with_n_batch(BATCH_TOKENS)
            .with_n_ubatch(BATCH_TOKENS)
            .with_n_seq_max(SEQUENCES)
            // all sequences share the KV cache
            .with_kv_unified(true)
            .with_n_threads(threads::number(options.decode_threads))
            .with_n_threads_batch(threads::number(options.threads));
        let params = with_stop_signal(params, stop);
        let record = options.prefixes.as_deref();
        let record = record.map(|folder| StartRecord::open(folder, &loaded.file));
        let known = record.as_ref().and_then(StartRecord::digest).map(str::to_owned);
        // the file is hashed while the context is allocated, unless it was before
        let (context, digest) = std::thread::scope(|threads| {
            let known = loaded.digest.clone().or(known);
            let hash = || known.or_else(|| loaded.file.reader().and_then(sha256_of).ok());
            let digest = threads.spawn(hash);
            (model.new_context(backend, params), digest.join().unwrap_or_default())
        });
        loaded.file.check_unchanged(&options.path)?;
        let context = context.map_err(|e| {
            Fault::unavailable(format!(
                "llama.cpp cannot allocate a context of {length} tokens: {e}"
            ))
        })?;
        // llama.cpp rounds up
        let length = context.n_ctx().min(length);
        let facts = load::describe(loaded, template.as_ref(), options, digest, length);
        let folder = prefix_folder(model, options, &facts);
        let start = record.and_then(|record| known_start(record, options, &facts));
        // the state of a recurrent model is that of its last token alone
        let at_any_token = !model.is_recurrent() && !model.is_hybrid();
        let decoder = LlamaDecoder {
            backend,
            loaded: Arc::clone(loaded),
            model,
            context,
            alone: None,
            template,
            batch: LlamaBatch::new(BATCH_TOKENS as usize, 1),
            cache: KvCache::new(length as usize, at_any_token, folder),
            logits: Vec::new(),
            stop,
            raised: None,
            threads: Threads { one: options.decode_threads, many: options.threads },
            start,
        };
        Ok((decoder, facts))
    }
}

impl LlamaDecoder<'_> {
    /// Evaluates all but the last token of some continuations in one batch, each on its own branch, and
    /// adds their log-probabilities to `sums`.
    fn score_branches(
        &mut self,
        sequence: usize,
        some: &[usize],
        all: &[Vec<u32>],
        sums: &mut [f32],
    ) -> Result<(), Fault> {
        let broken = |e: &dyn std::fmt::Display| {
            Fault::ProtocolError(format!("llama.cpp could not score labels: {e}"))
        };
        let mut library = LlamaSequences(&mut self.context);
        self.cache.evict_for(&mut library, some.iter().map(|&n| all[n].len()).sum())?;
        self.batch.clear();
        let mut rows = Vec::new();
        let from = number_i32(sequence);
        for (branch, &n) in (number_i32(CACHED as usize)..).zip(some) {
            self.context.copy_kv_cache_seq(from, branch, None, None).map_err(|e| broken(&e))?;
            for (pair, at) in all[n].windows(2).zip(self.cache.len(sequence)..) {
                let at = i32::try_from(at).unwrap_or(i32::MAX);
                self.batch.add(token(pair[0]), at, &[branch], true).map_err(|e| broken(&e))?;
                rows.push((n, pair[1]));
            }
        }
        self.context.decode(&mut self.batch).map_err(|e| broken(&e))?;
        for ((n, next), row) in rows.into_iter().zip(0..) {
            sums[n] += log_probabilities(self.context.get_logits_ith(row))[next as usize];
        }
        Ok(())
    }

    /// Evaluates one batch.
    fn eval_batch(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault> {
        self.batch.clear();
        for part in parts {
            let first = self.cache.len(part.sequence);
            for (n, &next) in part.tokens.iter().enumerate() {
                let at = i32::try_from(first + n).unwrap_or(i32::MAX);
                let last = n + 1 == part.tokens.len();
                self.batch
                    .add(token(next), at, &[number_i32(part.sequence)], last)
                    .map_err(|e| Fault::ProtocolError(format!("batch too large: {e}")))?;
            }
        }
        let decoded = self.context.decode(&mut self.batch);
        decoded.map_err(|e| Fault::ProtocolError(format!("llama.cpp decode failed: {e}")))
    }
}

impl Decoder for LlamaDecoder<'_> {
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal> {
        let tokens = template::tokens(self.model, self.template.as_ref(), messages)?;
        Ok(tokens.into_iter().map(id).collect())
    }

    fn encode(&mut self, text: &str, begins: bool) -> Result<Vec<u32>, Refusal> {
        let mut tokens = Vec::new();
        self.model.vocab().tokenize_into(text.as_bytes(), &mut tokens, false, false);
        if begins {
            template::begin(self.model, &mut tokens);
        }
        Ok(tokens.into_iter().map(id).collect())
    }

    fn sequences(&self) -> usize {
        SLOTS as usize
    }

    fn free_tokens(&self) -> usize {
        self.cache.free_tokens()
    }

    fn reuse(&mut self, prompt: &[u32], scope: &PrefixScope) -> Result<(usize, usize), Fault> {
        self.cache.reuse(&mut LlamaSequences(&mut self.context), prompt, scope)
    }

    fn open_alone(&mut self, tokens: usize) -> Result<usize, Fault> {
        let params = with_stop_signal(LlamaContextParams::default(), self.stop);
        // the measured number may be another one each time
        let Threads { one, many } = self.threads;
        let threads = Threads { one: if one > 0 { one } else { many }, many };
        // the memory of the one before is needed
        self.alone = None;
        let alone = AloneContext::new(self.backend, self.model, params, tokens, threads)?;
        self.alone = Some(alone);
        Ok(ALONE)
    }

    fn release(&mut self, sequence: usize) {
        if sequence == ALONE {
            self.alone = None;
            return;
        }
        self.cache.release(&LlamaSequences(&mut self.context), sequence);
    }

    fn clear(&mut self) {
        self.context.clear_kv_cache();
        self.cache.clear();
    }

    fn eval(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault> {
        self.logits.resize_with(parts.len(), Vec::new);
        if let ([part], Some(alone)) = (parts, &mut self.alone)
            && part.sequence == ALONE
        {
            return alone.eval(part.tokens, &mut self.logits[0]);
        }
        let mut library = LlamaSequences(&mut self.context);
        let tokens = parts.iter().map(|part| part.tokens.len()).sum();
        self.cache.evict_for(&mut library, tokens)?;
        if let Err(fault) = self.eval_batch(parts) {
            for part in parts {
                let mut library = LlamaSequences(&mut self.context);
                self.cache.repair(&mut library, part.sequence)?;
            }
            return Err(fault);
        }
        let mut row = 0;
        for (part, logits) in parts.iter().zip(&mut self.logits) {
            self.cache.append(part.sequence, part.tokens);
            row += number_i32(part.tokens.len());
            logits.clear();
            logits.extend_from_slice(self.context.get_logits_ith(row - 1));
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: usize, last: usize) -> Result<(), Fault> {
        if let Some(alone) = self.alone.as_mut().filter(|_| sequence == ALONE) {
            return alone.truncate(last);
        }
        let kept = self.cache.len(sequence).saturating_sub(last);
        self.cache.truncate_at(&mut LlamaSequences(&mut self.context), sequence, kept)
    }

    fn score_continuations(
        &mut self,
        sequence: usize,
        all: &[Vec<u32>],
    ) -> Result<Vec<f32>, Fault> {
        if sequence == ALONE {
            return score_each(self, sequence, all);
        }
        let mut sums = score_first_tokens(self.logits(0), all);
        // continuations of one token are scored already
        let longer: Vec<usize> = (0..all.len()).filter(|&n| all[n].len() > 1).collect();
        let mut left = longer.as_slice();
        // bounded: each round scores at least one
        while !left.is_empty() {
            let (some, others) = left.split_at(fitting(left.iter().map(|&n| all[n].len())));
            left = others;
            let scored = self.score_branches(sequence, some, all, &mut sums);
            for branch in SEQUENCES - BRANCHES..SEQUENCES {
                let cleared = self.context.clear_kv_cache_seq(Some(branch), None, None);
                cleared.map_err(|e| {
                    Fault::ProtocolError(format!("a branch cannot be removed: {e}"))
                })?;
            }
            scored?;
        }
        Ok(sums)
    }

    fn threads(&self) -> Option<Threads> {
        Some(self.threads)
    }

    fn set_threads(&mut self, threads: Threads) {
        threads::set(&mut self.context, threads);
    }

    fn measured(&self) -> Option<Measurement> {
        self.start.as_ref().and_then(|start| start.record.measurement(&start.with))
    }

    fn keep_measured(&mut self, measurement: &Measurement) {
        if let Some(KnownStart { record, digest, with }) = &mut self.start {
            record.keep(digest, with, measurement);
        }
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS as usize
    }

    fn logits(&mut self, part: usize) -> &mut [f32] {
        &mut self.logits[part]
    }

    fn is_end(&self, last: u32) -> bool {
        self.model.vocab().is_eog(token(last))
    }

    fn token_bytes(&self, written: u32) -> Vec<u8> {
        self.model.vocab().token_to_piece(token(written), false, None)
    }

    fn trie(&self) -> TokTrie {
        let vocab = self.model.vocab();
        let all = || (0..vocab.n_tokens()).map(LlamaToken);
        let usual = if vocab.eot().0 >= 0 { vocab.eot() } else { vocab.eos() };
        let others = all().filter(|&token| vocab.is_eog(token) && token != usual);
        let ends: Vec<u32> = std::iter::once(usual).chain(others).map(id).collect();
        let tokens = all().map(|token| {
            let text = vocab.token_to_piece(token, false, None);
            if text.is_empty() {
                VocabToken::Control(vocab.token_to_piece(token, true, None))
            } else {
                VocabToken::Text(text)
            }
        });
        trie(tokens, &ends)
    }

    fn tokenizer(&self) -> Option<Tokenize> {
        let loaded = Arc::clone(&self.loaded);
        Some(Arc::new(move |text| {
            let mut tokens = Vec::new();
            loaded.model.vocab().tokenize_into(text.as_bytes(), &mut tokens, false, false);
            tokens.into_iter().map(id).collect()
        }))
    }

    fn begin_request(&mut self, stop: &Arc<AtomicBool>) {
        self.end_request();
        self.stop.0.store(Arc::as_ptr(stop).cast_mut(), Ordering::Release);
        self.raised = Some(Arc::clone(stop));
    }

    fn end_request(&mut self) {
        self.stop.0.store(std::ptr::null_mut(), Ordering::Release);
        self.raised = None;
    }
}

/// The saved prefixes of the model, if there is a folder for them and the model is known by its digest. Without
/// them prompts are read again.
fn prefix_folder(
    model: &LlamaModel,
    options: &GgufOptions,
    facts: &ModelContext,
) -> Option<PrefixFolder> {
    let engine = engine_key(facts)?;
    let path = options.prefixes.as_ref()?;
    // a state has only the window of such a model, and a shorter beginning of it would lack tokens
    let window = format!("{}.attention.sliding_window", facts.identification.family);
    if model.meta_val_str(&window).is_ok_and(|tokens| tokens != "0") {
        return None;
    }
    PrefixFolder::open(path, engine)
        .inspect_err(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "prefixes of prompts are not kept on disk");
        })
        .ok()
}

/// The weights, the program and the code of the engine. None if the digest of the weights is not known.
fn engine_key(facts: &ModelContext) -> Option<String> {
    let digest = facts.identification.digest.as_ref()?;
    let (runtime, program) = (&facts.runtime, env!("CARGO_PKG_VERSION"));
    let on = runtime.accelerator.as_ref().or(runtime.cpu_variant.as_ref());
    Some(format!("{digest} {program} {} {}", runtime.version, on.map_or("cpu", String::as_str)))
}

fn known_start(
    record: StartRecord,
    options: &GgufOptions,
    facts: &ModelContext,
) -> Option<KnownStart> {
    let GgufOptions { threads, decode_threads, gpu_layers, .. } = options;
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let engine = engine_key(facts)?;
    Some(KnownStart {
        record,
        digest: facts.identification.digest.clone()?,
        with: format!("{engine} {threads} {decode_threads} {gpu_layers} {processors}"),
    })
}

/// Number of the first continuations, of these lengths in tokens, that fit into one batch; at least
/// one.
fn fitting(lengths: impl Iterator<Item = usize>) -> usize {
    let mut tokens = 0;
    let fits = |length: &usize| {
        // the last token of each is not evaluated
        tokens += length - 1;
        tokens <= BATCH_TOKENS as usize
    };
    lengths.take(BRANCHES as usize).take_while(fits).count().max(1)
}

/// Sets llama.cpp's abort callback, for which the safe API has no setter.
#[expect(unsafe_code, reason = "the safe API lacks the abort callback")]
fn with_stop_signal(mut params: LlamaContextParams, stop: &StopSignal) -> LlamaContextParams {
    type Raw = llama_cpp_sys_2::llama_context_params;
    const _: () = assert!(size_of::<LlamaContextParams>() == size_of::<Raw>());
    const _: () = assert!(align_of::<LlamaContextParams>() == align_of::<Raw>());
    // SAFETY: at this pinned version `LlamaContextParams` has exactly one field, of type `Raw`;
    // a struct with one field of its own size and alignment holds it at offset 0.
    let raw = unsafe { &mut *(&raw mut params).cast::<Raw>() };
    raw.abort_callback = Some(must_stop);
    raw.abort_callback_data = std::ptr::from_ref(stop).cast_mut().cast();
    params
}
