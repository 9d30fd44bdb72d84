//! The form of the signed bytes: one spelling, no duplicates, no unknown keys, bounds.

use serde_json::{Value, json};

use super::{Known, bytes_of, envelope};
use crate::fleet::envelope::{DOMAIN, Envelope};
use crate::limits::fleet::{UPDATE_BYTES_MAX, UPDATE_VERSION_MAX};

fn whole() -> Value {
    let mut update = envelope();
    update["replaces"] = json!(format!("sha256:{}", "0a".repeat(32)));
    update["config"] =
        json!({"url": {"url": "https://x.example/c", "sha256": "0a".repeat(32), "bytes": 5}});
    update
}

/// All members of all objects, each as the path of its object with its key.
fn members(value: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
    for (key, member) in value.as_object().into_iter().flatten() {
        found.push((path.clone(), key.clone()));
        path.push(key.clone());
        members(member, path, found);
        path.pop();
    }
}

#[test]
fn every_field_twice_is_refused() {
    let known = Known::new();
    let mut all = Vec::new();
    members(&whole(), &mut Vec::new(), &mut all);
    assert_eq!(all.len(), 11, "{all:?}");
    for (path, key) in all {
        let mut update = whole();
        let at = path.iter().fold(&mut update, |at, key| &mut at[key.as_str()]);
        let value = at[key.as_str()].clone();
        at["twice"] = value;
        let text = String::from_utf8(bytes_of(&update)).unwrap();
        let twice = text.replace("\"twice\"", &format!("\"{key}\""));
        known.refused(twice.as_bytes(), "malformed", &format!("duplicate key {key:?}"));
    }
}

#[test]
fn every_object_with_an_extra_key_is_refused() {
    let known = Known::new();
    let mut all = Vec::new();
    members(&whole(), &mut Vec::new(), &mut all);
    all.push((vec!["config".to_owned()], "url".to_owned()));
    let mut objects: Vec<Vec<String>> = all.into_iter().map(|(path, _)| path).collect();
    objects.dedup();
    for path in &objects {
        for extra in ["extra", "fleet", "inline", "type"] {
            let mut update = whole();
            path.iter().fold(&mut update, |at, key| &mut at[key.as_str()])[extra] = json!("x");
            known.refused(&bytes_of(&update), "malformed", "");
        }
    }
    // the enums by themselves: a tag with anything beside it is no variant
    for enums in [
        json!({"target": {"device": "pi-7", "extra": 1}}),
        json!({"target": {"device": "pi-7", "group": "line-3"}}),
        json!({"target": {}}),
        json!({"target": "device"}),
        json!({"target": {"device": null}}),
        json!({"target": {"Device": "pi-7"}}),
        json!({"target": {"type": "device", "name": "pi-7"}}),
        json!({"target": {"device": ["pi-7"]}}),
        json!({"target": {"device": "pi-7/x"}}),
        json!({"target": {"device": ""}}),
        json!({"target": {"device": "x".repeat(65)}}),
        json!({"config": {"inline": "{}", "extra": 1}}),
        json!({"config": {"inline": "{}", "url": {}}}),
        json!({"config": {"inline": {}}}),
        json!({"config": {"url": "https://x.example"}}),
        json!({"config": {"url": {"url": "x", "sha256": "0a", "bytes": 5}}}),
        json!({"config": {"url": {"url": "x", "sha256": "0a".repeat(32)}}}),
        json!({"config": "{}"}),
        json!({"replaces": null}),
        json!({"replaces": "0a".repeat(32)}),
    ] {
        let mut update = envelope();
        for (key, value) in enums.as_object().unwrap() {
            update[key] = value.clone();
        }
        known.refused(&bytes_of(&update), "malformed", "");
    }
}

#[test]
fn versions_are_whole_numbers_within_bounds() {
    let known = Known::new();
    let with = |version: &str| {
        let text = String::from_utf8(bytes_of(&envelope())).unwrap();
        text.replace("\"version\":12", &format!("\"version\":{version}")).into_bytes()
    };
    assert!(known.check(&with("12")).is_ok());
    assert!(known.check(&with(&UPDATE_VERSION_MAX.to_string())).is_ok());
    for wrong in [
        "0",
        "-1",
        "-0",
        "9007199254740992",
        "9223372036854775808",
        "18446744073709551616",
        "12.0",
        "12.5",
        "1.2e1",
        "\"12\"",
        "null",
        "true",
        "[12]",
        "012",
        "+12",
        "0x0c",
        "1e400",
        "NaN",
    ] {
        known.refused(&with(wrong), "malformed", "");
    }
}

#[test]
fn bytes_around_the_object_are_refused() {
    let known = Known::new();
    let json = envelope().to_string();
    let check = |bytes: &[u8], told: &str| known.refused(bytes, "malformed", told);
    assert!(known.check(format!("{DOMAIN}{json}").as_bytes()).is_ok());
    assert!(known.check(format!("{DOMAIN}{json}\n").as_bytes()).is_ok());
    check(json.as_bytes(), "the first line must be pilotlight-config-1");
    for prefix in
        ["pilotlight-config-2\n", "pilotlight-config-1", "pilotlight-config-1\r\n", "\n", "x\n"]
    {
        check(format!("{prefix}{json}\n").as_bytes(), "the first line must be");
    }
    check(format!("\u{feff}{DOMAIN}{json}\n").as_bytes(), "the first line must be");
    check(format!("{DOMAIN}\u{feff}{json}\n").as_bytes(), "one JSON object");
    for end in ["\n\n", " ", "\0", "x", "{}", "\n{}", "\r\n", ",", "\n ", "\u{feff}"] {
        check(format!("{DOMAIN}{json}{end}").as_bytes(), "");
    }
    let lines = json.replace(",\"version\"", ",\r\n\"version\"");
    check(format!("{DOMAIN}{lines}").as_bytes(), "carriage return");
    let nul = json.replace("{}", "\0");
    check(format!("{DOMAIN}{nul}").as_bytes(), "control character");
    let mut bad = format!("{DOMAIN}{json}\n").into_bytes();
    let at = bad.len() - 10;
    bad[at] = 0xff;
    check(&bad, "not UTF-8");
    check(DOMAIN.as_bytes(), "one JSON object");
    check(format!("{DOMAIN}[{json}]").as_bytes(), "one JSON object");
    check(b"", "the first line");
    let deep = format!("{DOMAIN}{{\"target\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    check(deep.as_bytes(), "levels of nesting");
    let deep = format!("{DOMAIN}{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    check(deep.as_bytes(), "levels of nesting");
}

#[test]
fn ten_megabytes_are_refused_before_anything_else() {
    let known = Known::new();
    let mut large = bytes_of(&envelope());
    large.resize(10_000_000, b' ');
    known.refused(&large, "too-large", "10000000 bytes, at most");
    let mut update = envelope();
    update["config"] = json!({"inline": "x".repeat(UPDATE_BYTES_MAX)});
    known.refused(&bytes_of(&update), "too-large", "");
}

#[test]
fn what_is_written_is_what_is_read() {
    for update in [envelope(), whole()] {
        let read = Envelope::read(&bytes_of(&update)).unwrap();
        let written = read.write().unwrap();
        assert_eq!(Envelope::read(&written).unwrap(), read);
        let text = String::from_utf8(written).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text[DOMAIN.len()..]).unwrap(), update);
    }
}
