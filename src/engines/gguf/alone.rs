//! A context of its own for one deterministic answer.
//!
//! With flash attention, log-probabilities change by up to 0.5 with the split of a prompt into batches, with the place
//! of its tokens in the KV cache, and with the number of threads. Here all of that follows from the request and the
//! options alone.

use std::num::NonZeroU32;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;

use super::ids::{number_i32, token};
use super::threads;
use crate::engines::worker::Threads;
use crate::model::generate::Fault;

/// Tokens that the library computes at once: few, for the other answers wait meanwhile.
const STEP_TOKENS: u32 = 64;

/// A context with one sequence.
pub(super) struct AloneContext<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    /// Tokens in its KV cache.
    tokens: usize,
}

impl<'m> AloneContext<'m> {
    /// A context with room for so many tokens.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if there is no memory for it.
    pub(super) fn new(
        backend: &LlamaBackend,
        model: &'m LlamaModel,
        params: LlamaContextParams,
        room: usize,
        threads: Threads,
    ) -> Result<AloneContext<'m>, Fault> {
        let params = params
            .with_n_ctx(u32::try_from(room).ok().and_then(NonZeroU32::new))
            .with_n_batch(STEP_TOKENS)
            .with_n_ubatch(STEP_TOKENS)
            .with_n_threads(threads::number(threads.one))
            .with_n_threads_batch(threads::number(threads.many));
        let context = model.new_context(backend, params).map_err(|e| {
            Fault::unavailable(format!(
                "llama.cpp cannot allocate a deterministic context of {room} tokens: {e}"
            ))
        })?;
        let batch = LlamaBatch::new(STEP_TOKENS as usize, 1);
        Ok(AloneContext { context, batch, tokens: 0 })
    }

    /// Evaluates tokens after those that it has; `logits` are then those after the last one.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library fails.
    pub(super) fn eval(&mut self, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), Fault> {
        let mut last = 0;
        for part in tokens.chunks(STEP_TOKENS as usize) {
            self.batch.clear();
            for (n, &next) in part.iter().enumerate() {
                let (at, is_last) = (number_i32(self.tokens + n), n + 1 == part.len());
                self.batch
                    .add(token(next), at, &[0], is_last)
                    .map_err(|e| Fault::ProtocolError(format!("batch too large: {e}")))?;
            }
            let decoded = self.context.decode(&mut self.batch);
            decoded.map_err(|e| Fault::ProtocolError(format!("llama.cpp decode failed: {e}")))?;
            self.tokens += part.len();
            last = number_i32(part.len()) - 1;
        }
        logits.clear();
        logits.extend_from_slice(self.context.get_logits_ith(last));
        Ok(())
    }

    /// Removes its last tokens.
    ///
    /// # Errors
    /// [`Fault::ProtocolError`] if the library can't.
    pub(super) fn truncate(&mut self, last: usize) -> Result<(), Fault> {
        let kept = self.tokens.saturating_sub(last);
        let from = u32::try_from(kept).ok();
        if last == 0 || self.context.clear_kv_cache_seq(Some(0), from, None).unwrap_or(false) {
            self.tokens = kept;
            return Ok(());
        }
        Err(Fault::ProtocolError("the key-value cache cannot be truncated".to_owned()))
    }
}
