//! Contents of the KV cache: the conversations of the prompts that run and of earlier ones, and *prefixes*, the
//! beginnings that several prompts have in common. Sequences that share a beginning share its cells.

use std::sync::Arc;

use super::kv_cells::KvCells;
use super::prefix_folder::{PrefixFolder, SavedPrefix};
use crate::engines::worker::{PrefixScope, SLOTS};
use crate::limits::engine::{PREFIX_SAVE_USES, PREFIX_TOKENS_MIN, PREFIXES_MAX};
use crate::model::generate::Fault;

/// Conversations in the KV cache: those of the prompts that run, and as many earlier ones.
const CONVERSATIONS: usize = 2 * SLOTS as usize;
/// Sequences of conversations and prefixes, in this order; the index is the sequence id.
pub(super) const CACHED: u32 = 2 * SLOTS + PREFIXES_MAX;
/// See [`CACHED`].
const ALL: usize = CACHED as usize;

/// The sequences of a KV cache, as the library offers them.
pub(super) trait Sequences {
    /// Lets an empty sequence begin with the first tokens of another one; they share the cells.
    ///
    /// # Errors
    /// If the library fails.
    fn share(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), Fault>;

    /// Removes what follows the first tokens; false if the library can't, and has removed nothing.
    fn truncate(&mut self, sequence: usize, kept: usize) -> bool;

    /// Empties a sequence.
    ///
    /// # Errors
    /// If the library fails.
    fn empty(&mut self, sequence: usize) -> Result<(), Fault>;

    /// Size of the keys and values of a sequence, in bytes.
    fn state_bytes(&self, sequence: usize) -> usize;

    /// The keys and values of a sequence; none if the library fails.
    fn state(&self, sequence: usize) -> Option<Vec<u8>>;

    /// Gives an empty sequence a state that [`Sequences::state`] has returned for a sequence of so many tokens;
    /// false if the library refuses it.
    fn restore(&mut self, sequence: usize, state: &[u8]) -> bool;
}

/// A sequence of the KV cache.
#[derive(Debug, Default)]
struct Sequence {
    tokens: Vec<u32>,
    /// The cell of each token.
    cells: Vec<usize>,
    /// Whose tokens they are; see [`PrefixScope`].
    group: Arc<str>,
    /// Number of the request that used it last.
    used: u64,
    /// A prompt runs in it.
    in_use: bool,
    /// Prompts that have begun with it, of a prefix.
    prompts: u32,
    /// The prefix is on disk, or can't be put there.
    is_saved: bool,
}

/// The contents of a KV cache.
#[derive(Debug)]
pub(super) struct KvCache {
    all: Vec<Sequence>,
    cells: KvCells,
    requests: u64,
    /// Most tokens of all sequences together.
    length: usize,
    /// Whether a sequence can be shared and truncated at any token. The state of a recurrent model is that of its
    /// last token alone.
    at_any_token: bool,
    /// Where prefixes are saved.
    folder: Option<PrefixFolder>,
}

impl KvCache {
    /// An empty cache for so many tokens.
    pub(super) fn new(length: usize, at_any_token: bool, folder: Option<PrefixFolder>) -> KvCache {
        KvCache {
            all: (0..ALL).map(|_| Sequence::default()).collect(),
            cells: KvCells::default(),
            requests: 0,
            length,
            at_any_token,
            folder,
        }
    }

    /// Tokens of a sequence.
    pub(super) fn len(&self, sequence: usize) -> usize {
        self.all[sequence].tokens.len()
    }

    /// The tokens of a sequence.
    #[cfg(test)]
    pub(super) fn tokens(&self, sequence: usize) -> &[u32] {
        &self.all[sequence].tokens
    }

    /// Tokens of all sequences, those that several share counted once.
    #[cfg(test)]
    pub(super) fn used_tokens(&self) -> usize {
        self.cells.used()
    }

    /// Counts tokens that were evaluated after those of a sequence.
    pub(super) fn append(&mut self, sequence: usize, tokens: &[u32]) {
        let sequence = &mut self.all[sequence];
        sequence.tokens.extend_from_slice(tokens);
        sequence.cells.extend(tokens.iter().map(|_| self.cells.take()));
    }

    /// Tokens for which there is room beside the sequences in use.
    pub(super) fn free_tokens(&self) -> usize {
        let used = self.all.iter().filter(|one| one.in_use).map(|one| one.cells.as_slice());
        self.length.saturating_sub(self.cells.used_by(used))
    }

    /// Forgets everything, after the library has.
    pub(super) fn clear(&mut self) {
        for sequence in &mut self.all {
            *sequence = Sequence::default();
        }
        self.cells = KvCells::default();
    }

