//! The model store against real HTTPS servers that cut, stall, lie and redirect.

use std::time::Duration;

use pilotlight::models::{ModelEvent, ModelFault, ensure};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::model_fixture::{Fixture, NAME, sha256};
use crate::support::model_server::{ModelServer, Request, Sent, gguf, reply, status, whole};
use crate::support::{SOON, pace};

/// Large enough for several reads of a connection.
const BYTES: usize = 3_000_000;

/// What a server of a test sends for a content.
type Make = fn(&[u8], &Request) -> Sent;
type Stall = fn(&[u8]) -> Sent;

/// A server that sends `first` to the first request, and what it should to others.
async fn once(first: impl Fn(&Request, &[u8]) -> Sent + Send + Sync + 'static) -> ModelServer {
    let content = gguf(BYTES, 1);
    ModelServer::start(move |request| match request.n {
        0 => first(request, &content),
        _ => Sent::All(reply(request, &content, "\"1\"")),
    })
    .await
}

/// The beginning of a reply, up to this byte of the content.
fn cut(content: &[u8], version: &str, at: usize) -> Vec<u8> {
    [whole(content, version), content[..at].to_vec()].concat()
}

/// The model is there in the end, with the right bytes and nothing beside it; returns the requests.
async fn is_loaded(server: &ModelServer, fixture: &Fixture) -> Vec<Request> {
    let content = gguf(BYTES, 1);
    let path = fixture.ensure(&fixture.entry(server, &content)).await.unwrap();
    assert_eq!(sha256(&std::fs::read(&path).unwrap()), sha256(&content));
    assert_eq!(fixture.files(), [NAME]);
    assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
    server.asked()
}

#[tokio::test]
async fn a_model_is_loaded_once() {
    let server = ModelServer::of(gguf(BYTES, 1)).await;
    let fixture = Fixture::new(&server);
    assert_eq!(is_loaded(&server, &fixture).await.len(), 1);
    let done =
        |event: &ModelEvent| matches!(event, ModelEvent::Received { done, bytes } if done == bytes);
    assert!(fixture.events.lock().unwrap().iter().any(done));
    assert_eq!(is_loaded(&server, &fixture).await.len(), 1, "it was there");
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_ended() {
    let server = once(|_, content| Sent::All(cut(content, "\"1\"", BYTES / 2))).await;
    let fixture = Fixture::new(&server);
    let asked = is_loaded(&server, &fixture).await;
    let [first, second] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((first.first(), second.first()), (None, Some(BYTES / 2)));
    assert_eq!(second.header("if-range"), Some("\"1\""));
}

#[tokio::test]
async fn another_version_is_loaded_from_its_first_byte() {
    // a server that compares versions
    let server = once(|_, _| {
        let other = gguf(BYTES, 9);
        Sent::All(cut(&other, "\"0\"", BYTES / 2))
    })
    .await;
    let fixture = Fixture::new(&server);
    let asked = is_loaded(&server, &fixture).await;
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[1].header("if-range"), Some("\"0\""));
    // one that does not: the tag tells
    let server = ModelServer::start(|request| match request.n {
        0 => Sent::All(cut(&gguf(BYTES, 9), "\"0\"", BYTES / 2)),
        _ => {
            let head = request.head.replace("if-range", "x-none");
            Sent::All(reply(&Request { head, ..request.clone() }, &gguf(BYTES, 1), "\"1\""))
        }
    })
    .await;
    let fixture = Fixture::new(&server);
    let asked = is_loaded(&server, &fixture).await;
    let firsts: Vec<_> = asked.iter().map(Request::first).collect();
    assert_eq!(firsts, [None, Some(BYTES / 2), None]);
    // one without tags: the digest tells
    let server = ModelServer::start(|request| {
        let content = gguf(BYTES, if request.n == 0 { 9 } else { 1 });
        let mut bytes = reply(request, &content, "W/\"weak\"");
        if request.n == 0 {
            bytes.truncate(BYTES / 2);
        }
        Sent::All(bytes)
    })
    .await;
    let fixture = Fixture::new(&server);
    let asked = is_loaded(&server, &fixture).await;
    assert!(asked.len() == 3 && asked[1].first().is_some() && asked[2].first().is_none());
    assert!(asked[1].header("if-range").is_none(), "a weak tag is not compared");
}

