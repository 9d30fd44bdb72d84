//! Holds the house to its own rules: floors, purity, a sentence at the head of each file, length.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a test ends at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each room; a room may name only lower floors, and itself.
const FLOORS: [(&str, u8); 34] = [
    ("cli", 6),
    ("config", 6),
    ("daemon", 6),
    ("main", 6),
    ("ingress", 5),
    ("backends", 4),
    ("dispatch", 4),
    ("simulate", 4),
    ("broker", 3),
    ("bus", 2),
    ("device", 3),
    ("link", 2),
    ("mcp", 3),
    ("metrics", 3),
    ("tls", 3),
    ("web", 2),
    ("wire", 2),
    ("pressure", 1),
    ("registry", 1),
    ("scheduler", 1),
    ("calibrate", 0),
    ("fit", 0),
    ("generate", 0),
    ("health", 0),
    ("labels", 0),
    ("limits", 0),
    ("model", 0),
    ("money", 0),
    ("prompt", 0),
    ("redact", 0),
    ("strain", 0),
    ("time", 0),
    ("tools", 0),
    ("lib", 9),
];

/// What no file of floors 0 and 1 may name.
const IMPURE: [&str; 12] = [
    "tokio::",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "Instant",
    "SystemTime",
    "fastrand",
    "rand::",
    "HashMap",
    "HashSet",
    "println!",
];

/// The one channel that floor 0 may name: a data structure that needs no runtime.
const PURE_ENOUGH: [(&str, &str); 1] = [("generate.rs", "tokio::sync::mpsc")];

const LINES_MAX: usize = 500;

fn files() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches"] {
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    }
    found.sort();
    found
}

fn room_of(path: &Path) -> Option<String> {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    Some(first.trim_end_matches(".rs").to_owned())
}

fn floors() -> BTreeMap<&'static str, u8> {
    FLOORS.into_iter().collect()
}

/// The code of a file: no comments, no tests.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that a file names: `crate::room`, also inside braces.
fn named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        rooms.push(word);
    }
    rooms
}

#[test]
fn every_room_has_a_floor_and_looks_only_down() {
    let floors = floors();
    for path in files() {
        let Some(room) = room_of(&path) else { continue };
        let floor = *floors.get(room.as_str()).unwrap_or_else(|| panic!("{room} has no floor"));
        for other in named(&code_of(&path)) {
            if other == room || floor >= 6 {
                continue;
            }
            let below =
                floors.get(other.as_str()).is_some_and(|below| *below < floor || floor == 0);
            assert!(below, "{}: {room} (floor {floor}) names {other}", path.display());
        }
    }
}

#[test]
fn doors_do_not_know_each_other() {
    for path in files() {
        let text = path.display().to_string();
        for (door, other) in [("mqtt", "http"), ("http", "mqtt")] {
            if text.contains(&format!("ingress/{door}")) {
                let code = code_of(&path);
                assert!(!code.contains(&format!("ingress::{other}")), "{text} knows {other}");
                assert!(!code.contains(&format!("super::{other}")), "{text} knows {other}");
            }
        }
    }
}

#[test]
fn the_judgement_is_pure() {
    let floors = floors();
    for path in files() {
        let Some(room) = room_of(&path) else { continue };
        if floors.get(room.as_str()).is_none_or(|floor| *floor > 1) {
            continue;
        }
        let mut code = code_of(&path);
        for (file, word) in PURE_ENOUGH {
            if path.ends_with(file) {
                code = code.replace(word, "");
            }
        }
        for word in IMPURE {
            assert!(!code.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    for path in files() {
        let text = fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 12,
            "{} does not say what it is for",
            path.display()
        );
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, at most {LINES_MAX}", path.display());
    }
}

#[test]
fn nothing_is_left_undone() {
    let marks = ["todo!", "unimplemented!", "#[ignore", "dbg!"];
    for path in files().iter().filter(|path| !path.ends_with("house.rs")) {
        let text = fs::read_to_string(path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} has a {mark}", path.display());
        }
    }
}
