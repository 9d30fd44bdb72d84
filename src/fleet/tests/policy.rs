//! The trust policy: all mistakes at once, each with its path.

use serde_json::{Value, json};

use super::{entry, pair};
use crate::fleet::trust::Trust;
use crate::model::context::Locality;
use crate::money::Usd;

#[test]
fn a_policy_is_read() {
    let pair = pair();
    let policy = json!({
        "fleet": "plant-a",
        "keys": {"ops-2026": entry(&pair)},
        "commands": {"engine-a": {"path": "/usr/bin/pilotlight", "sha256": "0a".repeat(32), "args": ["engine"]},
            "own": {"path": "pilotlight", "args": ["engine"]}},
        "ceiling": {"reach": "peer", "usd_per_month": 5},
        "neighbours": ["https://10.0.0.7:8080", "http://BIG.local/"],
        "secrets": {"OPENAI": ["https://api.example/"]},
    });
    let trust = Trust::read(policy.to_string().as_bytes()).unwrap();
    assert_eq!(trust.fleet.as_deref(), Some("plant-a"));
    assert_eq!(trust.furthest, Some(Locality::Peer));
    assert_eq!(trust.caps.month, Some(Usd::at_least(5.0)));
    assert_eq!(trust.commands["engine-a"].args, ["engine"]);
    let neighbours: Vec<&str> = trust.neighbours.iter().map(String::as_str).collect();
    assert_eq!(neighbours, ["http://big.local", "https://10.0.0.7:8080"]);
    assert!(trust.secrets["OPENAI"].contains("https://api.example"));
    assert_eq!(Trust::read(b"{}").unwrap(), Trust::default());
}

#[test]
fn all_mistakes_are_found_with_their_paths() {
    let pair = pair();
    let with = |key: &str, value: Value| {
        let mut entry = entry(&pair);
        entry[key] = value;
        entry
    };
    let policy = json!({
        "flete": "x",
        "fleet": "a/b",
        "keys": {
            "a": entry(&pair),
            "same": entry(&pair),
            "b": with("public_key", json!("RW")),
            "c": with("targets", json!([])),
            "d": with("operations", json!(["config", "root"])),
            "e": with("longest_days", json!(0)),
            "f": with("extra", json!(1)),
            "g": {},
            "h/i": 5,
        },
        "commands": {
            "x": {"path": "bin/x", "sha256": "0a".repeat(32)},
            "y": {"path": "/usr/../bin/y", "sha256": "0A"},
            "z": {"path": "/z"},
            "own": {"path": "pilotlight", "sha256": "0a".repeat(32)},
        },
        "ceiling": {"reach": "moon", "usd_per_day": -1},
        "neighbours": ["10.0.0.7", "https://x.example/path", "ftp://x.example", "https://u@x.example"],
        "secrets": {"A": "https://x.example", "B": ["x"]},
    });
    let found: Vec<String> = Trust::read(policy.to_string().as_bytes())
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    for path in [
        "flete: unknown field `flete`",
        "fleet: must be",
        "keys.same.public_key: has the identifier of the key a",
        "keys.b.public_key: must be a public key of minisign",
        "keys.c.targets: is empty",
        "keys.d.operations",
        "keys.e.longest_days: must be 1 to",
        "keys.f.extra: unknown field",
        "keys.g: missing field `public_key`",
        "keys.g: missing field `longest_days`",
        "keys.h/i: the name of a key",
        "commands.x.path: must be an absolute path",
        "commands.y.sha256",
        "commands.z: sha256 is missing",
        "commands.own.sha256: must not be there",
        "ceiling.reach: unknown variant",
        "neighbours[0]: must be",
        "neighbours[1]: must be",
        "neighbours[2]: must be",
        "neighbours[3]: must be",
        "secrets.A: invalid type",
        "secrets.B[0]: must be",
    ] {
        assert!(found.iter().any(|one| one.starts_with(path)), "{path} is not in {found:#?}");
    }
    let told = |text: &str| Trust::read(text.as_bytes()).unwrap_err()[0].to_string();
    assert!(told("{").contains("not valid JSON"));
    assert!(told("[]").contains("invalid type"));
    assert!(told(r#"{"keys": {}, "keys": {}}"#).contains("duplicate key \"keys\""));
    assert!(told(r#"{"keys": {"a": {"targets": [], "targets": []}}}"#).contains("at keys.a"));
}