#[tokio::test]
async fn servers_without_ranges_are_asked_for_all() {
    let content = gguf(BYTES, 1);
    let server = ModelServer::start(move |request| match request.n {
        0 => Sent::All(cut(&content, "\"1\"", BYTES / 2)),
        // no such range, once
        1 => Sent::All(status("416 Range Not Satisfiable", "")),
        2 => Sent::All(cut(&content, "\"1\"", BYTES / 3)),
        // another range than asked for
        3 => Sent::All(status("206 Partial Content", "content-range: bytes 0-9/3000000\r\n")),
        4 => Sent::All(cut(&content, "\"1\"", BYTES / 4)),
        _ => Sent::All([whole(&content, "\"1\""), content.clone()].concat()),
    })
    .await;
    let fixture = Fixture::new(&server);
    let asked = is_loaded(&server, &fixture).await;
    let firsts: Vec<_> = asked.iter().map(Request::first).collect();
    assert_eq!(
        firsts,
        [None, Some(BYTES / 2), None, Some(BYTES / 3), None, Some(BYTES / 4)],
        "{:?}",
        fixture.retries()
    );
}

#[tokio::test]
async fn lengths_that_differ_end_the_download() {
    let content = gguf(BYTES, 1);
    let cases: [(&str, Make, usize, &str); 6] = [
        ("shorter", |c, _| Sent::All(cut(&c[..9], "\"1\"", 9)), 1, "sends 9 bytes"),
        (
            "longer",
            |c, _| {
                let long = [c, b"x"].concat();
                Sent::All([whole(&long, "\"1\""), long].concat())
            },
            1,
            "sends 3000001 bytes",
        ),
        (
            "chunks, shorter",
            |c, _| {
                let head = status("200 OK", "transfer-encoding: chunked\r\n");
                Sent::All([&head, &b"9\r\n"[..], &c[..9], b"\r\n0\r\n\r\n"].concat())
            },
            1,
            "ends after 9 bytes",
        ),
        (
            "without length, longer",
            |c, _| Sent::Flood(status("200 OK", ""), c.to_vec()),
            1,
            "sends more than 3000000 bytes",
        ),
        (
            "without length, shorter",
            |c, r| match r.n {
                0 => Sent::All([status("200 OK", ""), c[..9].to_vec()].concat()),
                _ => Sent::All(reply(r, &c[..9], "\"1\"")),
            },
            2,
            "has 9 bytes",
        ),
        (
            "a range of a longer one",
            |c, r| match r.n {
                0 => Sent::All(cut(c, "\"1\"", 9)),
                _ => Sent::All(reply(r, &[c, b"x"].concat(), "\"1\"")),
            },
            2,
            "has 3000001 bytes",
        ),
    ];
    for (what, make, requests, expected) in cases {
        let source = content.clone();
        let server = ModelServer::start(move |request| make(&source, request)).await;
        let fixture = Fixture::new(&server);
        let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
        assert!(matches!(fault, ModelFault::WrongLength { .. }), "{what}: {fault:?}");
        assert!(fault.to_string().contains(expected), "{what}: {fault}");
        assert_eq!((server.asked().len(), fixture.files()), (requests, Vec::new()), "{what}");
    }
}

