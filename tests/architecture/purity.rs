//! Purity, one clock and owned tasks: paths that only certain files may name.

use super::layers::layer_of;
use super::paths::{Named, Paths};
use super::source::{Kind, Tree};

/// The highest layer without runtime, clock, chance, disk and network.
const PURE_MAX: u8 = 5;

/// Pure modules above that layer: they use the catalog, which has the highest pure layer.
const PURE_ABOVE: &[&str] = &["fleet"];

/// Paths that no pure file may name.
const IMPURE_PATHS: &[&str] = &[
    "fastrand",
    "rand",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "tokio",
];

/// Names that no pure file may use, however they are imported: time that is read, maps in an order
/// that differs from run to run, output.
const IMPURE_NAMES: &[&str] =
    &["Instant", "SystemTime", "HashMap", "HashSet", "print", "println", "eprint", "eprintln"];

/// Channels in pure files: data structures that need no runtime.
const PURE_ENOUGH: &[(&str, &str)] =
    &[("model/out", "tokio::sync::mpsc"), ("model/link", "tokio::sync::watch")];

/// What starts work that nobody owns, or waits without a bound. The reason says what to do.
const DETACHED: &[(&str, &str)] = &[
    ("tokio::spawn", SPAWN),
    ("tokio::task::spawn", SPAWN),
    ("tokio::task::spawn_local", SPAWN),
    ("tokio::runtime::Handle", SPAWN),
    ("std::thread::spawn", "use std::thread::Builder and keep the handle, or std::thread::scope"),
    ("tokio::sync::mpsc::unbounded_channel", BOUND),
    ("tokio::sync::mpsc::UnboundedSender", BOUND),
    ("std::sync::mpsc::channel", BOUND),
    ("futures::channel::mpsc::unbounded", BOUND),
    ("std::mem::forget", "let the owner drop it"),
    ("std::process::exit", "return an exit code from main"),
];

/// What runs on a thread of its own, with the owner of each. Nothing else starts one.
const THREADS: &[(&str, &str, &str)] = &[
    ("benchmark/bandwidth", THREAD, "each is joined at the end of its scope"),
    ("device", BLOCKING, "the loop that reads sensors keeps the handle; one reading at a time"),
    ("daemon/fleet", BLOCKING, "the change of the state is awaited before anything else happens"),
    (
        "daemon/fleet/checks",
        BLOCKING,
        "the check of programs is awaited before anything else happens",
    ),
    ("dispatch", BLOCKING, "the writer of the ledger is awaited when the dispatcher has drained"),
    (
        "engines/gguf/prefix_folder",
        THREAD,
        "the writer of prefixes is joined when the folder is dropped",
    ),
    ("engines/worker", THREAD, "the engine's thread is joined when its worker is dropped"),
    (
        "engines/worker/constraint",
        THREAD,
        "a compilation can't be cancelled; one late one at a time, then the process ends",
    ),
    ("net/lookup", THREAD, "the system's lookup can't be cancelled; one for each host at a time"),
];
const BLOCKING: &str = "tokio::task::spawn_blocking";
const THREAD: &str = "std::thread::Builder";
const SPAWN: &str = "spawn into a JoinSet that is awaited";
const BOUND: &str = "use a bounded channel with a bound from limits.rs";

pub const CLOCK: &str = "src/clock.rs";

/// Impure names in pure files.
pub fn impure(tree: &Tree, layers: &[(&str, u8)]) -> Vec<String> {
    let paths = Paths::of(tree);
    let mut found = Vec::new();
    for (file, scan) in tree.src.iter().zip(&paths.scans) {
        let key = file.key().unwrap();
        let is_pure = |layer: &u8| *layer <= PURE_MAX || PURE_ABOVE.contains(&file.top().unwrap());
        let Some(layer) = layer_of(key, layers).filter(is_pure) else { continue };
        let mut tell = |line: usize, name: &str| {
            found.push(format!(
                "{}:{line}: names {name}, but layer {layer} is pure; take the value as a parameter \
                 or move the code above layer {PURE_MAX}",
                file.path
            ));
        };
        for named in &scan.named {
            let allowed = PURE_ENOUGH.iter().any(|(at, path)| *at == key && named.is_below(path));
            let path = IMPURE_PATHS.iter().find(|path| named.is_below(path));
            if path.is_some() && !allowed {
                tell(named.line, &named.text());
            }
        }
        for token in file.code.iter().filter(|token| token.kind == Kind::Word) {
            if IMPURE_NAMES.contains(&token.text.as_str()) {
                tell(token.line, &token.text);
            }
        }
    }
    found
}

