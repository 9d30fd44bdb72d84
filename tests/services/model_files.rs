//! Model folders, and models from files: structure, import and what may not be followed.

use std::os::unix::fs::symlink;
use std::path::Path;

use pilotlight::catalog::model::ModelEntry;
use pilotlight::models::{
    DownloadPace, ImportFinding, ModelFault, ModelState, ModelStore, Thoroughness, ensure, import,
    inspect,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::model_fixture::{models, names, sha256};
use crate::support::model_server::gguf;

/// A store below this folder.
fn store(root: &Path) -> ModelStore {
    let folder = root.join("store");
    ModelStore {
        folder,
        reserve_bytes: 0,
        cool_only: None,
        unmetered_only: None,
        pace: DownloadPace::default(),
    }
}

async fn load(entry: &ModelEntry, store: &ModelStore) -> Result<std::path::PathBuf, ModelFault> {
    ensure(entry, store, &|_| {}, &CancellationToken::new()).await
}

fn state(entry: &ModelEntry, store: &ModelStore, how: Thoroughness) -> ModelState {
    inspect(store, entry, how, &CancellationToken::new()).unwrap()
}

/// The entry of a folder with these files, which are written below `root`.
fn folder(root: &Path, files: &[(&str, Vec<u8>)]) -> ModelEntry {
    let source = root.join("source");
    let listed = files.iter().map(|(path, content)| {
        let at = source.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, content).unwrap();
        json!({"path": path, "sha256": sha256(content), "bytes": content.len()})
    });
    let files: Vec<Value> = listed.collect();
    models(&json!({"enc": {"source": source, "licence": "mit", "files": files}})).remove(0)
}

fn file(name: &str, source: &Path, content: &[u8]) -> ModelEntry {
    let (digest, bytes) = (sha256(content), content.len());
    let entry = json!({"source": source, "sha256": digest, "bytes": bytes, "licence": "mit"});
    models(&json!({name: entry})).remove(0)
}

/// A protobuf field with bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128);
    [&[number << 3 | 2, length][..], content].concat()
}

/// An ONNX graph with one tensor, whose data are at this place of another file.
fn graph(location: &str, length: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| {
        field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
    };
    let data = [entry("location", location), entry("length", length), vec![0x70, 1]].concat();
    field(7, &field(5, &data))
}

#[tokio::test]
async fn a_folder_is_loaded_and_verified() {
    let root = tempfile::tempdir().unwrap();
    let files = [
        ("onnx/model.onnx", graph("model.onnx_data", "40")),
        ("onnx/model.onnx_data", vec![1; 40]),
        ("config.json", b"{}".to_vec()),
        (
            "genai_config.json",
            br#"{"model": {"decoder": {"filename": "onnx/model.onnx"}}}"#.to_vec(),
        ),
    ];
    let entry = folder(root.path(), &files);
    let store = store(root.path());
    assert_eq!(state(&entry, &store, Thoroughness::Receipt), ModelState::Missing);
    let path = load(&entry, &store).await.unwrap();
    for (file, content) in &files {
        assert_eq!(std::fs::read(path.join(file)).unwrap(), *content);
    }
    assert_eq!(names(&store.folder), ["enc"]);
    assert_eq!(state(&entry, &store, Thoroughness::Digest), ModelState::Present);
    // the digest of the folder is what sha256sum of coreutils says of its files
    let lines = std::process::Command::new("sh")
        .args(["-c", "find . -type f | LC_ALL=C sort | xargs sha256sum"])
        .current_dir(&path)
        .output()
        .unwrap();
    assert_eq!(sha256(&lines.stdout), entry.digest());
    // prepacked weights of ONNX Runtime are no part of it, other files are
    std::fs::create_dir(path.join("prepared-1")).unwrap();
    std::fs::write(path.join("prepared-1/x"), "x").unwrap();
    assert_eq!(state(&entry, &store, Thoroughness::Receipt), ModelState::Present);
    for other in ["chat_template.jinja", "onnx/other"] {
        std::fs::write(path.join(other), "x").unwrap();
        let found = state(&entry, &store, Thoroughness::Receipt);
        assert!(matches!(&found, ModelState::Differs(why) if why.contains(other)), "{found:?}");
        std::fs::remove_file(path.join(other)).unwrap();
    }
    // the same bytes by way of a link are not those that were checked
    std::fs::remove_file(path.join("config.json")).unwrap();
    symlink(root.path().join("source/config.json"), path.join("config.json")).unwrap();
    let found = state(&entry, &store, Thoroughness::Receipt);
    assert!(matches!(&found, ModelState::Differs(why) if why.contains("no file")), "{found:?}");
    // and loading it again repairs it
    load(&entry, &store).await.unwrap();
    assert_eq!(state(&entry, &store, Thoroughness::Digest), ModelState::Present);
    assert!(!path.join("config.json").is_symlink());
    assert_eq!(names(&store.folder), ["enc"]);
}

