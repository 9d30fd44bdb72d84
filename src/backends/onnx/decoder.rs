//! ONNX Runtime behind the port of the engine's thread: one session, key-value buffers that past
//! and present share.

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::Tensor;
use toktrie::TokTrie;

use super::folder::Folder;
use super::vocabulary::Vocabulary;
use crate::backends::engine::{Decoder, common};
use crate::generate::Fault;
use crate::prompt::{Message, Refusal};

/// Prompt tokens that are read in one step: room to stop in between, and a lower peak of memory.
const STEP_TOKENS: usize = 256;

/// The beginning of one conversation, kept ready.
struct Prefix {
    /// The tokens whose keys and values the buffers hold.
    tokens: Vec<u32>,
    /// Keys and values of each layer, for a whole context.
    buffers: Vec<[Tensor<f32>; 2]>,
    used: u64,
}

pub(super) struct Onnx {
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

    fn encode(&mut self, text: &str, begins: bool) -> Result<Vec<u32>, Refusal> {
        let tokens = self.vocabulary.encode(text, false)?;
        Ok(if begins { self.vocabulary.begin(tokens) } else { tokens })
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

    fn forget(&mut self, last: usize) -> Result<(), Fault> {
        // what lies in the buffers behind these is written over
        let tokens = &mut self.prefixes[self.current].tokens;
        tokens.truncate(tokens.len().saturating_sub(last));
        Ok(())
    }

    fn step(&self) -> usize {
        STEP_TOKENS
    }

    fn logits(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    fn is_end(&self, token: u32) -> bool {
        self.vocabulary.is_end(token)
    }

    fn piece(&self, token: u32) -> Vec<u8> {
        self.vocabulary.piece(token)
    }

    fn trie(&self) -> TokTrie {
        self.vocabulary.trie()
    }
}
