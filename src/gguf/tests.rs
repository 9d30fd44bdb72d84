//! Tests of the head of a GGUF file: sound ones, each defect, and damaged bytes.

use std::io::Write;

use anyhow::Result;

use super::head::{ARRAY, GgufHead, NotGguf, STRING};

/// A file with one key and one tensor, with the given replacements.
struct Built {
    version: u32,
    counts: (u64, u64),
    keys: Vec<u8>,
    tensors: Vec<u8>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, sizes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dimensions = u32::try_from(sizes.len()).unwrap().to_le_bytes();
    let sizes: Vec<u8> = sizes.iter().flat_map(|size| size.to_le_bytes()).collect();
    [&text(name)[..], &dimensions, &sizes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn built() -> Built {
    let keys = key("general.architecture", STRING, &text("llama"));
    Built { version: 3, counts: (1, 1), keys, tensors: tensor("t", &[32, 2], 8, 0), data: 68 }
}

impl Built {
    fn with_keys(keys: &[Vec<u8>]) -> Built {
        Built { counts: (1, keys.len() as u64), keys: keys.concat(), ..built() }
    }

    fn with_tensors(tensors: &[Vec<u8>]) -> Built {
        Built { counts: (tensors.len() as u64, 1), tensors: tensors.concat(), ..built() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.counts.0.to_le_bytes());
        bytes.extend(self.counts.1.to_le_bytes());
        bytes.extend(&self.keys);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        bytes
    }

    fn read(&self) -> Result<GgufHead> {
        read(&self.bytes())
    }
}

fn read(bytes: &[u8]) -> Result<GgufHead> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    GgufHead::read(&file, bytes.len() as u64)
}

#[test]
fn a_sound_head_is_read() {
    let keys = [
        key("general.architecture", STRING, &text("llama")),
        key("llama.block_count", 4, &30_u32.to_le_bytes()),
        key("llama.big", 10, &(1_u64 << 40).to_le_bytes()),
        key("llama.below", 5, &(-1_i32).to_le_bytes()),
        key("llama.real", 6, &1.5_f32.to_le_bytes()),
        key(
            "tokens",
            ARRAY,
            &[&8_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &text("a"), &text("")].concat(),
        ),
        key("scores", ARRAY, &[&6_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 4]].concat()),
    ];
    let head = Built::with_keys(&keys).read().unwrap();
    assert_eq!(head.text("general.architecture"), Some("llama"));
    assert_eq!(head.number("llama.block_count"), Some(30));
    assert_eq!(head.number("llama.big"), Some(1 << 40));
    assert_eq!((head.number("llama.below"), head.number("llama.real")), (None, None));
}

#[test]
fn every_defect_is_named() {
    let number = |name: &str, n: u32| key(name, 4, &n.to_le_bytes());
    let list = |kind: u32, count: u64| {
        key("k", ARRAY, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat())
    };
    let arch = key("general.architecture", STRING, &text("llama"));
    let template = key("tokenizer.chat_template", STRING, &text(&"x".repeat(200_000)));
    let cases = [
        (Built { version: 1, ..built() }, "version 1 is not known"),
        (Built { version: 3 << 24, ..built() }, "is not known"),
        (Built { counts: (u64::MAX, 1), ..built() }, "tensors, at most"),
        (Built { counts: (1, 1 << 40), ..built() }, "keys, at most"),
        (Built { counts: (1, 2), ..built() }, "tensor 0: a name of"),
        (Built { keys: u64::MAX.to_le_bytes().to_vec(), ..built() }, "a name of"),
        (Built::with_keys(&[arch.clone(), arch.clone()]), "is there twice"),
        (Built::with_keys(&[key("", 4, &[0; 4])]), "is there twice"),
        (Built::with_keys(&[key("k", STRING, &(1_u64 << 62).to_le_bytes())]), "beyond the end"),
        (Built::with_keys(&[key("k", 77, &[])]), "a value of type 77"),
        (Built::with_keys(&[list(8, 1 << 61)]), "texts do not fit"),
        (Built::with_keys(&[list(12, 1 << 61)]), "values are too many"),
        (Built::with_keys(&[list(4, 1 << 50)]), "beyond the end"),
        (Built::with_keys(&[list(ARRAY, 1)]), "a value of type 9"),
        (Built::with_keys(&[number("general.alignment", 0)]), "general.alignment is 0"),
        (Built::with_keys(&[number("general.alignment", 24)]), "general.alignment is 24"),
        (Built::with_keys(&[number("general.alignment", 1 << 30)]), "must be a power of two"),
        (
            Built::with_keys(&[arch.clone(), number("llama.block_count", 1 << 31)]),
            "llama.block_count is",
        ),
        (
            Built::with_keys(&[arch.clone(), number("llama.attention.head_count", 0)]),
            "head_count is 0",
        ),
        (Built::with_keys(&[number("split.count", 3)]), "one of 3 parts"),
        (Built::with_keys(&[template]), "the chat template has 200000 bytes"),
        (Built::with_tensors(&[tensor("t", &[1; 5], 0, 0)]), "t has 5 dimensions"),
        (Built::with_tensors(&[tensor("t", &[0], 0, 0)]), "dimension 0 of t is 0"),
        (Built::with_tensors(&[tensor("t", &[32, u64::MAX, 2], 8, 0)]), "t is too large"),
        (Built::with_tensors(&[tensor("t", &[1 << 62, 1], 0, 0)]), "t is too large"),
        (Built::with_tensors(&[tensor("t", &[31], 8, 0)]), "no multiple of 32"),
        (Built::with_tensors(&[tensor("t", &[32], 4, 0)]), "GGML type 4, which is not known"),
        (Built::with_tensors(&[tensor("t", &[32], 8, 1)]), "the offset 1 of t"),
        (Built::with_tensors(&[tensor("t", &[32], 8, 64)]), "the file ends before tensor t does"),
        (Built::with_tensors(&[tensor("t", &[32], 8, u64::MAX - 31)]), "t is too large"),
        (Built::with_tensors(&[tensor(&"t".repeat(64), &[32], 8, 0)]), "a name of 64 bytes"),
        (
            Built::with_tensors(&[tensor("t", &[32], 8, 0), tensor("t", &[32], 8, 64)]),
            "t is there twice",
        ),
        (Built::with_tensors(&[tensor("t", &[32], 8, 0), tensor("u", &[32], 8, 0)]), "overlaps"),
        (Built { data: 60, ..built() }, "the file ends before tensor t does"),
    ];
    for (file, said) in cases {
        let error = file.read().err().unwrap_or_else(|| panic!("{said}: was read"));
        assert!(format!("{error:#}").contains(said), "{said}: {error:#}");
    }
    built().read().unwrap();
    for bad in [&b""[..], b"GGU", b"GGML\x03\0\0\0"] {
        assert!(read(bad).err().unwrap().is::<NotGguf>());
    }
}

/// Whatever is in a file, it is read or refused.
#[test]
fn damaged_heads_are_refused_without_harm() {
    let sound = built().bytes();
    let mut random = fastrand::Rng::with_seed(5);
    for length in 0..sound.len() {
        assert!(read(&sound[..length]).is_err(), "{length} bytes");
    }
    for _ in 0..2000 {
        let mut bytes = sound.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(4..sound.len());
            bytes[at] = *random.choice(&[0, 1, 8, 9, 0x7f, 0x80, 0xff]).unwrap();
        }
        let _ = read(&bytes);
    }
}
