//! [`Decoder`] on ONNX Runtime: one session, and the KV cache of a few conversations. If the graph
//! supports it, past and present share their buffers; otherwise each batch returns new ones, which
//! copies the KV cache for each token.

use std::sync::Arc;

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session, SessionInputValue};
use ort::value::{Shape, Tensor, TensorValueType};
use toktrie::TokTrie;

use super::folder::Folder;
use super::vocabulary::Vocabulary;
use crate::engines::worker::{Decoder, PrefixScope, StepPart};
use crate::model::generate::Fault;
use crate::request::job::Message;
use crate::request::refusal::Refusal;

/// Tokens of one batch: bounds the time until a stop, and the peak of memory.
const BATCH_TOKENS: usize = 256;

/// One conversation in the prefix cache.
struct Prefix {
    /// Tokens whose keys and values are in the buffers.
    tokens: Vec<u32>,
    /// Whose prompt it is; see [`PrefixScope`].
    group: Arc<str>,
    /// Keys and values of each layer: of the length of the context if they are shared, else of the
    /// tokens.
    buffers: Vec<[Tensor<f32>; 2]>,
    /// Number of the request that used it last.
    used: u64,
    /// A prompt runs in it.
    in_use: bool,
}

impl Prefix {
    /// Keeps the first `kept` tokens. Later positions of shared buffers are overwritten by the next
    /// batch.
    fn truncate(&mut self, kept: usize, shared: bool) -> ort::Result<()> {
        if kept >= self.tokens.len() {
            return Ok(());
        }
        self.tokens.truncate(kept);
        if !shared {
            for buffer in self.buffers.iter_mut().flatten() {
                *buffer = first_tokens(buffer, kept)?;
            }
        }
        Ok(())
    }
}

/// The keys or values of the first tokens; shape: batch, heads, tokens, numbers.
fn first_tokens(buffer: &Tensor<f32>, kept: usize) -> ort::Result<Tensor<f32>> {
    let (shape, numbers) = buffer.try_extract_tensor::<f32>()?;
    let size = |n: usize| shape.get(n).and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
    let (heads, tokens, head) = (size(1), size(2), size(3));
    let rows = numbers.chunks((tokens * head).max(1)).take(heads);
    let kept_numbers: Vec<f32> =
        rows.flat_map(|row| row.iter().take(kept * head).copied()).collect();
    let mut cut = Tensor::<f32>::new(&Allocator::default(), [1, heads, kept, head])?;
    cut.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(&kept_numbers);
    Ok(cut)
}

pub(crate) struct Onnx {
    session: Session,
    binding: IoBinding,
    folder: Folder,
    vocabulary: Vocabulary,
    prefixes: Vec<Prefix>,
    /// Index of the prefix of the last batch; its buffers are bound to the session.
    current: usize,
    requests: u64,
    capacity: usize,
    positions: bool,
    /// Tokens of the last batch.
    rows: usize,
    /// Of each part of the last step.
    logits: Vec<Vec<f32>>,
}

impl Onnx {
    pub(super) fn new(
        session: Session,
        folder: Folder,
        vocabulary: Vocabulary,
        capacity: usize,
        prefixes: u32,
    ) -> Result<Onnx, Fault> {
        let positions = session.inputs().iter().any(|i| i.name() == folder.names.position_ids);
        let mut made = Vec::new();
        for _ in 0..prefixes {
            let length = if folder.shared { capacity } else { 0 };
            let buffers = (0..folder.layers).map(|_| buffers(&session, &folder, length));
            let buffers = buffers.collect::<ort::Result<_>>().map_err(|e| {
                Fault::unavailable(format!("cannot allocate a context of {capacity} tokens: {e}"))
            })?;
            made.push(Prefix {
                tokens: Vec::new(),
                group: Arc::default(),
                buffers,
                used: 0,
                in_use: false,
            });
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
            rows: 0,
            logits: Vec::new(),
        };
        onnx.bind(0).map_err(broken)?;
        Ok(onnx)
    }

    /// Binds the buffers of one prefix to the session.
    fn bind(&mut self, prefix: usize) -> ort::Result<()> {
        self.current = prefix;
        if !self.folder.shared {
            return Ok(());
        }
        let names = &self.folder.names;
        for (layer, pair) in self.prefixes[prefix].buffers.iter_mut().enumerate() {
            let layer = layer.to_string();
            for (part, buffer) in pair.iter_mut().enumerate() {
                self.binding
                    .bind_output(names.present[part].replace("%d", &layer), &mut *buffer)?;
                self.binding.bind_input(names.past[part].replace("%d", &layer), &*buffer)?;
            }
        }
        self.bind_logits()
    }