/// Exceptions in this file that nothing needs.
pub fn exceptions_too_many(tree: &Tree) -> Vec<String> {
    let paths = Paths::of(tree);
    let uses = |key: &str, path: &str| {
        let files = tree.src.iter().zip(&paths.scans);
        files.filter(|(file, _)| file.key() == Some(key)).any(|(_, scan)| named(scan, path))
    };
    let pure = PURE_ENOUGH.iter().copied();
    let threads = THREADS.iter().map(|(key, path, _)| (*key, *path));
    let unused = pure.chain(threads).filter(|(key, path)| !uses(key, path));
    unused.map(|(key, path)| format!("{key} does not name {path}; remove the exception")).collect()
}

fn named(scan: &super::paths::Scan, path: &str) -> bool {
    scan.named.iter().any(|named| named.is_below(path))
}

/// Readings of a clock outside `clock.rs`, and exceptions from the lint that forbids them.
pub fn other_clocks(tree: &Tree) -> Vec<String> {
    let paths = Paths::of(tree);
    let mut found = Vec::new();
    for (file, scan) in tree.src.iter().zip(&paths.scans).filter(|(file, _)| file.path != CLOCK) {
        for named in scan.named.iter().filter(|named| is_reading(named)) {
            found.push(format!(
                "{}:{}: {} reads a clock; call a function of {CLOCK}, or take the time as a parameter",
                file.path,
                named.line,
                named.text()
            ));
        }
        for token in file.code.iter().filter(|token| token.is("disallowed_methods")) {
            found.push(format!(
                "{}:{}: an exception from disallowed_methods; only {CLOCK} has one",
                file.path, token.line
            ));
        }
    }
    found
}

fn is_reading(named: &Named) -> bool {
    let is_clock =
        |name: &String| ["Instant", "SystemTime", "Utc", "Local"].contains(&name.as_str());
    matches!(named.segments.as_slice(), [.., clock, now] if is_clock(clock) && now == "now")
}