    /// Takes a conversation for a prompt, with the longest beginning of it that is there; see
    /// [`Decoder::reuse`](crate::engines::worker::Decoder::reuse).
    ///
    /// # Errors
    /// If all conversations are in use, or the library fails.
    pub(super) fn reuse(
        &mut self,
        library: &mut impl Sequences,
        prompt: &[u32],
        scope: &PrefixScope,
    ) -> Result<(usize, usize), Fault> {
        self.requests += 1;
        let (_, there) = self.longest(prompt, scope);
        self.load(library, prompt, scope, there);
        let (longest, most) = self.longest(prompt, scope);
        let idle = (0..CONVERSATIONS).filter(|at| !self.all[*at].in_use);
        let oldest = idle.min_by_key(|at| self.all[*at].used);
        // all conversations start with the template's text: that alone must not evict another one
        let continues = most > 0
            && longest < CONVERSATIONS
            && 2 * most >= self.len(longest)
            && !self.all[longest].in_use;
        let chosen = if continues { Some(longest) } else { oldest };
        let none = || Fault::ProtocolError("all sequences are in use".to_owned());
        let chosen = chosen.ok_or_else(none)?;
        if most + 1 < prompt.len() {
            self.note_prefix(library, longest, most, scope)?;
        }
        self.start_with(library, chosen, longest, most)?;
        let entry = &mut self.all[chosen];
        entry.used = self.requests;
        entry.group = Arc::clone(&scope.group);
        entry.in_use = true;
        Ok((chosen, entry.tokens.len()))
    }

    /// Ends the use of a conversation, and saves a prefix that is often used.
    pub(super) fn release(&mut self, library: &impl Sequences, conversation: usize) {
        self.requests += 1;
        self.all[conversation].used = self.requests;
        self.all[conversation].in_use = false;
        let Some(folder) = &mut self.folder else { return };
        let mut prefixes = (CONVERSATIONS..).zip(&mut self.all[CONVERSATIONS..]);
        let is_due = |one: &Sequence| !one.is_saved && one.prompts >= PREFIX_SAVE_USES;
        let Some((at, due)) = prefixes.find(|(_, one)| is_due(one)) else { return };
        if !PrefixFolder::takes(library.state_bytes(at)) {
            due.is_saved = true;
            return;
        }
        let state = library.state(at);
        // a state that the library can't give is not asked for again
        due.is_saved = state.is_none_or(|state| folder.save(&due.tokens, &due.group, state));
    }

    /// The sequence with the longest beginning of a prompt that the scope may share, and its tokens.
    fn longest(&self, prompt: &[u32], scope: &PrefixScope) -> (usize, usize) {
        let common = |one: &Sequence| {
            let common = scope.common(&one.tokens, &one.group, prompt);
            let is_complete = common == one.tokens.len();
            if is_complete || self.at_any_token { common } else { 0 }
        };
        let all = self.all.iter().map(common).enumerate();
        all.max_by_key(|(_, common)| *common).unwrap_or_default()
    }

    /// Counts a prompt of a prefix, or notes a new one: the beginning that a prompt has in common with a
    /// conversation, where both go on differently.
    fn note_prefix(
        &mut self,
        library: &mut impl Sequences,
        from: usize,
        common: usize,
        scope: &PrefixScope,
    ) -> Result<(), Fault> {
        let beginning = &self.all[from].tokens[..common];
        let is_near = |one: &Sequence| {
            let tokens = one.tokens.len();
            let is_visible = one.group == scope.group || tokens <= scope.open;
            is_visible && tokens + PREFIX_TOKENS_MIN > common && beginning.starts_with(&one.tokens)
        };
        let prefixes = CONVERSATIONS..ALL;
        let known = |at: &usize| !self.all[*at].tokens.is_empty() && is_near(&self.all[*at]);
        if let Some(at) = prefixes.clone().find(known) {
            let prefix = &mut self.all[at];
            prefix.used = self.requests;
            prefix.prompts += 1;
            return Ok(());
        }
        if common < PREFIX_TOKENS_MIN || common == self.len(from) {
            return Ok(());
        }
        let others = prefixes.filter(|at| *at != from);
        let Some(new) = others.min_by_key(|at| self.all[*at].used) else { return Ok(()) };
        self.start_with(library, new, from, common)?;
        let prefix = &mut self.all[new];
        prefix.group = Arc::clone(&scope.group);
        prefix.used = self.requests;
        prefix.prompts = 0;
        let saved = self.folder.as_ref();
        prefix.is_saved = saved.is_some_and(|saved| saved.has(&prefix.tokens, &prefix.group));
        Ok(())
    }