#[tokio::test]
async fn a_file_with_another_digest_never_has_its_name() {
    let server = ModelServer::of(gguf(BYTES, 2)).await;
    let fixture = Fixture::new(&server);
    let fault = fixture.ensure(&fixture.entry(&server, &gguf(BYTES, 1))).await.unwrap_err();
    assert!(matches!(fault, ModelFault::WrongDigest { .. }), "{fault:?}");
    assert!(fault.to_string().contains(&sha256(&gguf(BYTES, 2))), "{fault}");
    assert_eq!((server.asked().len(), fixture.files()), (1, Vec::new()));
    // the one before stays until the right one is there
    let before = fixture.store.folder.join(NAME);
    std::fs::write(&before, "before").unwrap();
    fixture.ensure(&fixture.entry(&server, &gguf(BYTES, 1))).await.unwrap_err();
    assert_eq!(std::fs::read_to_string(&before).unwrap(), "before");
    fixture.ensure(&fixture.entry(&server, &gguf(BYTES, 2))).await.unwrap();
    assert_eq!(sha256(&std::fs::read(&before).unwrap()), sha256(&gguf(BYTES, 2)));
}

#[tokio::test]
async fn a_right_digest_does_not_make_a_damaged_head_right() {
    let mut overlong = gguf(BYTES, 1);
    overlong[8] = 1;
    for (content, expected) in
        [(vec![7; BYTES], "not a GGUF file"), (overlong, "damaged"), (b"GGUF".to_vec(), "damaged")]
    {
        let server = ModelServer::of(content.clone()).await;
        let fixture = Fixture::new(&server);
        let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
        assert!(matches!(fault, ModelFault::Damaged { .. }), "{fault:?}");
        assert!(fault.to_string().contains(expected), "{fault}");
        assert_eq!(fixture.files(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn stalled_servers_are_asked_again() {
    pace::watch();
    let cases: [(&str, Stall); 4] = [
        ("no head", |_| Sent::Hang(Vec::new())),
        ("no body", |c| Sent::Hang(whole(c, "\"1\""))),
        ("half", |c| Sent::Hang(cut(c, "\"1\"", BYTES / 2))),
        ("a byte now and then", |c| Sent::Drip(whole(c, "\"1\""), Duration::from_millis(5))),
    ];
    for (what, stall) in cases {
        let content = gguf(BYTES, 1);
        let source = content.clone();
        let server = ModelServer::start(move |request| match request.n {
            0 => stall(&source),
            _ => Sent::All(reply(request, &content, "\"1\"")),
        })
        .await;
        let mut fixture = Fixture::new(&server);
        fixture.store.pace.stall = pace::stretched(Duration::from_secs(1));
        let content = gguf(BYTES, 1);
        let done = fixture.ensure(&fixture.entry(&server, &content)).await;
        // the bytes of the slow one are not those of the file
        assert!(done.is_ok(), "{what}: {done:?} {:?}", fixture.retries());
        let why = fixture.retries().join(" ");
        assert!(
            why.contains("does not answer") || why.contains("stopped sending"),
            "{what}: {why}"
        );
    }
}

#[tokio::test]
async fn what_a_status_means() {
    let content = gguf(5000, 1);
    let cases: [(&str, &str, usize, bool); 12] = [
        ("404 Not Found", "", 1, false),
        ("410 Gone", "", 1, false),
        ("401 Unauthorized", "", 1, false),
        ("403 Forbidden", "", 1, false),
        ("416 Range Not Satisfiable", "", 1, false),
        ("204 No Content", "", 1, false),
        ("206 Partial Content", "content-range: bytes 0-4999/5000\r\n", 1, false),
        ("200 OK", "content-encoding: gzip\r\ncontent-length: 5000\r\n", 1, false),
        ("503 Unavailable", "", 2, true),
        ("429 Too Many Requests", "retry-after: 0\r\n", 2, true),
        ("500 Error", "", 2, true),
        // longer than a pull waits
        ("503 Unavailable", "retry-after: 3600\r\n", 1, false),
    ];
    for (line, more, requests, is_loaded) in cases {
        let source = content.clone();
        let server = ModelServer::start(move |request| match request.n {
            0 => Sent::All(status(line, more)),
            _ => Sent::All(reply(request, &source, "\"1\"")),
        })
        .await;
        let fixture = Fixture::new(&server);
        let done = fixture.ensure(&fixture.entry(&server, &content)).await;
        assert_eq!((server.asked().len(), done.is_ok()), (requests, is_loaded), "{line}: {done:?}");
        if let Err(fault) = done {
            let what = if more.contains("gzip") { "encoded" } else { &line[..3] };
            assert!(fault.to_string().contains(what), "{line}: {fault}");
            assert_eq!(fixture.files(), Vec::<String>::new(), "{line}");
        }
    }
    // a server that always fails is asked a bounded number of times
    let server = ModelServer::start(|_| Sent::All(status("502 Bad Gateway", ""))).await;
    let fixture = Fixture::new(&server);
    let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
    assert!(matches!(&fault, ModelFault::Unreachable(why) if why.contains("502")), "{fault:?}");
    assert_eq!(server.asked().len(), 6);
}

#[tokio::test]
async fn the_wait_that_a_server_states_is_kept() {
    let content = gguf(5000, 1);
    let source = content.clone();
    let server = ModelServer::start(move |request| match request.n {
        0 => Sent::All(status("429 Too Many Requests", "retry-after: 1\r\n")),
        _ => Sent::All(reply(request, &source, "\"1\"")),
    })
    .await;
    let fixture = Fixture::new(&server);
    let began = std::time::Instant::now();
    fixture.ensure(&fixture.entry(&server, &content)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_server_that_sends_the_same_bytes_again_is_given_up() {
    let content = gguf(BYTES, 1);
    let source = content.clone();
    // two million bytes each time, and never more
    let server = ModelServer::start(move |_| Sent::All(cut(&source, "\"1\"", 2_000_000))).await;
    let fixture = Fixture::new(&server);
    let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
    assert!(matches!(fault, ModelFault::Unreachable(_)), "{fault:?}");
    assert!(server.asked().len() <= 8, "{}", server.asked().len());
}

#[tokio::test]
async fn redirects_are_bounded_and_encrypted() {
    let content = gguf(5000, 1);
    let to = |place: &str| status("302 Found", &format!("location: {place}\r\n"));
    let source = content.clone();
    let server = ModelServer::start(move |request| match request.path.as_str() {
        "/m.gguf" => Sent::All(to("/cdn/m.gguf?signature=x")),
        _ => Sent::All(reply(request, &source, "\"1\"")),
    })
    .await;
    let fixture = Fixture::new(&server);
    fixture.ensure(&fixture.entry(&server, &content)).await.unwrap();
    assert_eq!(server.asked()[1].path, "/cdn/m.gguf?signature=x");
    for (place, requests, expected) in [
        ("/m.gguf", 6, "redirects more than 5 times"),
        ("http://localhost/m.gguf", 1, "not encrypted"),
        ("http://127.0.0.1:1/m.gguf", 1, "not encrypted"),
        ("file:///etc/passwd", 1, "not encrypted"),
        ("http://user:canary@[::1]/", 1, "not encrypted"),
        ("https://", 1, "redirects to no URL"),
    ] {
        let server = ModelServer::start(move |_| Sent::All(to(place))).await;
        let fixture = Fixture::new(&server);
        let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
        assert!(matches!(&fault, ModelFault::Refused(why) if why.contains(expected)), "{fault:?}");
        assert!(!fault.to_string().contains("canary"), "{fault}");
        assert_eq!(server.asked().len(), requests, "{place}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_trusted_sends_nothing() {
    let content = gguf(5000, 1);
    let server = ModelServer::of(content.clone()).await;
    let other = ModelServer::of(content.clone()).await;
    let fixture = Fixture::new(&other);
    let fault = fixture.ensure(&fixture.entry(&server, &content)).await.unwrap_err();
    assert!(fault.to_string().contains("certificate"), "{fault}");
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn a_disk_without_room_is_not_written_to() {
    let server = ModelServer::of(gguf(BYTES, 1)).await;
    let fixture = Fixture::new(&server);
    let fault = fixture.ensure(&fixture.entry_of(&server, &"0a".repeat(32), 1 << 40)).await;
    let fault = fault.unwrap_err();
    assert!(matches!(fault, ModelFault::NoRoom { .. }), "{fault:?}");
    // the reserve counts too
    let mut fixture = Fixture::new(&server);
    fixture.store.reserve_bytes = 1 << 60;
    let fault = fixture.ensure(&fixture.entry(&server, &gguf(BYTES, 1))).await.unwrap_err();
    assert!(matches!(fault, ModelFault::NoRoom { .. }), "{fault:?}");
    assert_eq!((server.asked().len(), fixture.files()), (0, Vec::new()));
    drop(fixture.folder);
}

#[tokio::test]
async fn a_cancelled_download_keeps_what_has_arrived() {
    let content = gguf(BYTES, 1);
    let source = content.clone();
    let server = ModelServer::start(move |request| match request.n {
        0 => Sent::Hang(cut(&source, "\"1\"", BYTES / 2)),
        _ => Sent::All(reply(request, &source, "\"1\"")),
    })
    .await;
    let fixture = Fixture::new(&server);
    let entry = fixture.entry(&server, &content);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let half = (BYTES / 2) as u64;
    let told = move |event: &ModelEvent| {
        if matches!(event, ModelEvent::Received { done, .. } if *done == half) {
            stop.cancel();
        }
    };
    let done = ensure(&entry, &fixture.store, &told, &cancel);
    let done = tokio::time::timeout(SOON, done).await.unwrap();
    assert_eq!(done, Err(ModelFault::Cancelled));
    assert_eq!(fixture.files(), ["m.gguf.part", "m.gguf.part.json"]);
    let asked = is_loaded(&server, &fixture).await;
    assert_eq!(asked[1].first(), Some(BYTES / 2));
}

#[tokio::test]
async fn a_part_of_another_model_is_not_used() {
    let server = ModelServer::of(gguf(BYTES, 1)).await;
    let fixture = Fixture::new(&server);
    std::fs::create_dir_all(&fixture.store.folder).unwrap();
    let part = fixture.store.folder.join("m.gguf.part");
    for (what, validator) in [
        ("none", String::new()),
        ("damaged", "{".to_owned()),
        (
            "another digest",
            json!({"sha256": "0a".repeat(32), "bytes": BYTES, "source": "x", "version": null}).to_string(),
        ),
        (
            "longer than the file",
            json!({"sha256": sha256(&gguf(BYTES, 1)), "bytes": BYTES, "source": "x", "version": null})
                .to_string(),
        ),
    ] {
        let _ = std::fs::remove_file(fixture.store.folder.join(NAME));
        let length = if what.starts_with("longer") { BYTES + 1 } else { 1000 };
        std::fs::write(&part, vec![0; length]).unwrap();
        std::fs::write(fixture.store.folder.join("m.gguf.part.json"), validator).unwrap();
        let asked = is_loaded(&server, &fixture).await;
        assert_eq!(asked.last().unwrap().first(), None, "{what}");
    }
    // a link in its place is not followed
    let outside = fixture.folder.path().join("outside");
    std::fs::write(&outside, "precious").unwrap();
    std::fs::remove_file(fixture.store.folder.join(NAME)).unwrap();
    std::os::unix::fs::symlink(&outside, &part).unwrap();
    let fault = fixture.ensure(&fixture.entry(&server, &gguf(BYTES, 1))).await.unwrap_err();
    assert!(matches!(fault, ModelFault::File { .. }), "{fault:?}");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "precious");
}
