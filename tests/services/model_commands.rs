//! `pilotlight model pull`, `list`, `verify`, `prune` and `import`: the program itself, also killed, twice
//! at once, and on a warm board.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::model_fixture::{names, sha256};
use crate::support::model_server::{ModelServer, Request, Sent, gguf, reply, whole};
use crate::support::service::{program, signal};
use crate::support::{PROGRAM, SOON};

const BYTES: usize = 2_000_000;

/// A folder with a configuration, a state folder and no sensors.
struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    fn new(models: &Value, ours: Value) -> Board {
        let board = Board { folder: tempfile::tempdir().unwrap() };
        board.configure(models, ours);
        board
    }

    fn configure(&self, models: &Value, mut ours: Value) {
        ours["models"] = models.clone();
        let servers = json!({
            "local": {"command": "pilotlight", "args": ["engine", "--gguf", "a.gguf"]},
            "joined": {"command": "pilotlight", "args": ["engine", "--gguf=b.gguf", "--name", "b"]},
            "encoder": {"command": "pilotlight", "args": ["engine", "--onnx", "enc"]},
            "other": {"command": "tool", "args": ["engine", "--gguf", "a.gguf"]},
        });
        let file = json!({"mcpServers": servers, "pilotlight": ours});
        std::fs::write(self.folder.path().join("mcp.json"), file.to_string()).unwrap();
    }

    fn env(&self) -> [(&'static str, PathBuf); 3] {
        let path = self.folder.path();
        [
            ("PILOTLIGHT_STATE", path.join("state")),
            ("PILOTLIGHT_SENSORS", path.join("sensors")),
            ("PILOTLIGHT_MQTT", "off".into()),
        ]
    }

    async fn model(&self, args: &[&str]) -> (i32, String, String) {
        let env = self.env();
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.to_str().unwrap())).collect();
        program(self.folder.path(), &[&["model"], args].concat(), &env).await
    }

    /// Starts a command and does not wait.
    fn start(&self, args: &[&str]) -> Child {
        Command::new(PROGRAM)
            .arg("model")
            .args(args)
            .current_dir(self.folder.path())
            .envs(self.env())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("state/models")
    }

    async fn list(&self) -> Vec<Value> {
        let (code, out, err) = self.model(&["list", "--json"]).await;
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    }

    async fn states(&self) -> Vec<String> {
        let all = self.list().await;
        all.iter().map(|model| model["state"].as_str().unwrap().to_owned()).collect()
    }
}

/// The entry of a model of this server.
fn entry(server: &ModelServer, ca: &Path, path: &str, content: &[u8]) -> Value {
    std::fs::write(ca, &server.certificate).unwrap();
    let source = format!("{}/{path}", server.url);
    json!({
        "source": source, "sha256": sha256(content), "bytes": content.len(), "licence": "apache-2.0",
        "ca": ca,
    })
}

