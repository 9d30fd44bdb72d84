//! Keys, targets, versions, times and replays: what is signed by whom, for whom, and when.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::KeyPair;
use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use super::{Known, NOW, bytes_of, entry, envelope, memory, pair, signature, trust_of};
use crate::fleet::check::{self, VersionFloor};
use crate::fleet::digest::Digest;
use crate::fleet::moment::Moment;
use crate::fleet::signature::Received;

fn with(key: &str, value: Value) -> Vec<u8> {
    let mut update = envelope();
    update[key] = value;
    bytes_of(&update)
}

#[test]
fn the_right_key_for_the_right_device_is_accepted() {
    let known = Known::new();
    for target in
        [json!({"device": "pi-7"}), json!({"group": "line-3"}), json!({"fleet": "plant-a"})]
    {
        let verified = known.check(&with("target", target)).unwrap();
        assert_eq!(verified.authority.key, "ops-2026");
        assert_eq!(u64::from(verified.envelope.version), 12);
        assert_eq!(verified.comment, "timestamp:1\tfile:update.json\thashed");
    }
}

#[test]
fn other_devices_groups_and_fleets_are_refused() {
    let mut known = Known::new();
    for (target, told) in [
        (json!({"device": "pi-8"}), "is for the device pi-8, and this is the device pi-7"),
        (json!({"group": "line-4"}), "is for the group line-4, and this is the group line-3"),
        (json!({"fleet": "plant-b"}), "is for the fleet plant-b, and this is the fleet plant-a"),
        // a name of another kind
        (json!({"device": "plant-a"}), "is for the device plant-a"),
        (json!({"fleet": "pi-7"}), "is for the fleet pi-7"),
        (json!({"device": "PI-7"}), "is for the device PI-7"),
    ] {
        known.refused(&with("target", target), "wrong-target", told);
    }
    known.memory.group = None;
    known.trust.fleet = None;
    for (target, told) in [
        (json!({"group": "line-3"}), "this device belongs to no group"),
        (json!({"fleet": "plant-a"}), "this device belongs to no fleet"),
    ] {
        known.refused(&with("target", target), "wrong-target", told);
    }
}

/// The signature of minisign's old kind, over the bytes themselves.
fn legacy(pair: &KeyPair, bytes: &[u8]) -> String {
    // two bytes each for three algorithms, a salt of 32, two bounds of 8, the identifier of 8, the seed
    let secret = pair.sk.to_bytes();
    let key = Ed25519KeyPair::from_seed_unchecked(&secret[62..94]).unwrap();
    let first = key.sign(bytes);
    let comment = "timestamp:1\tfile:update.json";
    let second = key.sign(&[first.as_ref(), comment.as_bytes()].concat());
    let first = [b"Ed", &secret[54..62], first.as_ref()].concat();
    let (first, second) = (STANDARD.encode(first), STANDARD.encode(second));
    format!(
        "untrusted comment: signature from minisign secret key\n{first}\ntrusted comment: {comment}\n{second}\n"
    )
}

#[test]
fn signatures_of_others_and_of_the_old_kind_are_refused() {
    let known = Known::new();
    let update = bytes_of(&envelope());
    let right = signature(&known.pair, &update);
    let check = |signature: &str, update: &[u8], code: &str| {
        let received = Received { signature: signature.as_bytes(), update };
        let refusal = check::check(&received, &known.trust, &known.memory).unwrap_err();
        assert_eq!(refusal.code(), code, "{refusal}");
    };
    let other = pair();
    check(&signature(&other, &update), &update, "unknown-key");
    check(&legacy(&known.pair, &update), &update, "legacy-signature");
    check(&right, &bytes_of(&json!({})), "wrong-signature");
    // the identifier of the known key, and the signature of another one
    let forged = KeyPair {
        pk: other.pk.clone(),
        sk: {
            let (own, mut bytes) = (known.pair.sk.to_bytes(), other.sk.to_bytes());
            bytes[54..62].copy_from_slice(&own[54..62]);
            minisign::SecretKey::from_bytes(&bytes).unwrap()
        },
    };
    check(&signature(&forged, &update), &update, "wrong-signature");
    // the trusted comment of one signature under another one
    let second = signature(&known.pair, &with("version", json!(13)));
    let mut lines: Vec<&str> = right.lines().collect();
    lines[3] = second.lines().nth(3).unwrap();
    check(&(lines.join("\n") + "\n"), &update, "wrong-signature");
    lines[3] = right.lines().nth(3).unwrap();
    lines[2] = "trusted comment: version:99";
    check(&(lines.join("\n") + "\n"), &update, "wrong-signature");
}

/// The same bytes under another domain: a key that signs programs too can't be made to sign this.
#[test]
fn a_signature_of_another_domain_is_none_of_an_update() {
    let known = Known::new();
    let text = String::from_utf8(bytes_of(&envelope())).unwrap();
    for domain in ["pilotlight-model-1\n", "pilotlight-config-2\n", ""] {
        let other = text.replace("pilotlight-config-1\n", domain);
        known.refused(other.as_bytes(), "malformed", "the first line must be pilotlight-config-1");
        // the signature is of the other file
        let signature = signature(&known.pair, other.as_bytes());
        let received = Received { signature: signature.as_bytes(), update: text.as_bytes() };
        let refusal = check::check(&received, &known.trust, &known.memory).unwrap_err();
        assert_eq!(refusal.code(), "wrong-signature");
    }
}

