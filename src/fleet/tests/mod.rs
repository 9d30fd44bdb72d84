//! Tests of signed configurations: updates that are signed here, with keys of their own.

mod authority;
mod boundary;
mod flips;
mod form;
mod machine;
mod policy;

use std::collections::BTreeSet;

use minisign::KeyPair;
use serde_json::{Value, json};

use super::check::{self, Memory, Verified, VersionFloor};
use super::digest::Digest;
use super::envelope::DOMAIN;
use super::moment::Moment;
use super::refusal::UpdateRefusal;
use super::signature::{Received, UNTRUSTED_COMMENT};
use super::trust::Trust;

/// 2026-11-27T02:00:00Z.
const NOW: Moment = Moment(1_795_744_800);

fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

/// The signature file of these bytes.
fn signature(pair: &KeyPair, bytes: &[u8]) -> String {
    let comment = Some("timestamp:1\tfile:update.json\thashed");
    let signed = minisign::sign(None, &pair.sk, bytes, comment, Some(UNTRUSTED_COMMENT)).unwrap();
    signed.into_string().trim_end().to_owned() + "\n"
}

fn trust_of(keys: &Value) -> Trust {
    Trust::read(json!({"fleet": "plant-a", "keys": keys}).to_string().as_bytes()).unwrap()
}

fn entry(pair: &KeyPair) -> Value {
    json!({
        "public_key": pair.pk.to_base64(), "targets": ["device", "group", "fleet"],
        "operations": ["config", "models"], "longest_days": 30,
    })
}

fn memory() -> Memory {
    Memory {
        device: "pi-7".to_owned(),
        group: Some("line-3".to_owned()),
        clock: NOW,
        watermark: Moment(0),
        floor: VersionFloor::Known(11),
        known: BTreeSet::new(),
        running: Digest::of(b"running"),
        on_trial: None,
    }
}

/// An update that is accepted.
fn envelope() -> Value {
    json!({
        "target": {"device": "pi-7"},
        "version": 12,
        "issued": "2026-11-27T02:00:00Z",
        "expires": "2026-12-27T02:00:00Z",
        "config": {"inline": "{}"},
    })
}

fn bytes_of(envelope: &Value) -> Vec<u8> {
    format!("{DOMAIN}{envelope}\n").into_bytes()
}

/// A device with one key.
struct Known {
    pair: KeyPair,
    trust: Trust,
    memory: Memory,
}

impl Known {
    fn new() -> Known {
        let pair = pair();
        let trust = trust_of(&json!({"ops-2026": entry(&pair)}));
        Known { pair, trust, memory: memory() }
    }

    /// What becomes of these bytes, signed by the key.
    fn check(&self, update: &[u8]) -> Result<Verified, UpdateRefusal> {
        let signature = signature(&self.pair, update);
        check::check(
            &Received { signature: signature.as_bytes(), update },
            &self.trust,
            &self.memory,
        )
    }

    /// The code of the refusal of these bytes, and what its message has.
    fn refused(&self, update: &[u8], code: &str, told: &str) {
        let shown = String::from_utf8_lossy(&update[..update.len().min(300)]).into_owned();
        let refusal = self.check(update).expect_err(&shown);
        assert_eq!(refusal.code(), code, "{shown}: {refusal}");
        assert!(refusal.to_string().contains(told), "{shown}: {refusal}");
    }
}