    /// Lets the runtime allocate a new buffer for the logits. The runtime reuses it for the next batch,
    /// which fits only a batch of as many tokens if the graph returns the logits of all of them.
    fn bind_logits(&mut self) -> ort::Result<()> {
        let memory = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        self.binding.bind_output_to_device(self.folder.names.logits.clone(), &memory)
    }

    /// Index of the prefix that this prompt continues, else of the least recently used one, of those that are
    /// not in use.
    fn pick_prefix(&self, prompt: &[u32], scope: &PrefixScope) -> Option<usize> {
        let continued = |prefix: &Prefix| {
            let kept = scope.common(&prefix.tokens, &prefix.group, prompt);
            // all conversations start with the template's text: that alone must not evict another one
            (2 * kept >= prefix.tokens.len() && kept > 0).then_some(kept)
        };
        let all = || self.prefixes.iter().enumerate().filter(|(_, prefix)| !prefix.in_use);
        let longest = all().filter_map(|(n, prefix)| Some((continued(prefix)?, n))).max();
        let oldest = || all().min_by_key(|(_, prefix)| prefix.used).map(|(n, _)| n);
        longest.map(|(_, n)| n).or_else(oldest)
    }

    /// Evaluates a batch of the current prefix; its logits are those of this row.
    fn eval_batch(&mut self, tokens: &[u32], row: usize) -> ort::Result<()> {
        let names = &self.folder.names;
        let past = self.prefixes[self.current].tokens.len();
        let total = past + tokens.len();
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let mut inputs = vec![
            (names.input_ids.clone(), Tensor::from_array(([1, tokens.len()], ids))?),
            (names.attention_mask.clone(), Tensor::from_array(([1, total], vec![1_i64; total]))?),
        ];
        if self.positions {
            let positions: Vec<i64> = (past..total).filter_map(|n| i64::try_from(n).ok()).collect();
            let positions = Tensor::from_array(([1, tokens.len()], positions))?;
            inputs.push((names.position_ids.clone(), positions));
        }
        if self.folder.shared && tokens.len() != self.rows {
            self.rows = tokens.len();
            self.bind_logits()?;
        }
        if self.folder.shared {
            self.run_shared(&inputs, row)
        } else {
            self.run_growing(&inputs, row)
        }
    }

    fn run_shared(&mut self, inputs: &[(String, Tensor<i64>)], row: usize) -> ort::Result<()> {
        for (name, value) in inputs {
            self.binding.bind_input(name.clone(), value)?;
        }
        let known = self.vocabulary.size() as usize;
        let outputs = self.session.run_binding(&self.binding)?;
        let logits = outputs.get(&self.folder.names.logits);
        let logits = logits.ok_or_else(|| ort::Error::new("no logits"))?;
        last_row(logits.try_extract_tensor::<f32>()?, known, &mut self.logits[row]);
        Ok(())
    }

