//! Tests of the KV cache's contents, with a library whose sequences are lists of tokens.

use std::collections::BTreeMap;
use std::path::Path;

use super::kv_cache::{CACHED, KvCache, Sequences};
use super::prefix_file::{PrefixHead, encode};
use super::prefix_folder::PrefixFolder;
use crate::engines::worker::{PrefixScope, SLOTS};
use crate::limits::engine::PREFIX_FILES_MAX;
use crate::model::generate::Fault;

/// The sequences that have tokens; the state of one is its list.
#[derive(Default)]
struct Lists {
    all: BTreeMap<usize, Vec<u32>>,
    is_recurrent: bool,
}

impl Sequences for Lists {
    fn share(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), Fault> {
        assert!(self.of(to).is_empty());
        let shared = self.of(from)[..tokens].to_vec();
        self.all.insert(to, shared);
        Ok(())
    }

    fn truncate(&mut self, sequence: usize, kept: usize) -> bool {
        if !self.is_recurrent {
            self.all.entry(sequence).or_default().truncate(kept);
        }
        !self.is_recurrent
    }

    fn empty(&mut self, sequence: usize) -> Result<(), Fault> {
        self.all.remove(&sequence);
        Ok(())
    }

    fn state_bytes(&self, sequence: usize) -> usize {
        4 * self.of(sequence).len()
    }

    fn state(&self, sequence: usize) -> Option<Vec<u8>> {
        Some(self.of(sequence).iter().flat_map(|token| token.to_le_bytes()).collect())
    }

    fn restore(&mut self, sequence: usize, state: &[u8]) -> bool {
        assert!(self.of(sequence).is_empty());
        let tokens = state.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().unwrap()));
        self.all.insert(sequence, tokens.collect());
        true
    }
}

impl Lists {
    fn of(&self, sequence: usize) -> &[u32] {
        self.all.get(&sequence).map_or(&[], Vec::as_slice)
    }

    /// Reads a prompt and writes an answer of two tokens; how many tokens were there.
    fn answer(&mut self, cache: &mut KvCache, prompt: &[u32], scope: &PrefixScope) -> usize {
        let (at, kept) = cache.reuse(self, prompt, scope).unwrap();
        assert_eq!(self.of(at), &prompt[..kept]);
        let new = [&prompt[kept..], &[7, 7]].concat();
        cache.evict_for(self, new.len()).unwrap();
        self.all.entry(at).or_default().extend(&new);
        cache.append(at, &new);
        for at in 0..CACHED as usize {
            assert_eq!(cache.tokens(at), self.of(at), "{at}");
        }
        assert!(cache.used_tokens() <= 4000, "{}", cache.used_tokens());
        cache.release(self, at);
        kept
    }
}

fn group(name: &str, open: usize) -> PrefixScope {
    PrefixScope { group: name.into(), open }
}

/// A prompt that begins with `shared` tokens of this kind.
fn prompt(kind: u32, shared: usize, n: u32) -> Vec<u32> {
    let end = (0..8).map(|at| 1_000_000 + n * 100 + at);
    (0..).map(|at| kind * 1000 + at).take(shared).chain(end).collect()
}

fn folder(path: &Path) -> PrefixFolder {
    PrefixFolder::open(path, "engine".to_owned()).unwrap()
}

/// A prefix of 100 tokens of this group, saved by the prompts of an engine that has ended.
fn save_one(disk: &Path, app: &PrefixScope) {
    let (mut lists, mut cache) = (Lists::default(), KvCache::new(2000, true, Some(folder(disk))));
    for n in 0..4 {
        lists.answer(&mut cache, &prompt(1, 100, n), app);
    }
    drop(cache);
    assert_eq!(files(disk), 1);
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn a_shared_beginning_takes_its_cells_once_and_outlives_conversations() {
    let (mut lists, mut cache) = (Lists::default(), KvCache::new(400, true, None));
    let app = group("app", 0);
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 0), &app), 0);
    for n in 1..30 {
        assert_eq!(lists.answer(&mut cache, &prompt(1, 100, n), &app), 100);
    }
    // each conversation has 10 tokens of its own
    assert_eq!(cache.used_tokens(), 100 + 10 * 2 * SLOTS as usize);
    // long prompts of others take the place of all conversations
    for n in 0..20 {
        lists.answer(&mut cache, &prompt(2 + n, 250, n), &group("other", 0));
        assert!(cache.used_tokens() <= 400);
    }
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 99), &app), 100);
    // a prompt that needs all of the room gets it
    assert_eq!(lists.answer(&mut cache, &prompt(50, 380, 0), &app), 0);
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 100), &app), 0);
}

#[test]
fn only_a_group_or_the_operators_text_is_shared() {
    let (mut lists, mut cache) = (Lists::default(), KvCache::new(2000, true, None));
    for n in 0..4 {
        lists.answer(&mut cache, &prompt(1, 100, n), &group("one", 0));
    }
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 9), &group("two", 0)), 0);
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 10), &group("three", 60)), 60);
}

