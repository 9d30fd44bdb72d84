//! Every single-bit flip of a signed file is refused.

use serde_json::json;

use super::{Known, bytes_of, envelope, signature};
use crate::fleet::check;
use crate::fleet::signature::Received;

/// The size of the signed file: 32,768 bits.
const SIZE: usize = 4096;

#[test]
fn every_flip_of_a_bit_is_refused() {
    let known = Known::new();
    let mut update = envelope();
    let signed = |text: String| {
        update["config"] = json!({ "inline": text });
        let update = bytes_of(&update);
        let signature = signature(&known.pair, &update);
        Received { signature: signature.as_bytes(), update: &update }.joined()
    };
    let mut signed = signed;
    let short = signed(String::new()).len();
    let file = signed("x".repeat(SIZE - short));
    assert_eq!(file.len(), SIZE);
    let accepted = |file: &[u8]| {
        let received = Received::of(file);
        received.and_then(|received| check::check(&received, &known.trust, &known.memory)).is_ok()
    };
    assert!(accepted(&file), "the file itself is refused");
    // half of the bits in each of two threads
    let half = |bytes: std::ops::Range<usize>| {
        let mut flipped = file.clone();
        for (at, bit) in bytes.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            flipped[at] ^= 1 << bit;
            assert!(!accepted(&flipped), "bit {bit} of byte {at} is of no account");
            flipped[at] ^= 1 << bit;
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| half(0..SIZE / 2));
        half(SIZE / 2..SIZE);
    });
}

/// The parts that no signature covers have one spelling.
#[test]
fn a_signature_has_one_spelling() {
    let known = Known::new();
    let update = bytes_of(&envelope());
    let right = signature(&known.pair, &update);
    let check = |signature: &str| {
        let received = Received { signature: signature.as_bytes(), update: &update };
        check::check(&received, &known.trust, &known.memory).map_err(|refusal| refusal.code())
    };
    assert!(check(&right).is_ok());
    let rsign = right.replace("minisign secret", "rsign secret");
    assert!(check(&rsign).is_ok(), "rsign");
    let lines: Vec<&str> = right.lines().collect();
    let with = |at: usize, text: &str| {
        let mut lines = lines.clone();
        lines[at] = text;
        lines.join("\n") + "\n"
    };
    for wrong in [
        String::new(),
        right.trim_end().to_owned(),
        format!("{right}\n"),
        right.replace('\n', "\r\n"),
        format!("\u{feff}{right}"),
        with(0, "untrusted comment: mine"),
        with(0, ""),
        with(1, ""),
        with(1, &format!("{} ", lines[1])),
        with(1, lines[1].trim_end_matches('=')),
        with(1, "AAAA"),
        with(2, "comment"),
        with(3, ""),
        with(3, lines[3].trim_end_matches('=')),
    ] {
        assert_eq!(check(&wrong).unwrap_err(), "malformed-signature", "{wrong:?}");
    }
    let other = with(2, "trusted comment: timestamp:2");
    assert_eq!(check(&other).unwrap_err(), "wrong-signature");
    let long = with(2, &format!("trusted comment: {}", "x".repeat(4096)));
    assert_eq!(check(&long).unwrap_err(), "too-large");
}