    fn run_growing(&mut self, inputs: &[(String, Tensor<i64>)], row: usize) -> ort::Result<()> {
        let names = &self.folder.names;
        let prefix = &mut self.prefixes[self.current];
        let mut all: Vec<(String, SessionInputValue<'_>)> =
            inputs.iter().map(|(name, value)| (name.clone(), value.into())).collect();
        for (layer, pair) in prefix.buffers.iter().enumerate() {
            for (name, buffer) in names.past.iter().zip(pair) {
                all.push((name.replace("%d", &layer.to_string()), buffer.into()));
            }
        }
        let mut outputs = self.session.run(all)?;
        let mut taken = |name: &str| {
            let value = outputs.remove(name);
            value.ok_or_else(|| ort::Error::new(format!("the graph has no output {name}")))
        };
        let known = self.vocabulary.size() as usize;
        let logits = taken(&names.logits)?;
        last_row(logits.try_extract_tensor::<f32>()?, known, &mut self.logits[row]);
        let mut grown = Vec::with_capacity(prefix.buffers.len());
        for layer in 0..prefix.buffers.len() {
            let mut part = |n: usize| {
                let value = taken(&names.present[n].replace("%d", &layer.to_string()))?;
                value.downcast::<TensorValueType<f32>>()
            };
            grown.push([part(0)?, part(1)?]);
        }
        prefix.buffers = grown;
        Ok(())
    }
}

/// Copies the logits of the last token: a graph may return those of all tokens, and for a larger
/// vocabulary than the tokenizer's.
fn last_row((shape, numbers): (&Shape, &[f32]), known: usize, into: &mut Vec<f32>) {
    let width = shape.last().and_then(|&n| usize::try_from(n).ok()).unwrap_or(0);
    let last = numbers.len().saturating_sub(width);
    into.clear();
    into.extend_from_slice(&numbers[last..last + known.min(width)]);
}

fn buffers(session: &Session, folder: &Folder, capacity: usize) -> ort::Result<[Tensor<f32>; 2]> {
    let shape = [1, folder.kv_heads, capacity, folder.head];
    let make = || Tensor::<f32>::new(session.allocator(), shape);
    Ok([make()?, make()?])
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn broken(error: ort::Error) -> Fault {
    Fault::ProtocolError(format!("ONNX Runtime failed: {error}"))
}

impl Onnx {
    fn eval_part(&mut self, part: &StepPart<'_>, at: usize) -> Result<(), Fault> {
        // ONNX Runtime does not check the mask and the ids: an invalid one may end the process
        let before = self.prefixes[part.sequence].tokens.len();
        let wrong = part.tokens.iter().find(|&&token| token >= self.vocabulary.size());
        if part.tokens.is_empty() || before + part.tokens.len() > self.capacity || wrong.is_some() {
            let n = part.tokens.len();
            return Err(Fault::ProtocolError(format!(
                "{n} tokens after {before} exceed the context"
            )));
        }
        if part.sequence != self.current {
            self.bind(part.sequence).map_err(broken)?;
        }
        self.eval_batch(part.tokens, at).map_err(broken)?;
        self.prefixes[part.sequence].tokens.extend_from_slice(part.tokens);
        Ok(())
    }
}

impl Decoder for Onnx {
    fn tokens(&mut self, messages: &[Message]) -> Result<Vec<u32>, Refusal> {
        self.vocabulary.conversation(self.folder.template.as_ref(), messages)
    }

    fn encode(&mut self, text: &str, begins: bool) -> Result<Vec<u32>, Refusal> {
        let tokens = self.vocabulary.encode(text, false)?;
        Ok(if begins { self.vocabulary.begin(tokens) } else { tokens })
    }

    fn sequences(&self) -> usize {
        self.prefixes.len()
    }

    fn free_tokens(&self) -> usize {
        // each has buffers of its own
        usize::MAX
    }

    fn reuse(&mut self, prompt: &[u32], scope: &PrefixScope) -> Result<(usize, usize), Fault> {
        self.requests += 1;
        let none = || Fault::ProtocolError("all sequences are in use".to_owned());
        let best = self.pick_prefix(prompt, scope).ok_or_else(none)?;
        let prefix = &mut self.prefixes[best];
        let kept = scope.common(&prefix.tokens, &prefix.group, prompt);
        prefix.truncate(kept, self.folder.shared).map_err(broken)?;
        prefix.used = self.requests;
        prefix.group = Arc::clone(&scope.group);
        prefix.in_use = true;
        Ok((best, kept))
    }

    fn release(&mut self, sequence: usize) {
        self.requests += 1;
        self.prefixes[sequence].used = self.requests;
        self.prefixes[sequence].in_use = false;
    }

    fn clear(&mut self) {
        for prefix in &mut self.prefixes {
            prefix.in_use = false;
            // of no tokens, which can't fail
            let _ = prefix.truncate(0, self.folder.shared);
        }
    }

    fn eval(&mut self, parts: &[StepPart<'_>]) -> Result<(), Fault> {
        self.logits.resize_with(parts.len().max(1), Vec::new);
        for (at, part) in parts.iter().enumerate() {
            let evaluated = self.eval_part(part, at);
            if evaluated.is_err() {
                for done in &parts[..at] {
                    self.truncate(done.sequence, done.tokens.len())?;
                }
            }
            evaluated?;
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: usize, last: usize) -> Result<(), Fault> {
        let shared = self.folder.shared;
        let prefix = &mut self.prefixes[sequence];
        prefix.truncate(prefix.tokens.len().saturating_sub(last), shared).map_err(broken)
    }

    fn batch_tokens(&self) -> usize {
        BATCH_TOKENS
    }

    fn logits(&mut self, part: usize) -> &mut [f32] {
        &mut self.logits[part]
    }

    fn is_end(&self, token: u32) -> bool {
        self.vocabulary.is_end(token)
    }

    fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.vocabulary.token_bytes(token)
    }

    fn trie(&self) -> TokTrie {
        self.vocabulary.trie()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::engines::onnx::{OnnxOptions, load};
    use crate::sandbox::memory::EngineBounds;

    /// The model that `scripts/test` converts, with a context of 16 tokens.
    fn small() -> Onnx {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = here.join("models/smollm2-135m-onnx-int8");
        assert!(path.is_dir(), "{} is missing: run scripts/test", path.display());
        let options = OnnxOptions {
            context_tokens: 16,
            threads: 1,
            prefixes: 2,
            runtime: Some(here.join(".tools/onnxruntime")),
            ..OnnxOptions::of(path)
        };
        load::load(&options, &EngineBounds::default()).unwrap().0
    }

    fn eval(model: &mut Onnx, sequence: usize, tokens: &[u32]) -> Result<(), Fault> {
        model.eval(&[StepPart { sequence, tokens }])
    }

    fn apart(one: &[f32], other: &[f32]) -> f32 {
        one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// Tokens that would end the process, or read outside of a buffer, do not reach the runtime, and
    /// the next batch is evaluated correctly.
    #[test]
    fn invalid_ids_and_lengths_are_not_given_to_the_runtime() {
        let mut model = small();
        let size = model.vocabulary.size();
        let (at, _) = model.reuse(&[], &PrefixScope::default()).unwrap();
        eval(&mut model, at, &[1, 2]).unwrap();
        eval(&mut model, at, &[3]).unwrap();
        let expected = model.logits(0).to_vec();
        for wrong in [&[size][..], &[1, u32::MAX], &[], &[1; 14], &[1; 100]] {
            let refused = matches!(eval(&mut model, at, wrong), Err(Fault::ProtocolError(_)));
            assert!(refused, "{} tokens", wrong.len());
        }
        eval(&mut model, at, &[4; 13]).unwrap();
        let refused = matches!(eval(&mut model, at, &[4]), Err(Fault::ProtocolError(_)));
        assert!(refused, "beyond the context");
        model.truncate(at, 14).unwrap();
        eval(&mut model, at, &[3]).unwrap();
        assert!(apart(model.logits(0), &expected) < 1e-3, "the KV cache was changed");
    }

    #[test]
    fn sequences_of_one_step_do_not_change_each_other() {
        let mut model = small();
        let (one, _) = model.reuse(&[], &PrefixScope::default()).unwrap();
        eval(&mut model, one, &[1, 2]).unwrap();
        eval(&mut model, one, &[3]).unwrap();
        let expected = model.logits(0).to_vec();
        model.clear();
        let (one, _) = model.reuse(&[], &PrefixScope::default()).unwrap();
        let (two, _) = model.reuse(&[], &PrefixScope::default()).unwrap();
        assert_ne!(one, two);
        let parts = [
            StepPart { sequence: two, tokens: &[9, 9, 9] },
            StepPart { sequence: one, tokens: &[1, 2] },
        ];
        model.eval(&parts).unwrap();
        let parts =
            [StepPart { sequence: two, tokens: &[8] }, StepPart { sequence: one, tokens: &[3] }];
        model.eval(&parts).unwrap();
        assert!(apart(model.logits(1), &expected) < 1e-3);
        assert!(apart(model.logits(0), &expected) > 1e-1);
        // a step that fails leaves all sequences as they were
        let parts =
            [StepPart { sequence: one, tokens: &[4] }, StepPart { sequence: two, tokens: &[] }];
        model.eval(&parts).unwrap_err();
        model.truncate(one, 1).unwrap();
        eval(&mut model, one, &[3]).unwrap();
        assert!(apart(model.logits(0), &expected) < 1e-3);
    }

    #[test]
    fn continuations_are_scored_and_the_kv_cache_is_unchanged() {
        let mut model = small();
        let (at, _) = model.reuse(&[], &PrefixScope::default()).unwrap();
        eval(&mut model, at, &[1, 2]).unwrap();
        eval(&mut model, at, &[3]).unwrap();
        let all = vec![vec![7], vec![7, 8, 9], vec![11, 12]];
        let scores = model.score_continuations(at, &all).unwrap();
        assert!(scores[1] < scores[0] && scores.iter().all(|s| s.is_finite() && *s < 0.0));
        model.truncate(at, 1).unwrap();
        eval(&mut model, at, &[3]).unwrap();
        let again = model.score_continuations(at, &all).unwrap();
        for (a, b) in scores.iter().zip(&again) {
            assert!((a - b).abs() < 1e-3, "{scores:?} {again:?}");
        }
    }
}