#[test]
fn a_conversation_that_goes_on_is_no_prefix() {
    let (mut lists, mut cache) = (Lists::default(), KvCache::new(4000, true, None));
    let mut talk = prompt(1, 100, 0);
    for turn in 0..10 {
        let kept = lists.answer(&mut cache, &talk, &group("app", 0));
        assert_eq!(kept > 0, turn > 0);
        talk.extend([7, 7, 8, turn]);
    }
    assert_eq!(lists.all.len(), 1);
}

#[test]
fn the_same_prompt_again_is_no_prefix() {
    let (mut lists, mut cache) = (Lists::default(), KvCache::new(4000, true, None));
    for n in 0..10 {
        let kept = lists.answer(&mut cache, &prompt(1, 100, 0), &group("app", 0));
        assert_eq!(kept, if n == 0 { 0 } else { 107 });
    }
    assert_eq!(lists.all.len(), 1);
}

#[test]
fn a_recurrent_model_shares_whole_sequences_alone() {
    let mut lists = Lists { is_recurrent: true, ..Lists::default() };
    let mut cache = KvCache::new(4000, false, None);
    let app = group("app", 0);
    let mut talk = prompt(1, 100, 0);
    assert_eq!(lists.answer(&mut cache, &talk, &app), 0);
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 1), &app), 0);
    talk.extend([7, 7, 8]);
    assert_eq!(lists.answer(&mut cache, &talk, &app), 110);
}

#[test]
fn a_prefix_is_there_after_a_restart() {
    let disk = tempfile::tempdir().unwrap();
    let app = group("app", 0);
    save_one(disk.path(), &app);

    let mut lists = Lists::default();
    let mut cache = KvCache::new(2000, true, Some(folder(disk.path())));
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 20), &group("other", 0)), 0);
    for n in 21..40 {
        assert_eq!(lists.answer(&mut cache, &prompt(1, 100, n), &app), 100);
    }
    // what the prompts that showed it had in common is longer than what another one has of it
    lists.all.clear();
    cache.clear();
    assert_eq!(lists.answer(&mut cache, &prompt(1, 70, 45), &app), 70);
    // the library loses all
    lists.all.clear();
    cache.clear();
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 50), &app), 100);
    drop(cache);
    assert_eq!(files(disk.path()), 1);
}

#[test]
fn what_is_damaged_or_of_another_engine_is_removed() {
    let disk = tempfile::tempdir().unwrap();
    let app = group("app", 0);
    save_one(disk.path(), &app);
    let path = std::fs::read_dir(disk.path()).unwrap().next().unwrap().unwrap().path();
    let good = std::fs::read(&path).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let mut lists = Lists::default();
    let mut cache = KvCache::new(2000, true, Some(folder(disk.path())));
    assert_eq!(lists.answer(&mut cache, &prompt(1, 100, 60), &app), 0);
    assert_eq!(files(disk.path()), 0);
    drop(cache);

    let head =
        PrefixHead { engine: "another".to_owned(), group: "app".to_owned(), tokens: vec![1; 100] };
    for (name, bytes) in [
        ("another.prefix", encode(&head, b"state").unwrap()),
        ("renamed.prefix", good),
        ("cut.prefix", b"PLPREF".to_vec()),
        ("written.part", Vec::new()),
    ] {
        std::fs::write(disk.path().join(name), bytes).unwrap();
    }
    drop(folder(disk.path()));
    assert_eq!(files(disk.path()), 0);
}

/// As many prefixes as are kept, and more.
#[test]
fn the_least_recently_used_are_removed() {
    let disk = tempfile::tempdir().unwrap();
    let (app, most) = (group("app", 0), u32::try_from(PREFIX_FILES_MAX).unwrap());
    let mut lists = Lists::default();
    let mut cache = KvCache::new(4000, true, Some(folder(disk.path())));
    for kind in 0..most + 3 {
        for n in 0..4 {
            lists.answer(&mut cache, &prompt(kind, 64, kind * 100 + n), &app);
        }
        // the writer has one at a time
        let written = || std::fs::read_dir(disk.path()).unwrap().flatten();
        let is_done = || written().all(|file| file.path().extension().unwrap() == "prefix");
        while !is_done() || written().count() < (kind as usize + 1).min(PREFIX_FILES_MAX) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    drop(cache);
    assert_eq!(files(disk.path()), PREFIX_FILES_MAX);
    // the first ones are gone
    let mut cache = KvCache::new(4000, true, Some(folder(disk.path())));
    lists.all.clear();
    assert_eq!(lists.answer(&mut cache, &prompt(1, 64, 1), &app), 0);
    assert_eq!(lists.answer(&mut cache, &prompt(most, 64, 1), &app), 64);
}