    /// Loads a saved prefix that has more tokens in common with a prompt than the cached sequences have. The prompt may
    /// have only the beginning of the prefix.
    fn load(
        &mut self,
        library: &mut impl Sequences,
        prompt: &[u32],
        scope: &PrefixScope,
        there: usize,
    ) -> Option<()> {
        let common = |saved: &SavedPrefix| scope.common(&saved.tokens, &saved.group, prompt);
        let saved = self.folder.as_ref()?.longest(common)?;
        let tokens = saved.tokens.len();
        let gains = common(&saved) >= there + PREFIX_TOKENS_MIN;
        if scope.group.is_empty() || !gains || tokens > self.free_tokens() {
            return None;
        }
        let state = self.folder.as_mut()?.load(&saved)?;
        self.evict_for(library, tokens).ok()?;
        let at = (CONVERSATIONS..ALL).min_by_key(|at| self.all[*at].used)?;
        self.forget(library, at).ok()?;
        if !library.restore(at, &state) {
            tracing::debug!("llama.cpp refuses a saved prefix");
            library.empty(at).ok()?;
            self.folder.as_mut()?.drop_saved(&saved);
            return None;
        }
        self.append(at, &saved.tokens);
        let prefix = &mut self.all[at];
        prefix.group = saved.group;
        prefix.is_saved = true;
        prefix.used = self.requests;
        Some(())
    }

    /// Starts a sequence with the first `common` tokens of another.
    fn start_with(
        &mut self,
        library: &mut impl Sequences,
        new: usize,
        other: usize,
        common: usize,
    ) -> Result<(), Fault> {
        if common == 0 {
            return self.forget(library, new);
        }
        if new == other {
            return self.truncate_at(library, new, common);
        }
        self.forget(library, new)?;
        library.share(other, new, common)?;
        let (tokens, cells) = {
            let other = &self.all[other];
            (other.tokens[..common].to_vec(), other.cells[..common].to_vec())
        };
        self.cells.share(&cells);
        self.all[new].tokens = tokens;
        self.all[new].cells = cells;
        Ok(())
    }

    /// Removes the tokens of a sequence from this position on.
    ///
    /// # Errors
    /// If the library can't; the sequence is then empty.
    pub(super) fn truncate_at(
        &mut self,
        library: &mut impl Sequences,
        sequence: usize,
        kept: usize,
    ) -> Result<(), Fault> {
        if self.len(sequence) <= kept && kept > 0 {
            return Ok(());
        }
        if kept > 0 && library.truncate(sequence, kept) {
            let entry = &mut self.all[sequence];
            entry.tokens.truncate(kept);
            self.cells.give_back(entry.cells.drain(kept..));
            return Ok(());
        }
        self.forget(library, sequence)?;
        if kept == 0 {
            return Ok(());
        }
        Err(Fault::ProtocolError("the key-value cache cannot be truncated".to_owned()))
    }

    /// Removes what a failed evaluation may have left behind the tokens of a sequence.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn repair(
        &mut self,
        library: &mut impl Sequences,
        sequence: usize,
    ) -> Result<(), Fault> {
        let kept = self.len(sequence);
        if kept > 0 && library.truncate(sequence, kept) {
            return Ok(());
        }
        self.forget(library, sequence)
    }

    /// Removes all tokens of a sequence; it stays in use.
    fn forget(&mut self, library: &mut impl Sequences, sequence: usize) -> Result<(), Fault> {
        library.empty(sequence)?;
        let entry = &mut self.all[sequence];
        self.cells.give_back(entry.cells.drain(..));
        entry.tokens.clear();
        (entry.prompts, entry.is_saved) = (0, false);
        Ok(())
    }

    /// Evicts the least recently used conversations that are not in use, and after them prefixes, until this many
    /// more tokens fit. What was evicted is read again when it is needed.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn evict_for(
        &mut self,
        library: &mut impl Sequences,
        tokens: usize,
    ) -> Result<(), Fault> {
        // bounded: each round empties one of a few
        while self.cells.used() + tokens > self.length {
            let may = |at: &usize| !self.all[*at].in_use && !self.all[*at].tokens.is_empty();
            let oldest = |mut all: std::ops::Range<usize>| {
                let all = all.by_ref().filter(may);
                all.min_by_key(|at| self.all[*at].used)
            };
            let oldest = oldest(0..CONVERSATIONS).or_else(|| oldest(CONVERSATIONS..ALL));
            let Some(oldest) = oldest else { return Ok(()) };
            self.forget(library, oldest)?;
        }
        Ok(())
    }
}