/// Waits until a line of the stream has this text; it must come.
async fn until_line(stream: impl tokio::io::AsyncRead + Unpin, wanted: &str) {
    let mut lines = BufReader::new(stream).lines();
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(wanted) {
                return;
            }
        }
        panic!("no line has {wanted:?}");
    };
    tokio::time::timeout(SOON, found).await.unwrap();
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !is_so() {
        assert!(tokio::time::Instant::now() < end, "not {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ended(mut child: Child) -> i32 {
    let status = tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
    status.code().unwrap_or(-1)
}

#[tokio::test]
async fn from_pull_to_prune() {
    let (a, b) = (gguf(BYTES, 1), gguf(BYTES, 2));
    let (serve_a, serve_b) = (a.clone(), b.clone());
    let server = ModelServer::start(move |request| {
        let content = if request.path == "/a" { &serve_a } else { &serve_b };
        Sent::All(reply(request, content, "\"1\""))
    })
    .await;
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().join("ca.pem");
    let mut elsewhere = entry(&server, &ca, "c", &a);
    elsewhere["boards"] = json!(["riscv*", "raspberrypi,9*"]);
    let models = json!({
        "a.gguf": entry(&server, &ca, "a", &a),
        "b.gguf": entry(&server, &ca, "b", &b),
        "c.gguf": elsewhere,
    });
    let board = Board::new(&models, json!({}));
    assert_eq!(board.states().await, ["missing", "missing", "missing"]);
    let (code, out, _) = board.model(&["verify"]).await;
    assert_eq!(code, 3, "{out}");

    let (code, out, err) = board.model(&["pull"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("a.gguf: loaded, 2.0 MB") && out.contains("b.gguf: loaded"), "{out}");
    assert!(err.contains("a.gguf: 100 % of 2.0 MB"), "{err}");
    assert_eq!(names(&board.store()), ["a.gguf", "b.gguf"]);
    let all = board.list().await;
    let servers: Vec<&Value> = all.iter().map(|model| &model["servers"]).collect();
    assert_eq!(servers, [&json!(["local"]), &json!(["joined"]), &json!([])]);
    let states: Vec<_> =
        all.iter().map(|m| (m["state"].clone(), m["for_this_board"].clone())).collect();
    let expected = [("present", true), ("present", true), ("missing", false)];
    assert_eq!(states, expected.map(|(state, is_for)| (json!(state), json!(is_for))));
    let (_, out, _) = board.model(&["list"]).await;
    assert!(out.contains("apache-2.0  present                    local"), "{out}");
    let (code, out, _) = board.model(&["verify"]).await;
    assert!(code == 0 && out == "a.gguf: ok\nb.gguf: ok\n", "{out}");
    let (code, out, _) = board.model(&["pull", "a.gguf"]).await;
    assert!(code == 0 && out == "a.gguf: present\n", "{out}");
    assert_eq!(server.asked().len(), 2);

    // names that can't be pulled
    for (name, expected) in [
        ("c.gguf", "is for the boards riscv*, raspberrypi,9*"),
        ("../a.gguf", "is not in pilotlight.models"),
    ] {
        let (code, _, err) = board.model(&["pull", name]).await;
        assert!(code == 2 && err.contains(expected), "{err}");
    }

    // a flipped bit
    let path = board.store().join("b.gguf");
    let mut damaged = b.clone();
    damaged[BYTES / 2] ^= 0x10;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, damaged).unwrap();
    let (code, out, err) = board.model(&["verify"]).await;
    assert_eq!(code, 3);
    assert!(out.contains("a.gguf: ok\nb.gguf: damaged"), "{out}");
    assert!(err.contains("not as in mcp.json: b.gguf;"), "{err}");
    assert_eq!(board.states().await, ["present", "differs", "missing"]);
    assert_eq!(board.model(&["pull"]).await.0, 0);
    assert_eq!(board.model(&["verify"]).await.0, 0);

    // b is named by nothing but the previous configuration of the fleet
    board.configure(&json!({"a.gguf": models["a.gguf"]}), json!({}));
    let fleet = board.folder.path().join("state/fleet");
    std::fs::create_dir_all(&fleet).unwrap();
    let before = json!({"config": json!({"pilotlight": {"models": {"b.gguf": {}}}}).to_string()});
    std::fs::write(fleet.join("previous.json"), before.to_string()).unwrap();
    for name in ["old.gguf", "old2.gguf.part", "old2.gguf.part.json", "a.gguf.part"] {
        std::fs::write(board.store().join(name), "x").unwrap();
    }
    std::os::unix::fs::symlink(board.folder.path(), board.store().join("link")).unwrap();
    let (code, out, _) = board.model(&["prune"]).await;
    assert_eq!(code, 0);
    for name in ["old.gguf", "old2.gguf.part", "a.gguf.part", "link"] {
        assert!(out.contains(&format!("would remove {name},")), "{out}");
    }
    assert!(!out.contains("b.gguf") && out.contains("model prune --yes"), "{out}");
    assert_eq!(names(&board.store()).len(), 7);
    let (code, out, _) = board.model(&["prune", "--yes"]).await;
    assert!(code == 0 && out.contains("removed old.gguf"), "{out}");
    assert_eq!(names(&board.store()), ["a.gguf", "b.gguf"]);
    assert!(board.folder.path().join("mcp.json").exists(), "the link was removed, not its target");
    // a state of the fleet that can't be read keeps everything
    std::fs::remove_file(fleet.join("previous.json")).unwrap();
    std::os::unix::fs::symlink("previous.json", fleet.join("previous.json")).unwrap();
    let (code, _, err) = board.model(&["prune", "--yes"]).await;
    assert!(code == 1 && err.contains("previous.json"), "{err}");
    std::fs::remove_file(fleet.join("previous.json")).unwrap();
    assert_eq!(board.model(&["prune", "--yes"]).await.0, 0);
    assert_eq!(names(&board.store()), ["a.gguf"]);
}

#[tokio::test]
async fn a_killed_download_goes_on() {
    let content = gguf(BYTES, 1);
    let source = content.clone();
    let server = ModelServer::start(move |request| match request.n {
        0 => Sent::Hang([whole(&source, "\"1\""), source[..BYTES / 2].to_vec()].concat()),
        1 => {
            let mut bytes = reply(request, &source, "\"1\"");
            bytes.truncate(bytes.len() - BYTES / 4);
            Sent::Hang(bytes)
        }
        _ => Sent::All(reply(request, &source, "\"1\"")),
    })
    .await;
    let scratch = tempfile::tempdir().unwrap();
    let models = json!({"a.gguf": entry(&server, &scratch.path().join("ca"), "a", &content)});
    let board = Board::new(&models, json!({}));
    let part = board.store().join("a.gguf.part");
    let has = |bytes: usize| part.metadata().is_ok_and(|meta| meta.len() == bytes as u64);
    // without a chance to write anything
    let mut child = board.start(&["pull"]);
    until("half of it is there", || has(BYTES / 2)).await;
    child.kill().await.unwrap();
    let all = board.list().await;
    assert_eq!(
        (&all[0]["state"], &all[0]["partial_bytes"]),
        (&json!("partial"), &json!(BYTES / 2))
    );
    let (_, out, _) = board.model(&["list"]).await;
    assert!(out.contains("partial 50 %"), "{out}");
    // with Ctrl-C
    let child = board.start(&["pull", "--json"]);
    until("three quarters are there", || has(BYTES / 4 * 3)).await;
    signal(child.id().unwrap().cast_signed(), Signal::SIGINT);
    let out = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let lines = String::from_utf8(out.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["error"]["code"]), (&json!("failed"), &json!("cancelled")));
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["done"]), (&json!("progress"), &json!(BYTES / 2)));
    assert!(has(BYTES / 4 * 3));
    // to its end
    let (code, out, err) = board.model(&["pull"]).await;
    assert!(code == 0 && out.contains("a.gguf: loaded"), "{out}{err}");
    let firsts: Vec<_> = server.asked().iter().map(Request::first).collect();
    assert_eq!(firsts, [None, Some(BYTES / 2), Some(BYTES / 4 * 3)]);
    let versions = server.asked().iter().skip(1).all(|r| r.header("if-range") == Some("\"1\""));
    assert!(versions);
    assert_eq!(std::fs::read(board.store().join("a.gguf")).unwrap(), content);
}