#[tokio::test]
async fn external_data_stay_in_the_folder() {
    let data = ("data", vec![1; 40]);
    for (what, graph, expected) in [
        ("above", graph("../data", "40"), "\"../data\""),
        ("absolute", graph("/etc/passwd", "4"), "\"/etc/passwd\""),
        ("by a detour", graph("x/../data", "40"), "\"x/../data\""),
        ("in memory", graph("*/_ORT_MEM_ADDR_/*", "40"), "_ORT_MEM_ADDR_"),
        ("not listed", graph("other", "40"), "\"other\""),
        ("nowhere", graph("", "40"), "\"\""),
        ("beyond the end", graph("data", "41"), "beyond the end of data"),
        ("beyond all", graph("data", "18446744073709551615"), "beyond the end of data"),
        ("no number", graph("data", "-1"), "length of external data"),
        ("no graph", b"\x08\x08".to_vec(), "no graph"),
        ("no ONNX", b"<html>".to_vec(), "no ONNX file"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let entry = folder(root.path(), &[("model.onnx", graph), data.clone()]);
        let store = store(root.path());
        let fault = load(&entry, &store).await.unwrap_err();
        assert!(matches!(fault, ModelFault::Damaged { .. }), "{what}: {fault:?}");
        assert!(fault.to_string().contains(expected), "{what}: {fault}");
        assert_eq!(names(&store.folder), Vec::<String>::new(), "{what}");
    }
    for (config, text) in [
        ("genai_config.json", r#"{"model": {"decoder": {"filename": "../../x.onnx"}}}"#),
        ("genai_config.json", r#"{"model": {"encoder": {"filename": "data"}}}"#),
        ("config.json", r#"{"filename": "/tmp/x.onnx"}"#),
        ("config.json", r#"{"filename": 5}"#),
        ("config.json", "{"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let files =
            [("model.onnx", graph("data", "40")), data.clone(), (config, text.as_bytes().to_vec())];
        let fault = load(&folder(root.path(), &files), &store(root.path())).await.unwrap_err();
        assert!(matches!(&fault, ModelFault::Damaged { file, .. } if file == config), "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_on_disk_is_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let (content, source) = (gguf(5000, 1), root.path().join("source.gguf"));
    std::fs::write(&source, &content).unwrap();
    let (store, entry) = (store(root.path()), file("m.gguf", &source, &content));
    let path = load(&entry, &store).await.unwrap();
    assert_eq!(state(&entry, &store, Thoroughness::Receipt), ModelState::Present);
    // a byte that changed, in a file of the same length and time of modification
    let time = path.metadata().unwrap().modified().unwrap();
    let mut damaged = content.clone();
    damaged[4000] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, damaged).unwrap();
    std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
    for how in [Thoroughness::Receipt, Thoroughness::Digest] {
        let found = state(&entry, &store, how);
        assert!(matches!(&found, ModelState::Differs(why) if why.contains("SHA-256")), "{found:?}");
    }
    std::fs::write(&path, "short").unwrap();
    let found = state(&entry, &store, Thoroughness::Receipt);
    assert!(matches!(&found, ModelState::Differs(why) if why.contains("5 bytes")), "{found:?}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(store.folder.join("m.gguf.part"), [0; 1250]).unwrap();
    assert_eq!(state(&entry, &store, Thoroughness::Receipt), ModelState::Partial(1250));
    // a folder in its place, and a file in the place of a folder
    std::fs::create_dir_all(path.join("x")).unwrap();
    assert!(matches!(state(&entry, &store, Thoroughness::Receipt), ModelState::Differs(_)));
    load(&entry, &store).await.unwrap();
    assert_eq!(state(&entry, &store, Thoroughness::Digest), ModelState::Present);
    let entry = folder(root.path(), &[("model.onnx", graph("data", "4")), ("data", vec![1; 4])]);
    std::fs::write(store.folder.join("enc"), "x").unwrap();
    std::fs::write(store.folder.join("enc.part"), "x").unwrap();
    load(&entry, &store).await.unwrap();
    assert_eq!(names(&store.folder), ["enc", "m.gguf"]);
    // a digest that changes under the same name
    let other = gguf(5000, 2);
    let entry = file("m.gguf", &source, &other);
    assert!(matches!(state(&entry, &store, Thoroughness::Receipt), ModelState::Differs(_)));
    let fault = load(&entry, &store).await.unwrap_err();
    assert!(matches!(fault, ModelFault::WrongDigest { .. }), "{fault:?}");
    std::fs::write(&source, "short").unwrap();
    let fault = load(&entry, &store).await.unwrap_err();
    assert!(matches!(fault, ModelFault::WrongLength { .. }), "{fault:?}");
    std::fs::remove_file(&source).unwrap();
    nix::unistd::mkfifo(&source, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fault = load(&entry, &store).await.unwrap_err();
    assert!(fault.to_string().contains("no file"), "{fault}");
    assert_eq!(sha256(&std::fs::read(&path).unwrap()), sha256(&content));
}

#[tokio::test]
async fn models_are_found_by_their_digests() {
    let root = tempfile::tempdir().unwrap();
    let stick = root.path().join("stick");
    let nowhere = root.path().join("nowhere");
    let (one, two, damaged) = (gguf(5000, 1), gguf(6000, 2), gguf(7000, 3));
    let far = stick.join("a/b/c");
    std::fs::create_dir_all(&far).unwrap();
    // other names, an identical copy, a damaged one beside the good one
    std::fs::write(far.join("IMG_0001.JPG"), &one).unwrap();
    std::fs::write(stick.join("copy of it"), &one).unwrap();
    let mut flipped = two.clone();
    flipped[5000] ^= 1;
    std::fs::write(stick.join("0-damaged.gguf"), &flipped).unwrap();
    std::fs::write(stick.join("two.gguf"), &two).unwrap();
    let mut flipped = damaged.clone();
    flipped[5000] ^= 1;
    std::fs::write(stick.join("three.gguf"), &flipped).unwrap();
    // circles, and a way out
    symlink(&stick, far.join("circle")).unwrap();
    symlink("self", stick.join("self")).unwrap();
    let outside = root.path().join("outside.gguf");
    let linked = gguf(8000, 4);
    std::fs::write(&outside, &linked).unwrap();
    symlink(&outside, stick.join("linked.gguf")).unwrap();
    nix::unistd::mkfifo(&stick.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut wanted = vec![
        file("one.gguf", &nowhere, &one),
        file("two.gguf", &nowhere, &two),
        file("three.gguf", &nowhere, &damaged),
        file("linked.gguf", &nowhere, &linked),
    ];
    let files = [("model.onnx", graph("weights", "4")), ("weights", vec![1; 4])];
    let mut onnx = folder(&stick, &files);
    for file in &mut onnx.files {
        file.source = pilotlight::catalog::model::ModelSource::File("/nowhere".to_owned());
    }
    std::fs::rename(stick.join("source/weights"), stick.join("w")).unwrap();
    wanted.push(onnx);
    let store = store(root.path());
    let cancel = CancellationToken::new();
    let found = import(&wanted, &stick, &store, &|_, _| {}, &cancel).await.unwrap();
    let finding = |name: &str| &found.iter().find(|(found, _)| found == name).unwrap().1;
    for name in ["one.gguf", "two.gguf", "enc"] {
        assert_eq!(*finding(name), ImportFinding::Imported, "{name}");
    }
    let damaged = [("three.gguf".to_owned(), vec![stick.join("three.gguf")])];
    assert_eq!(*finding("three.gguf"), ImportFinding::Missing(damaged.to_vec()));
    let missing = ImportFinding::Missing(vec![("linked.gguf".to_owned(), Vec::new())]);
    assert_eq!(*finding("linked.gguf"), missing);
    assert_eq!(names(&store.folder), ["enc", "one.gguf", "two.gguf"]);
    for entry in [&wanted[0], &wanted[1], &wanted[4]] {
        assert_eq!(state(entry, &store, Thoroughness::Digest), ModelState::Present);
    }
    assert_eq!(std::fs::read(far.join("IMG_0001.JPG")).unwrap(), one, "copied, not moved");
    // one file, and a link that is named
    let found =
        import(&wanted[3..4], &stick.join("linked.gguf"), &store, &|_, _| {}, &cancel).await;
    assert_eq!(found.unwrap()[0].1, ImportFinding::Imported);
    let found = import(&wanted[2..3], &nowhere, &store, &|_, _| {}, &cancel).await;
    assert!(matches!(found, Err(ModelFault::File { .. })), "{found:?}");
    // a right digest and a damaged head
    std::fs::write(stick.join("bad"), [7; 100]).unwrap();
    let found =
        import(&[file("bad.gguf", &nowhere, &[7; 100])], &stick, &store, &|_, _| {}, &cancel).await;
    let found = &found.unwrap()[0].1;
    assert!(matches!(found, ImportFinding::Failed(ModelFault::Damaged { .. })), "{found:?}");
    assert!(!store.folder.join("bad.gguf").exists());
}

#[tokio::test]
async fn folders_on_a_stick_are_bounded_in_depth() {
    let root = tempfile::tempdir().unwrap();
    let stick = root.path().join("stick");
    let content = gguf(5000, 1);
    let deep = (0..7).fold(stick.clone(), |path, n| path.join(n.to_string()));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("m.gguf"), &content).unwrap();
    let wanted = [file("m.gguf", Path::new("/nowhere"), &content)];
    let (store, cancel) = (store(root.path()), CancellationToken::new());
    let found = import(&wanted, &stick, &store, &|_, _| {}, &cancel).await.unwrap();
    assert!(matches!(found[0].1, ImportFinding::Missing(_)), "{found:?}");
    let found = import(&wanted, &stick.join("0"), &store, &|_, _| {}, &cancel).await.unwrap();
    assert_eq!(found[0].1, ImportFinding::Imported);
}