/// Tasks and threads without an owner, channels without a bound.
pub fn detached(tree: &Tree) -> Vec<String> {
    let paths = Paths::of(tree);
    let mut found = Vec::new();
    for (file, scan) in tree.src.iter().zip(&paths.scans) {
        for named in &scan.named {
            let thread = [BLOCKING, THREAD].into_iter().find(|path| named.is_below(path));
            let is_owned =
                |owned: &(&str, &str, &str)| Some(owned.0) == file.key() && Some(owned.1) == thread;
            if thread.is_some() && !THREADS.iter().any(is_owned) {
                found.push(format!(
                    "{}:{}: {}: use JoinSet::spawn_blocking, or name the owner in THREADS",
                    file.path,
                    named.line,
                    named.text()
                ));
            }
            if let Some((_, what)) = DETACHED.iter().find(|(path, _)| named.is_below(path)) {
                found.push(format!("{}:{}: {}: {what}", file.path, named.line, named.text()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[(&str, u8)] = &[("model", 4), ("pure", 5), ("impure", 6), ("clock", 6)];

    type Check = dyn Fn(&Tree) -> Vec<String>;

    fn check(rule: &Check, path: &str, text: &str, expected: Option<&str>) {
        let found = rule(&Tree::of(&[(path, text)]));
        match expected {
            Some(expected) => {
                assert!(!found.is_empty(), "{text} was not found");
                assert!(found[0].contains(expected), "{found:?}");
            }
            None => assert!(found.is_empty(), "{found:?}"),
        }
    }

    #[test]
    fn pure_layers_are_pure() {
        let rule = |tree: &Tree| impure(tree, TABLE);
        for (text, expected) in [
            ("use std::{collections::BTreeMap, fs};", "names std::fs"),
            ("fn f() { tokio::time::sleep(d) }", "names tokio::time::sleep"),
            ("use std::env; fn f() { env::var(x) }", "names std::env"),
            ("\nuse std::collections::HashMap;", "src/pure.rs:2: names HashMap"),
            ("fn f(now: SystemTime) {}", "names SystemTime"),
            ("fn f() { fastrand::u8(..) }", "names fastrand::u8"),
            ("fn f() { println!(\"a\") }", "names println"),
            ("use tokio::sync::mpsc;", "names tokio::sync::mpsc"),
        ] {
            check(&rule, "src/pure.rs", text, Some(expected));
            check(&rule, "src/impure.rs", text, None);
        }
        check(&rule, "src/pure.rs", "use std::collections::BTreeMap; // HashMap", None);
        check(&rule, "src/model/out.rs", "use tokio::sync::{mpsc, mpsc::Sender};", None);
        check(&rule, "src/model/out.rs", "use tokio::sync::Mutex;", Some("Mutex"));
    }

    #[test]
    fn exceptions_are_needed() {
        let files = [
            ("src/model/out.rs", "use tokio::sync::mpsc;"),
            ("src/dispatch/mod.rs", "use tokio::task::spawn_blocking;"),
        ];
        let found = exceptions_too_many(&Tree::of(&files));
        assert_eq!(found.len(), PURE_ENOUGH.len() + THREADS.len() - 2, "{found:?}");
        assert!(found[0].starts_with("model/link does not name tokio::sync::watch"), "{found:?}");
    }

    #[test]
    fn the_clock_is_read_in_one_file() {
        for text in [
            "use std::time::Instant; fn f() { Instant::now() }",
            "fn f() { std::time::SystemTime::now() }",
            "use tokio::time; fn f() { time::Instant::now() }",
            "use std::time::Instant as Other; fn f() { a.unwrap_or_else(Other::now) }",
            "#[expect(clippy::disallowed_methods, reason = \"\")] fn f() {}",
        ] {
            check(&other_clocks, "src/a.rs", text, Some("src/a.rs:1: "));
            check(&other_clocks, "src/clock.rs", text, None);
        }
        let text = "fn f(now: Instant) { now.elapsed() } #[cfg(test)] mod t { Instant::now() }";
        check(&other_clocks, "src/a.rs", text, None);
    }

    #[test]
    fn tasks_are_owned_and_channels_bounded() {
        for (text, expected) in [
            ("fn f() { tokio::spawn(g()) }", "tokio::spawn: spawn into"),
            ("use tokio::task; fn f() { task::spawn(g()) }", "tokio::task::spawn: spawn into"),
            (
                "use tokio::runtime::Handle; fn f() { Handle::try_current() }",
                "tokio::runtime::Handle",
            ),
            ("fn f() { std::thread::spawn(g) }", "std::thread::spawn: use"),
            ("use std::thread; fn f() { thread::Builder::new().spawn(g) }", "name the owner"),
            ("fn f() { tokio::task::spawn_blocking(g) }", "name the owner"),
            ("use std::sync::mpsc; fn f() { mpsc::channel() }", "bounded channel"),
            ("use tokio::sync::mpsc::unbounded_channel;", "bounded channel"),
        ] {
            check(&detached, "src/a.rs", text, Some(expected));
        }
        let text = "use tokio::sync::mpsc; fn f() { tasks.spawn(g()); mpsc::channel(SLOTS) }";
        check(&detached, "src/a.rs", text, None);
        check(&detached, "src/dispatch/mod.rs", "use tokio::task::spawn_blocking;", None);
        check(&detached, "src/dispatch/mod.rs", "use std::thread::Builder;", Some("Builder"));
        check(&detached, "tests/a.rs", "fn f() { tokio::spawn(g()) }", None);
    }
}