#[tokio::test]
async fn one_model_is_loaded_by_one_process() {
    let content = gguf(BYTES, 1);
    let source = content.clone();
    let server =
        ModelServer::start(move |_| Sent::Gate(whole(&source, "\"1\""), source.clone())).await;
    let scratch = tempfile::tempdir().unwrap();
    let models = json!({"a.gguf": entry(&server, &scratch.path().join("ca"), "a", &content)});
    let board = Board::new(&models, json!({}));
    let first = board.start(&["pull"]);
    until("asked", || server.asked().len() == 1).await;
    let mut second = board.start(&["pull"]);
    until_line(second.stderr.take().unwrap(), "another process loads or checks the same model")
        .await;
    server.open_gate();
    assert_eq!((ended(first).await, ended(second).await), (0, 0));
    assert_eq!(server.asked().len(), 1);
    assert_eq!(std::fs::read(board.store().join("a.gguf")).unwrap(), content);
}

#[tokio::test]
async fn two_downloads_at_most_run_at_a_time() {
    let contents: Arc<Vec<Vec<u8>>> = Arc::new((0..4).map(|n| gguf(BYTES, n)).collect());
    let source = Arc::clone(&contents);
    let server = ModelServer::start(move |request| {
        let content = &source[request.path[1..].parse::<usize>().unwrap()];
        Sent::Gate(whole(content, "\"1\""), content.clone())
    })
    .await;
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().join("ca");
    let mut models = json!({});
    for (n, content) in contents.iter().enumerate() {
        models[format!("{n}.gguf")] = entry(&server, &ca, &n.to_string(), content);
    }
    let board = Board::new(&models, json!({}));
    let first = board.start(&["pull", "0.gguf", "1.gguf", "2.gguf"]);
    until("two are asked for", || server.asked().len() == 2).await;
    let mut other = board.start(&["pull", "3.gguf"]);
    until_line(other.stderr.take().unwrap(), "as many downloads as permitted are running").await;
    assert_eq!(server.asked().len(), 2);
    // one of them ends
    server.open_gate();
    assert_eq!((ended(first).await, ended(other).await), (0, 0));
    assert_eq!(names(&board.store()).len(), 4);
}

