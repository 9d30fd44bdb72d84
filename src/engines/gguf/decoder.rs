//! llama.cpp behind the port of the engine's thread: one context that is shared by a few conversations,
//! and by branches that leave one of them for as long as labels are scored.

use std::ffi::c_void;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use toktrie::TokTrie;

use super::load;
use super::load::{BATCH_TOKENS, Loaded};
use super::{GgufOptions, template};
use crate::clock::now;
use crate::engines::template::ChatTemplate;
use crate::engines::worker::constraint::{VocabToken, trie};
use crate::engines::worker::{
    Decoder, Engine, EngineWorker, SLOTS, common, log_probabilities, sha256, threads_or_all,
};
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::request::job::Message;
use crate::request::refusal::Refusal;

/// Sequences of the context: conversations, and the branches that are tried at once.
const SEQUENCES: u32 = KEPT + BRANCHES;
const BRANCHES: u32 = 15;
/// Conversations that are kept ready: as many as an engine may have begun.
const KEPT: u32 = SLOTS;

/// A conversation in the key-value cache.
#[derive(Debug, Default)]
struct Kept {
    tokens: Vec<u32>,
    used: u64,
}

/// Loads the model and serves the line.
pub(super) fn run(mut options: GgufOptions, line: EngineWorker) {
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
    options.threads = threads_or_all(options.threads);
    let started = now();
    let loaded = backend().and_then(|backend| Ok((load::load(backend, &options)?, backend)));
    let (loaded, backend) = match loaded {
        Ok(loaded) => loaded,
        Err(fault) => return line.fail(fault),
    };
    let stop = Box::new(StopSignal::default());
    match LlamaDecoder::new(backend, &loaded, &options, &stop) {
        Ok((decoder, facts)) => {
            line.serve(Engine::new(decoder, facts, options.calibration), started);
        }
        Err(fault) => line.fail(fault),
    }
}

/// llama.cpp is started once in a process and never stopped.
fn backend() -> Result<&'static LlamaBackend, Fault> {
    static BACKEND: OnceLock<Option<LlamaBackend>> = OnceLock::new();
    let started = BACKEND.get_or_init(|| LlamaBackend::init().ok());
    started.as_ref().ok_or_else(|| Fault::unavailable("llama.cpp cannot start".to_owned()))
}

/// Points to the flag of the present request while one runs.
#[derive(Default)]
struct StopSignal(AtomicPtr<AtomicBool>);

/// llama.cpp asks this between the steps of a batch.
#[expect(unsafe_code, reason = "called from C")]
extern "C" fn must_stop(data: *mut c_void) -> bool {
    // SAFETY: `data` is the `StopSignal` that `run` keeps in a box for longer than the context.
    let signal = unsafe { &*data.cast_const().cast::<StopSignal>() };
    let flag = signal.0.load(Ordering::Acquire);
    // SAFETY: the pointer is null or to a flag that `LlamaDecoder::raised` keeps alive; the pointer is
    // taken down before that, and only the thread that asks does either.
    unsafe { flag.as_ref() }.is_some_and(|flag| flag.load(Ordering::Relaxed))
}

struct LlamaDecoder<'m> {
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    template: Option<ChatTemplate>,
    batch: LlamaBatch<'static>,
    /// What the key-value cache holds, each in the sequence of its place.
    kept: Vec<Kept>,
    /// The conversation that goes on.
    current: usize,
    requests: u64,
    /// Tokens of all conversations together.
    length: usize,
    logits: Vec<f32>,
    stop: &'m StopSignal,
    /// The flag that `stop` points to.
    raised: Option<Arc<AtomicBool>>,
}

