//! Failures of a provider.

use std::process::Command;
use std::sync::LazyLock;

use super::cloud::{Act, KEY, ending, error, head, piece};

/// 100 MB that are 100 KB on the way.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let gzip = Command::new("sh").args(["-c", "head -c 100000000 /dev/zero | gzip"]).output();
    gzip.unwrap().stdout
});

fn bomb(kind: &str) -> Vec<u8> {
    [head("200 OK", kind, "content-encoding: gzip\r\n").as_bytes(), &BOMB].concat()
}

/// Each failure: its name, what the server does, and the wire name of the expected fault.
pub fn failures() -> Vec<(&'static str, Act, &'static str)> {
    let stream = |rest: &str| -> Vec<u8> {
        format!("{}{rest}", head("200 OK", "text/event-stream", "")).into()
    };
    let complaint = format!("Incorrect API key provided: {KEY}");
    let redirect = "location: http://169.254.169.254/latest\r\n";
    let zeros = vec![b'0'; 1 << 16];
    vec![
        ("bad key", error("401 Unauthorized", "", &complaint), "away"),
        ("bad request", error("400 Bad Request", "", "no"), "unfit"),
        ("no such model", error("404 Not Found", "", "no"), "unfit"),
        ("too many", error("429 Too Many Requests", "", "slow down"), "away"),
        ("broken inside", error("500 Internal Server Error", "", "oh"), "away"),
        ("overloaded", error("503 Service Unavailable", "", "oh"), "away"),
        ("redirect", error("302 Found", redirect, "moved"), "broken"),
        ("no answer", Act::Hang(Vec::new()), "hung"),
        ("silent in the head", Act::Hang(b"HTTP/1.1 200".to_vec()), "hung"),
        ("silent in the middle", Act::Hang(stream(&piece("a"))), "hung"),
        ("cut off", Act::Say(stream(&piece("a"))), "crashed"),
        ("half an event", Act::Say(stream("data: {\"choices\": [{\"del")), "crashed"),
        ("no JSON", Act::Say(stream("data: {\"choices\": [}\n\n")), "broken"),
        (
            "another page",
            Act::Say(format!("{}<html>", head("200 OK", "text/html", "")).into()),
            "broken",
        ),
        (
            "gave up",
            Act::Say(stream("data: {\"error\": {\"message\": \"overloaded\"}}\n\n")),
            "crashed",
        ),
        ("forbidden", Act::Say(stream(&ending("content_filter"))), "unfit"),
        ("tools", Act::Say(stream(&ending("tool_calls"))), "broken"),
        ("no HTTP", Act::Say(b"SSH-2.0-OpenSSH\r\n".to_vec()), "away"),
        ("an event without end", Act::Flood(stream("data: "), zeros.clone()), "broken"),
        ("pieces without end", Act::Flood(stream(""), piece(&"a".repeat(4000)).into()), "broken"),
        ("a bomb", Act::Say(bomb("application/json")), "broken"),
        ("a bomb of events", Act::Say(bomb("text/event-stream")), "broken"),
        (
            "a body without end",
            Act::Flood(head("200 OK", "application/json", "").into(), zeros),
            "broken",
        ),
    ]
}