#[tokio::test]
async fn a_warm_board_waits() {
    let content = gguf(BYTES, 1);
    let server = ModelServer::of(content.clone()).await;
    let scratch = tempfile::tempdir().unwrap();
    let models = json!({"a.gguf": entry(&server, &scratch.path().join("ca"), "a", &content)});
    let board = Board::new(&models, json!({"policy": {"models_download": {"only_cool": true}}}));
    let zone = board.folder.path().join("sensors/sys/class/thermal/thermal_zone0");
    std::fs::create_dir_all(&zone).unwrap();
    std::fs::write(zone.join("type"), "cpu-thermal\n").unwrap();
    std::fs::write(zone.join("temp"), "95000\n").unwrap();
    let mut child = board.start(&["pull"]);
    until_line(child.stderr.take().unwrap(), "the board is too warm").await;
    assert_eq!(server.asked().len(), 0);
    std::fs::write(zone.join("temp"), "45000\n").unwrap();
    assert_eq!(ended(child).await, 0);
    assert_eq!(names(&board.store()), ["a.gguf"]);
    // without the policy
    std::fs::write(zone.join("temp"), "95000\n").unwrap();
    std::fs::remove_file(board.store().join("a.gguf")).unwrap();
    board.configure(&models, json!({}));
    assert_eq!(board.model(&["pull"]).await.0, 0);
}