#[test]
fn a_key_does_what_the_trust_policy_permits() {
    let mut known = Known::new();
    let mut narrow = entry(&known.pair);
    narrow["targets"] = json!(["group"]);
    narrow["longest_days"] = json!(7);
    known.trust = trust_of(&json!({"night": narrow}));
    let week = |update: &mut Value| update["expires"] = json!("2026-12-04T02:00:00Z");
    let mut update = envelope();
    update["target"] = json!({"group": "line-3"});
    known.refused(
        &bytes_of(&update),
        "not-authorised",
        "the key night may not sign for more than 7 days",
    );
    week(&mut update);
    assert!(known.check(&bytes_of(&update)).is_ok());
    update["expires"] = json!("2026-12-04T02:00:01Z");
    known.refused(&bytes_of(&update), "not-authorised", "more than 7 days");
    for target in [json!({"device": "pi-7"}), json!({"fleet": "plant-a"})] {
        let mut update = envelope();
        week(&mut update);
        update["target"] = target;
        known.refused(&bytes_of(&update), "not-authorised", "may not sign for a");
    }
}

#[test]
fn two_keys_share_one_version_floor() {
    let (first, second) = (pair(), pair());
    let trust = trust_of(&json!({"a": entry(&first), "b": entry(&second)}));
    let mut memory = memory();
    for (version, key, name) in [(12, &first, "a"), (13, &second, "b"), (14, &first, "a")] {
        let update = with("version", json!(version));
        let signed = |key: &KeyPair| signature(key, &update);
        let (of_first, of_second) = (signed(&first), signed(&second));
        let received = signed(key);
        let received = Received { signature: received.as_bytes(), update: &update };
        let verified = check::check(&received, &trust, &memory).unwrap();
        assert_eq!(verified.authority.key, name);
        memory.floor = VersionFloor::Known(version);
        // what one key has signed is old for the other one too
        for signature in [&of_first, &of_second] {
            let received = Received { signature: signature.as_bytes(), update: &update };
            let refusal = check::check(&received, &trust, &memory).unwrap_err();
            assert_eq!(refusal.code(), "old-version", "{refusal}");
        }
    }
    // lines of both signatures
    let update = with("version", json!(15));
    let (one, other) = (signature(&first, &update), signature(&second, &update));
    for mask in 1..15_u8 {
        let lines = one.lines().zip(other.lines()).enumerate();
        let mixed = lines.map(|(at, (a, b))| if mask >> at & 1 == 0 { a } else { b });
        let mixed = mixed.collect::<Vec<_>>().join("\n") + "\n";
        if mixed == one || mixed == other {
            continue;
        }
        let received = Received { signature: mixed.as_bytes(), update: &update };
        assert!(check::check(&received, &trust, &memory).is_err(), "{mixed}");
    }
}

#[test]
fn old_versions_and_a_lost_floor_are_refused() {
    let mut known = Known::new();
    for version in [1, 10, 11] {
        let told = format!("version {version} is not higher than 11");
        known.refused(&with("version", json!(version)), "old-version", &told);
    }
    known.memory.floor = VersionFloor::Missing { known: 11 };
    for version in [1, 11, 12, 1_000_000] {
        let update = with("version", json!(version));
        known.refused(&update, "floor-missing", "pilotlight config repair");
    }
}

#[test]
fn time_only_goes_forward() {
    let mut known = Known::new();
    let check = |known: &Known, issued: &str, expires: &str| {
        let mut update = envelope();
        update["issued"] = json!(issued);
        update["expires"] = json!(expires);
        known.check(&bytes_of(&update)).map_or_else(|refusal| refusal.code(), |_| "")
    };
    assert_eq!(check(&known, "2026-11-01T00:00:00Z", "2026-11-27T02:00:01Z"), "");
    assert_eq!(check(&known, "2026-11-01T00:00:00Z", "2026-11-27T02:00:00Z"), "expired");
    assert_eq!(check(&known, "2026-11-27T03:00:00Z", "2026-11-28T00:00:00Z"), "");
    assert_eq!(check(&known, "2026-11-27T03:00:01Z", "2026-11-28T00:00:00Z"), "not-yet-valid");
    assert_eq!(check(&known, "2036-11-27T02:00:00Z", "2036-11-28T00:00:00Z"), "not-yet-valid");
    for (issued, expires) in [
        ("2026-11-27T01:00:00Z", "2026-11-27T01:00:00Z"),
        ("2026-11-27T02:00:01Z", "2026-11-27T02:00:00Z"),
    ] {
        assert_eq!(check(&known, issued, expires), "malformed");
    }
    // the clock is set back by ten years: what has expired stays so
    known.memory.watermark = NOW;
    known.memory.clock = Moment(NOW.0 - 10 * 365 * 24 * 3600);
    assert_eq!(check(&known, "2026-11-01T00:00:00Z", "2026-11-27T02:00:00Z"), "expired");
    assert_eq!(check(&known, "2016-11-01T00:00:00Z", "2016-11-30T00:00:00Z"), "expired");
    assert_eq!(check(&known, "2026-11-01T00:00:00Z", "2026-11-27T02:00:01Z"), "");
}

#[test]
fn an_update_is_taken_once_and_for_its_base() {
    let mut known = Known::new();
    let update = bytes_of(&envelope());
    let verified = known.check(&update).unwrap();
    known.memory.known.insert(verified.digest);
    known.refused(&update, "replayed", &verified.digest.to_string());
    // the same content in other bytes has a signature of its own
    assert!(known.check(update.trim_ascii_end()).is_ok());
    let running = known.memory.running;
    assert!(known.check(&with("replaces", json!(running))).is_ok());
    let other = Digest::of(b"other");
    let told = format!("replaces {other}, and this device runs {running}");
    known.refused(&with("replaces", json!(other)), "wrong-base", &told);
    known.memory.on_trial = Some(11);
    known.refused(&with("version", json!(13)), "busy", "version 11 is on trial");
}
