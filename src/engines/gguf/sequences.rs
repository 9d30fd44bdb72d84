//! The sequences of llama.cpp's KV cache.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::session::LlamaStateSeqFlags;

use super::ids::number_i32;
use super::kv_cache::Sequences;
use crate::model::generate::Fault;

/// The sequences of a context.
pub(super) struct LlamaSequences<'c, 'm>(pub(super) &'c mut LlamaContext<'m>);

impl Sequences for LlamaSequences<'_, '_> {
    fn share(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), Fault> {
        let end = u32::try_from(tokens).ok();
        let copied = self.0.copy_kv_cache_seq(number_i32(from), number_i32(to), Some(0), end);
        copied.map_err(|e| Fault::ProtocolError(format!("a prefix cannot be shared: {e}")))
    }

    fn truncate(&mut self, sequence: usize, kept: usize) -> bool {
        let from = u32::try_from(kept).ok();
        self.0
            .clear_kv_cache_seq(Some(number_i32(sequence).cast_unsigned()), from, None)
            .unwrap_or(false)
    }

    fn empty(&mut self, sequence: usize) -> Result<(), Fault> {
        let cleared =
            self.0.clear_kv_cache_seq(Some(number_i32(sequence).cast_unsigned()), None, None);
        cleared
            .map(drop)
            .map_err(|e| Fault::ProtocolError(format!("a sequence cannot be emptied: {e}")))
    }

    fn state_bytes(&self, sequence: usize) -> usize {
        self.0.state_seq_get_size_ext(number_i32(sequence), LlamaStateSeqFlags::empty())
    }

    fn state(&self, sequence: usize) -> Option<Vec<u8>> {
        let flags = LlamaStateSeqFlags::empty();
        let mut state = vec![0; self.state_bytes(sequence)];
        // SAFETY: the buffer has the size that llama.cpp states for this sequence, which does not change meanwhile.
        #[expect(unsafe_code, reason = "the safe function's result cannot be written to a file")]
        let written = unsafe {
            self.0.state_seq_get_data_ext(state.as_mut_ptr(), number_i32(sequence), flags)
        };
        (written == state.len() && written > 0).then_some(state)
    }

    fn restore(&mut self, sequence: usize, state: &[u8]) -> bool {
        let flags = LlamaStateSeqFlags::empty();
        // SAFETY: the caller passes what `state` has returned, of the same model and engine: the digest of the file
        // was checked. llama.cpp compares the numbers of layers and the types and bounds of what it reads.
        #[expect(unsafe_code, reason = "the safe function takes nothing from a file")]
        unsafe {
            self.0.state_seq_set_data_ext(state, number_i32(sequence), flags)
        }
    }
}