#[tokio::test]
async fn a_board_on_a_metered_network_waits() {
    let content = gguf(BYTES, 1);
    let server = ModelServer::of(content.clone()).await;
    let scratch = tempfile::tempdir().unwrap();
    let models = json!({"a.gguf": entry(&server, &scratch.path().join("ca"), "a", &content)});
    let policy = json!({"models_download": {"only_unmetered": true}});
    let board = Board::new(&models, json!({"policy": policy}));
    let routes = board.folder.path().join("sensors/proc/net");
    std::fs::create_dir_all(&routes).unwrap();
    let route = |interface: &str| {
        let line = format!("{interface}\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n");
        std::fs::write(routes.join("route"), line).unwrap();
    };
    route("wwan0");
    let mut child = board.start(&["pull"]);
    until_line(child.stderr.take().unwrap(), "the network interface wwan0 is metered").await;
    assert_eq!(server.asked().len(), 0);
    route("wlan0");
    assert_eq!(ended(child).await, 0);
    assert_eq!(names(&board.store()), ["a.gguf"]);
    // a hotspot that the operator lists
    std::fs::remove_file(board.store().join("a.gguf")).unwrap();
    let limits = json!({"metered_interfaces": ["wlan*"]});
    board.configure(&models, json!({"policy": policy, "device_limits": limits}));
    let mut child = board.start(&["pull"]);
    until_line(child.stderr.take().unwrap(), "the network interface wlan0 is metered").await;
    route("wwan0");
    assert_eq!(ended(child).await, 0);
    // a stick is no network
    std::fs::remove_file(board.store().join("a.gguf")).unwrap();
    route("wlan0");
    let stick = scratch.path().join("stick");
    std::fs::create_dir(&stick).unwrap();
    std::fs::write(stick.join("a"), &content).unwrap();
    assert_eq!(board.model(&["import", stick.to_str().unwrap()]).await.0, 0);
}

#[tokio::test]
async fn a_stick_replaces_the_network() {
    let content = gguf(BYTES, 1);
    let server = ModelServer::of(content.clone()).await;
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().join("ca");
    let lost = gguf(BYTES, 2);
    let models = json!({
        "a.gguf": entry(&server, &ca, "a", &content), "b.gguf": entry(&server, &ca, "b", &lost),
    });
    let board = Board::new(&models, json!({}));
    let stick = scratch.path().join("stick");
    std::fs::create_dir(&stick).unwrap();
    std::fs::write(stick.join("renamed.bin"), &content).unwrap();
    let stick = stick.to_str().unwrap();
    let (code, out, err) = board.model(&["import", stick]).await;
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("a.gguf: imported\n") && out.contains("b.gguf: not found in"), "{out}");
    std::fs::write(Path::new(stick).join("other.bin"), &lost).unwrap();
    let (code, out, err) = board.model(&["import", stick]).await;
    assert!(code == 0 && out == "a.gguf: present\nb.gguf: imported\n", "{out}{err}");
    assert_eq!(server.asked().len(), 0);
    assert_eq!(board.model(&["verify"]).await.0, 0);
}

#[tokio::test]
async fn authorities_of_the_system_and_proxies_for_loopback() {
    let content = gguf(BYTES, 1);
    let server = ModelServer::of(content.clone()).await;
    let scratch = tempfile::tempdir().unwrap();
    let ca = scratch.path().join("ca");
    let mut model = entry(&server, &ca, "a", &content);
    model.as_object_mut().unwrap().remove("ca");
    let board = Board::new(&json!({"a.gguf": model}), json!({}));
    let env = [("SSL_CERT_FILE", ca.to_str().unwrap()), ("https_proxy", "http://127.0.0.1:1")];
    let state = board.folder.path().join("elsewhere");
    let env = [&env[..], &[("PILOTLIGHT_MODELS", state.to_str().unwrap())]].concat();
    let (code, out, err) = program(board.folder.path(), &["model", "pull"], &env).await;
    assert!(code == 0, "{out}{err}");
    assert_eq!(names(&state), ["a.gguf"]);
    // a model without a folder for it
    let (code, _, err) =
        program(board.folder.path(), &["check"], &[("PILOTLIGHT_STATE", "off")]).await;
    assert!(code == 2 && err.contains("mcpServers.local.args: a.gguf is a model"), "{err}");
    // a file of the current folder has precedence
    std::fs::write(board.folder.path().join("a.gguf"), &content).unwrap();
    let (code, _, err) =
        program(board.folder.path(), &["check"], &[("PILOTLIGHT_STATE", "off")]).await;
    assert!(code == 0, "{err}");
}
