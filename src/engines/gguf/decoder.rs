//! [`Decoder`] on llama.cpp: one context whose KV cache holds a few conversations, and short-lived
//! branches of one of them while labels are scored.

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
use super::{GgufOptions, cpu_variant, template, threads};
use crate::clock::now;
use crate::engines::template::ChatTemplate;
use crate::engines::worker::constraint::{VocabToken, trie};
use crate::engines::worker::{
    Decoder, Engine, EngineWorker, PrefixScope, SLOTS, StepPart, Threads, log_probabilities,
    score_first_tokens, sha256_of, threads_or_all,
};
use crate::model::context::ModelContext;
use crate::model::generate::Fault;
use crate::request::job::Message;
use crate::request::refusal::Refusal;
use crate::sandbox::memory::EngineBounds;

/// Sequences of the KV cache: conversations and branches.
const SEQUENCES: u32 = CONVERSATIONS + BRANCHES;
/// Continuations that are scored in one batch.
const BRANCHES: u32 = 15;
/// Conversations in the KV cache: those of the prompts that run, and as many earlier ones.
const CONVERSATIONS: u32 = 2 * SLOTS;

/// A conversation in the KV cache.
#[derive(Debug, Default)]
struct CachedPrompt {
    tokens: Vec<u32>,
    /// Whose prompt it is; see [`PrefixScope`].
    group: Arc<str>,
    /// Number of the request that used it last.
    used: u64,
    /// A prompt runs in it.
    in_use: bool,
}

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
    model: &'m LlamaModel,
    context: LlamaContext<'m>,
    template: Option<ChatTemplate>,
    batch: LlamaBatch<'static>,
    /// Conversations in the KV cache; the index is the sequence id.
    cached: Vec<CachedPrompt>,
    requests: u64,
    /// Length of the context: most tokens of all conversations together.
    length: usize,
    /// Of each part of the last step.
    logits: Vec<Vec<f32>>,
    stop: &'m StopSignal,
    /// The flag that `stop` points to.
    raised: Option<Arc<AtomicBool>>,
    /// The threads of the options.
    threads: Threads,
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
        template.as_ref().map_or(Ok(()), ChatTemplate::probe).map_err(Fault::unavailable)?;
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
        // the file is hashed while the context is allocated, unless it was before
        let (context, digest) = std::thread::scope(|threads| {
            let hash =
                || loaded.digest.clone().or_else(|| loaded.file.reader().and_then(sha256_of).ok());
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
        let decoder = LlamaDecoder {
            model,
            context,
            template,
            batch: LlamaBatch::new(BATCH_TOKENS as usize, 1),
            cached: (0..CONVERSATIONS).map(|_| CachedPrompt::default()).collect(),
            requests: 0,
            length: length as usize,
            logits: Vec::new(),
            stop,
            raised: None,
            threads: Threads { one: options.decode_threads, many: options.threads },
        };
        Ok((decoder, facts))
    }

    /// Removes the tokens of a conversation from this position on.
    fn truncate_at(&mut self, conversation: usize, kept: usize) -> Result<(), Fault> {
        if self.cached[conversation].tokens.len() <= kept && kept > 0 {
            return Ok(());
        }
        let from = u32::try_from(kept).unwrap_or(u32::MAX);
        let sequence = Some(number(conversation));
        let cleared = self.context.clear_kv_cache_seq(sequence, Some(from), None);
        if cleared.is_ok_and(|cleared| cleared) {
            self.cached[conversation].tokens.truncate(kept);
            return Ok(());
        }
        // some models can't remove a part, but the whole
        self.forget(conversation)?;
        if kept == 0 {
            Ok(())
        } else {
            Err(Fault::ProtocolError("the key-value cache cannot be truncated".to_owned()))
        }
    }

    /// Removes all tokens of a conversation.
    fn forget(&mut self, conversation: usize) -> Result<(), Fault> {
        let cleared = self.context.clear_kv_cache_seq(Some(number(conversation)), None, None);
        cleared
            .map_err(|e| Fault::ProtocolError(format!("a sequence cannot be truncated: {e}")))?;
        self.cached[conversation].tokens.clear();
        Ok(())
    }

    /// Evicts the least recently used conversations that are not in use until this many more tokens fit. An
    /// evicted conversation is prefilled again when it continues.
    fn evict_for(&mut self, tokens: usize) -> Result<(), Fault> {
        let total = |all: &[CachedPrompt]| all.iter().map(|one| one.tokens.len()).sum::<usize>();
        // bounded: each round clears one of a few
        while total(&self.cached) + tokens > self.length {
            let idle = (0..self.cached.len()).filter(|at| !self.cached[*at].in_use);
            let full = idle.filter(|at| !self.cached[*at].tokens.is_empty());
            let Some(oldest) = full.min_by_key(|at| self.cached[*at].used) else { return Ok(()) };
            self.forget(oldest)?;
        }
        Ok(())
    }

    /// Starts a conversation with the first `common` tokens of another.
    fn start_with(&mut self, new: usize, other: usize, common: usize) -> Result<(), Fault> {
        if common == 0 {
            return self.forget(new);
        }
        if new == other {
            return self.truncate_at(new, common);
        }
        self.forget(new)?;
        let end = u32::try_from(common).ok();
        let (from, to) = (number_i32(other), number_i32(new));
        let copied = self.context.copy_kv_cache_seq(from, to, Some(0), end);
        copied.map_err(|e| Fault::ProtocolError(format!("a prefix cannot be shared: {e}")))?;
        let shared = self.cached[other].tokens[..common].to_vec();
        self.cached[new].tokens = shared;
        Ok(())
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
        self.evict_for(some.iter().map(|&n| all[n].len()).sum())?;
        self.batch.clear();
        let mut rows = Vec::new();
        let from = number_i32(sequence);
        for (branch, &n) in (number_i32(CONVERSATIONS as usize)..).zip(some) {
            self.context.copy_kv_cache_seq(from, branch, None, None).map_err(|e| broken(&e))?;
            for (pair, at) in all[n].windows(2).zip(self.cached[sequence].tokens.len()..) {
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
            let first = self.cached[part.sequence].tokens.len();
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
        let used = self.cached.iter().filter(|one| one.in_use);
        self.length.saturating_sub(used.map(|one| one.tokens.len()).sum())
    }

    fn reuse(&mut self, prompt: &[u32], scope: &PrefixScope) -> Result<(usize, usize), Fault> {
        self.requests += 1;
        let common = |one: &CachedPrompt| scope.common(&one.tokens, &one.group, prompt);
        let longest = (0..self.cached.len()).max_by_key(|at| common(&self.cached[*at]));
        let longest = longest.unwrap_or(0);
        let most = common(&self.cached[longest]);
        let idle = (0..self.cached.len()).filter(|at| !self.cached[*at].in_use);
        let oldest = idle.min_by_key(|at| self.cached[*at].used);
        // all conversations start with the template's text: that alone must not evict another one
        let continues = most > 0
            && 2 * most >= self.cached[longest].tokens.len()
            && !self.cached[longest].in_use;
        let chosen = if continues { Some(longest) } else { oldest };
        let none = || Fault::ProtocolError("all sequences are in use".to_owned());
        let chosen = chosen.ok_or_else(none)?;
        self.start_with(chosen, longest, most)?;
        let entry = &mut self.cached[chosen];
        entry.used = self.requests;
        entry.group = Arc::clone(&scope.group);
        entry.in_use = true;
        Ok((chosen, entry.tokens.len()))
    }

    fn release(&mut self, sequence: usize) {
        self.requests += 1;
        self.cached[sequence].used = self.requests;
        self.cached[sequence].in_use = false;
    }

    fn clear(&mut self) {
        self.context.clear_kv_cache();
        for cached in &mut self.cached {
            cached.tokens.clear();
            cached.in_use = false;
        }
    }

    fn eval(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault> {
        self.evict_for(parts.iter().map(|part| part.tokens.len()).sum())?;
        if let Err(fault) = self.eval_batch(parts) {
            // an aborted batch may have left a part in the KV cache
            for part in parts {
                let first = self.cached[part.sequence].tokens.len();
                let from = u32::try_from(first).ok();
                let sequence = Some(number(part.sequence));
                if !self.context.clear_kv_cache_seq(sequence, from, None).unwrap_or(false) {
                    self.forget(part.sequence)?;
                }
            }
            return Err(fault);
        }
        self.logits.resize_with(parts.len(), Vec::new);
        let mut row = 0;
        for (part, logits) in parts.iter().zip(&mut self.logits) {
            self.cached[part.sequence].tokens.extend_from_slice(part.tokens);
            row += number_i32(part.tokens.len());
            logits.clear();
            logits.extend_from_slice(self.context.get_logits_ith(row - 1));
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: usize, last: usize) -> Result<(), Fault> {
        self.truncate_at(sequence, self.cached[sequence].tokens.len().saturating_sub(last))
    }

    fn score_continuations(
        &mut self,
        sequence: usize,
        all: &[Vec<u32>],
    ) -> Result<Vec<f32>, Fault> {
        let mut sums = score_first_tokens(self.logits(0), all);
        // continuations of one token are scored already
        let longer: Vec<usize> = (0..all.len()).filter(|&n| all[n].len() > 1).collect();
        let mut left = longer.as_slice();
        // bounded: each round scores at least one
        while !left.is_empty() {
            let (some, others) = left.split_at(fitting(left.iter().map(|&n| all[n].len())));
            left = others;
            let scored = self.score_branches(sequence, some, all, &mut sums);
            for branch in CONVERSATIONS..SEQUENCES {
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

/// The id of a sequence.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(0)
}

fn number_i32(at: usize) -> i32 {
    i32::try_from(at).unwrap_or(0)
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