impl<'m> LlamaDecoder<'m> {
    fn new(
        backend: &LlamaBackend,
        loaded: &'m Loaded,
        options: &GgufOptions,
        stop: &'m StopSignal,
    ) -> Result<(LlamaDecoder<'m>, ModelContext), Fault> {
        let model = &loaded.model;
        let template = template::of(model).map_err(Fault::unavailable)?;
        let length = options.context_tokens.min(model.n_ctx_train());
        let path = options.path.clone();
        let digest = std::thread::spawn(move || sha256(&path).ok());
        let threads = |n: u32| i32::try_from(n.max(1)).unwrap_or(1);
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(length))
            .with_n_batch(BATCH_TOKENS)
            .with_n_ubatch(BATCH_TOKENS)
            .with_n_seq_max(SEQUENCES)
            // all sequences share the one context
            .with_kv_unified(true)
            .with_n_threads(threads(options.decode_threads))
            .with_n_threads_batch(threads(options.threads));
        let params = with_stop_signal(params, stop);
        let context = model.new_context(backend, params).map_err(|e| {
            Fault::unavailable(format!(
                "llama.cpp cannot allocate a context of {length} tokens: {e}"
            ))
        })?;
        let digest = digest.join().unwrap_or_default();
        // llama.cpp rounds up; what it has is what counts
        let length = context.n_ctx().min(length);
        let facts = load::describe(loaded, template.as_ref(), options, digest, length);
        let decoder = LlamaDecoder {
            model,
            context,
            template,
            batch: LlamaBatch::new(BATCH_TOKENS as usize, 1),
            kept: (0..KEPT).map(|_| Kept::default()).collect(),
            current: 0,
            requests: 0,
            length: length as usize,
            logits: Vec::new(),
            stop,
            raised: None,
        };
        Ok((decoder, facts))
    }

    fn cached(&self) -> usize {
        self.kept[self.current].tokens.len()
    }

    fn forget_from(&mut self, kept: usize) -> Result<(), Fault> {
        let from = u32::try_from(kept).unwrap_or(u32::MAX);
        let sequence = Some(number(self.current));
        let cleared = self.context.clear_kv_cache_seq(sequence, Some(from), None);
        if cleared.is_ok_and(|cleared| cleared) {
            self.kept[self.current].tokens.truncate(kept);
            return Ok(());
        }
        // some models can't forget a part
        self.forget_all();
        if kept == 0 {
            Ok(())
        } else {
            Err(Fault::ProtocolError("the key-value cache cannot be truncated".to_owned()))
        }
    }

    fn forget_all(&mut self) {
        self.context.clear_kv_cache();
        for kept in &mut self.kept {
            kept.tokens.clear();
        }
    }

    /// Throws out the conversations that were not used for the longest time until there is room for
    /// this many tokens more. One that is thrown out is read again when it goes on.
    fn make_room(&mut self, tokens: usize) -> Result<(), Fault> {
        let holds = |kept: &[Kept]| kept.iter().map(|kept| kept.tokens.len()).sum::<usize>();
        // bounded: each turn empties one of a few
        while holds(&self.kept) + tokens > self.length {
            let others = (0..self.kept.len()).filter(|at| *at != self.current);
            let full = others.filter(|at| !self.kept[*at].tokens.is_empty());
            let Some(oldest) = full.min_by_key(|at| self.kept[*at].used) else { return Ok(()) };
            let cleared = self.context.clear_kv_cache_seq(Some(number(oldest)), None, None);
            cleared.map_err(|e| {
                Fault::ProtocolError(format!("a sequence cannot be truncated: {e}"))
            })?;
            self.kept[oldest].tokens.clear();
        }
        Ok(())
    }

    /// Begins a conversation in place of the oldest, with what it has in common with another.
    fn begin_with(&mut self, longest: usize, common: usize) -> Result<(), Fault> {
        self.forget_from(0)?;
        if common == 0 || longest == self.current {
            return Ok(());
        }
        let end = u32::try_from(common).ok();
        let (from, to) = (number_i32(longest), number_i32(self.current));
        let copied = self.context.copy_kv_cache_seq(from, to, Some(0), end);
        copied.map_err(|e| Fault::ProtocolError(format!("a prefix cannot be shared: {e}")))?;
        let shared = self.kept[longest].tokens[..common].to_vec();
        self.kept[self.current].tokens = shared;
        Ok(())
    }
}

impl LlamaDecoder<'_> {
    /// Reads all but the last token of some continuations in one step, each on a branch of its own,
    /// and adds what the model expected.
    fn branches(
        &mut self,
        some: &[usize],
        all: &[Vec<u32>],
        sums: &mut [f32],
    ) -> Result<(), Fault> {
        let broken = |e: &dyn std::fmt::Display| {
            Fault::ProtocolError(format!("llama.cpp could not score labels: {e}"))
        };
        self.make_room(some.iter().map(|&n| all[n].len()).sum())?;
        self.batch.clear();
        let mut rows = Vec::new();
        let from = number_i32(self.current);
        for (branch, &n) in (number_i32(KEPT as usize)..).zip(some) {
            self.context.copy_kv_cache_seq(from, branch, None, None).map_err(|e| broken(&e))?;
            for (pair, at) in all[n].windows(2).zip(self.cached()..) {
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

    fn reuse(&mut self, prompt: &[u32]) -> Result<usize, Fault> {
        if prompt.is_empty() {
            self.forget_all();
            return Ok(0);
        }
        self.requests += 1;
        let all = || self.kept.iter().map(|kept| common(&kept.tokens, prompt)).enumerate();
        let Some((longest, most)) = all().max_by_key(|(_, common)| *common) else { return Ok(0) };
        // all conversations begin with the template's words: that alone is no reason to throw
        // another one's away
        if most > 0 && 2 * most >= self.kept[longest].tokens.len() {
            self.current = longest;
            self.forget_from(most)?;
        } else {
            let oldest = (0..self.kept.len()).min_by_key(|at| self.kept[*at].used);
            self.current = oldest.unwrap_or(0);
            self.begin_with(longest, most)?;
        }
        self.kept[self.current].used = self.requests;
        Ok(self.cached())
    }

    fn read(&mut self, tokens: &[u32]) -> Result<(), Fault> {
        self.make_room(tokens.len())?;
        self.batch.clear();
        let first = self.cached();
        let sequence = number_i32(self.current);
        for (n, &read) in tokens.iter().enumerate() {
            let at = i32::try_from(first + n).unwrap_or(i32::MAX);
            let last = n + 1 == tokens.len();
            self.batch
                .add(token(read), at, &[sequence], last)
                .map_err(|e| Fault::ProtocolError(format!("batch too large: {e}")))?;
        }
        if let Err(error) = self.context.decode(&mut self.batch) {
            // an aborted step may have left a part of itself
            self.forget_from(first)?;
            return Err(Fault::ProtocolError(format!("llama.cpp decode failed: {error}")));
        }
        self.kept[self.current].tokens.extend_from_slice(tokens);
        let row = self.batch.n_tokens() - 1;
        self.logits.clear();
        self.logits.extend_from_slice(self.context.get_logits_ith(row));
        Ok(())
    }

    fn forget(&mut self, last: usize) -> Result<(), Fault> {
        self.forget_from(self.cached().saturating_sub(last))
    }

    fn continuations(&mut self, all: &[Vec<u32>]) -> Result<Vec<f32>, Fault> {
        let first = log_probabilities(&self.logits);
        let mut sums: Vec<f32> = all.iter().map(|tokens| first[tokens[0] as usize]).collect();
        // what consists of one token is known already
        let longer: Vec<usize> = (0..all.len()).filter(|&n| all[n].len() > 1).collect();
        let mut left = longer.as_slice();
        // bounded: each turn takes at least one, since no label has more tokens than a step
        while !left.is_empty() {
            let (some, others) = left.split_at(fitting(left.iter().map(|&n| all[n].len())));
            left = others;
            let read = self.branches(some, all, &mut sums);
            for branch in KEPT..SEQUENCES {
                let cleared = self.context.clear_kv_cache_seq(Some(branch), None, None);
                cleared.map_err(|e| {
                    Fault::ProtocolError(format!("a branch cannot be removed: {e}"))
                })?;
            }
            read?;
        }
        Ok(sums)
    }

    fn kept(&self) -> u32 {
        KEPT
    }

    fn step(&self) -> usize {
        BATCH_TOKENS as usize
    }

    fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    fn is_end(&self, ended: u32) -> bool {
        self.model.vocab().is_eog(token(ended))
    }

    fn piece(&self, written: u32) -> Vec<u8> {
        self.model.vocab().token_to_piece(token(written), false, None)
    }

    fn trie(&self) -> TokTrie {
        let vocab = self.model.vocab();
        let all = || (0..vocab.n_tokens()).map(LlamaToken);
        let usual = if vocab.eot().0 >= 0 { vocab.eot() } else { vocab.eos() };
        let others = all().filter(|&token| vocab.is_eog(token) && token != usual);
        let ends: Vec<u32> = std::iter::once(usual).chain(others).map(id).collect();
        let words = all().map(|token| {
            let text = vocab.token_to_piece(token, false, None);
            if text.is_empty() {
                VocabToken::Control(vocab.token_to_piece(token, true, None))
            } else {
                VocabToken::Text(text)
            }
        });
        trie(words, &ends)
    }

    fn begin(&mut self, stop: &Arc<AtomicBool>) {
        self.end();
        self.stop.0.store(Arc::as_ptr(stop).cast_mut(), Ordering::Release);
        self.raised = Some(Arc::clone(stop));
    }

    fn end(&mut self) {
        self.stop.0.store(std::ptr::null_mut(), Ordering::Release);
        self.raised = None;
    }
}

/// The number of a sequence.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(0)
}

fn number_i32(at: usize) -> i32 {
    i32::try_from(at).unwrap_or(0)
}

/// How many of the first of these lengths fit into one step together; at least one.
fn fitting(lengths: impl Iterator<Item = usize>) -> usize {
    let mut read = 0;
    let fits = |length: &usize| {
        // the last token of each is not read
        read += length - 1;
        read <= BATCH_TOKENS as usize
    };
    lengths.take(BRANCHES as usize).take_while(fits).count().max(1)
}

fn token(id: u32) -> LlamaToken {
    LlamaToken(i32::try_from(id).unwrap_or(i32::MAX))
}

fn id(token: LlamaToken) -> u32 {
    u32::try_from(token.0).unwrap_or(0)
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
