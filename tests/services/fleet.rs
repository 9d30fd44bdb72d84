//! Signed configurations with the real tools: keys and signatures of minisign and of this program, the
//! checks of a device, and its own configurations.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use pilotlight::fleet::digest::Digest;
use pilotlight::fleet::moment::Moment;
use pilotlight::store::slots::{ConfigSlot, DiskFolder, Slots};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::support::SOON;
use crate::support::service::program;

const NOW: Moment = Moment(1_795_744_800);

/// A folder with the `mcp.json` of a device, a trust policy, a key and a remote configuration.
struct Plant {
    folder: tempfile::TempDir,
}

impl Plant {
    async fn new() -> Plant {
        let plant = Plant { folder: tempfile::tempdir().unwrap() };
        let device = json!({
            "mcpServers": {"local": {"command": "pilotlight", "args": ["engine", "--scripted", "x"]}},
            "pilotlight": {
                "device": {"name": "pi-7", "group": "line-3"},
                "mqtt": {"url": "off"},
                "policy": {"redact": ["email"]},
                "tasks": {"t": {"template": "old"}},
            },
        });
        plant.write("mcp.json", &device.to_string());
        plant.write("remote.json", &remote(&json!({})).to_string());
        plant.run(&["config", "keygen", "ops", "--no-password"], 0).await;
        plant.trust(&json!({}));
        plant
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn public_key(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().nth(1).unwrap().to_owned()
    }

    /// Writes the trust policy, with these members besides.
    fn trust(&self, more: &Value) {
        let mut policy = json!({
            "fleet": "plant-a",
            "keys": {"ops-2026": {
                "public_key": self.public_key("ops.pub"), "targets": ["device", "group", "fleet"],
                "operations": ["config"], "longest_days": 30,
            }},
        });
        for (key, value) in more.as_object().unwrap() {
            policy[key] = value.clone();
        }
        self.write("trust.json", &policy.to_string());
    }

    async fn run(&self, args: &[&str], expected: i32) -> String {
        let (state, trust) = (self.path("state"), self.path("trust.json"));
        let env = [
            ("PILOTLIGHT_STATE", state.to_str().unwrap()),
            ("PILOTLIGHT_TRUST", trust.to_str().unwrap()),
            // no service of this machine is meant
            ("PILOTLIGHT_HTTP", "127.0.0.1:1"),
        ];
        let (code, out, errors) = program(self.folder.path(), args, &env).await;
        assert_eq!(code, expected, "{args:?}: {out}{errors}");
        out + &errors
    }

    async fn sign(&self, more: &[&str]) {
        let args = ["config", "sign", "remote.json", "--key", "ops.key", "--no-password"];
        self.run(&[&args, more].concat(), 0).await;
    }

    /// What `verify --json` says.
    async fn verify(&self, file: &str) -> Value {
        let (state, trust) = (self.path("state"), self.path("trust.json"));
        let env = [
            ("PILOTLIGHT_STATE", state.to_str().unwrap()),
            ("PILOTLIGHT_TRUST", trust.to_str().unwrap()),
        ];
        let args = ["config", "verify", file, "--json"];
        let (code, out, errors) = program(self.folder.path(), &args, &env).await;
        let found: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{errors}"));
        assert_eq!(code, if found["accepted"] == true { 0 } else { 2 });
        found
    }

    async fn code(&self, file: &str) -> String {
        self.verify(file).await["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Keeps this version, as the service does.
    fn keep(&self, version: u64) {
        let config = remote(&json!({"t": {"template": format!("version {version}")}})).to_string();
        let folder = DiskFolder::to_write(&self.path("state/fleet")).unwrap();
        let mut slots = Slots::open(folder).unwrap();
        let slot = ConfigSlot {
            version,
            update: Digest::of(&version.to_be_bytes()),
            key: "ops-2026".to_owned(),
            expires: NOW,
            digest: Digest::of(config.as_bytes()),
            config,
        };
        slots.stage(&slot, NOW).unwrap();
        slots.begin_try().unwrap();
        slots.keep(NOW).unwrap();
    }
}

fn remote(tasks: &Value) -> Value {
    json!({
        "mcpServers": {"near": {"url": "https://near.example/mcp"}},
        "pilotlight": {"tasks": tasks, "policy": {"redact": ["email"]}},
    })
}

/// Runs the stock tool with this on its standard input.
async fn minisign(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new("minisign")
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap()
}

async fn stock(folder: &Path, args: &[&str], input: &str) {
    let out = minisign(folder, args, input).await;
    assert!(out.status.success(), "{args:?}: {out:?}");
}

#[tokio::test]
async fn the_stock_tool_and_this_program_read_each_others_keys_and_signatures() {
    let plant = Plant::new().await;
    let folder = plant.folder.path();
    plant.sign(&["--device", "pi-7"]).await;
    assert_eq!(plant.verify("update.signed").await["accepted"], true);
    stock(folder, &["-V", "-m", "update.json", "-p", "ops.pub"], "").await;
    // signed by the tool, with the key of this program
    std::fs::remove_file(plant.path("update.json.minisig")).unwrap();
    stock(folder, &["-S", "-m", "update.json", "-s", "ops.key"], "").await;
    assert_eq!(plant.verify("update.json").await["accepted"], true);
    let signature = std::fs::read(plant.path("update.json.minisig")).unwrap();
    let update = std::fs::read(plant.path("update.json")).unwrap();
    std::fs::write(plant.path("joined"), [signature, update].concat()).unwrap();
    assert_eq!(plant.verify("joined").await["accepted"], true);
    // its old kind of signature, and a comment of its own
    stock(folder, &["-S", "-l", "-m", "update.json", "-s", "ops.key"], "").await;
    assert_eq!(plant.code("update.json").await, "legacy-signature");
    stock(folder, &["-S", "-c", "mine", "-m", "update.json", "-s", "ops.key"], "").await;
    assert_eq!(plant.code("update.json").await, "malformed-signature");
    // a key of the tool
    stock(folder, &["-G", "-W", "-p", "tool.pub", "-s", "tool.key"], "").await;
    let args =
        ["config", "sign", "remote.json", "--key", "tool.key", "--no-password", "--device", "pi-7"];
    plant.run(&args, 0).await;
    stock(folder, &["-V", "-m", "update.json", "-p", "tool.pub"], "").await;
    assert_eq!(plant.code("update.signed").await, "unknown-key");
}

#[tokio::test]
async fn a_key_may_have_a_password() {
    let plant = Plant::new().await;
    let folder = plant.folder.path();
    plant.write("password", "correct horse\n");
    plant.run(&["config", "keygen", "safe", "--password-file", "password"], 0).await;
    let args = ["config", "sign", "remote.json", "--key", "safe.key", "--device", "pi-7"];
    plant.run(&[&args[..], &["--password-file", "password"]].concat(), 0).await;
    stock(folder, &["-V", "-m", "update.json", "-p", "safe.pub"], "").await;
    stock(folder, &["-S", "-m", "update.json", "-s", "safe.key"], "correct horse\n").await;
    stock(folder, &["-V", "-m", "update.json", "-p", "safe.pub"], "").await;
    plant.write("password", "wrong\n");
    let told = plant.run(&[&args[..], &["--password-file", "password"]].concat(), 1).await;
    assert!(told.contains("Wrong password"), "{told}");
    plant.run(&[&args[..], &["--no-password"]].concat(), 1).await;
    // the private key is its owner's, and neither is replaced
    let mode =
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(plant.path("safe.key")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let told = plant.run(&["config", "keygen", "safe", "--no-password"], 1).await;
    assert!(told.contains("safe.key exists"), "{told}");
}

#[tokio::test]
async fn verify_says_what_the_device_would_do() {
    let plant = Plant::new().await;
    plant.sign(&["--group", "line-3", "--version", "12"]).await;
    let shown = plant.run(&["config", "verify", "update.signed"], 0).await;
    for part in ["version 12 for the group line-3", "signed by ops-2026", "put it on trial"] {
        assert!(shown.contains(part), "{shown}");
    }
    plant.sign(&["--device", "pi-8", "--version", "12"]).await;
    assert_eq!(plant.code("update.signed").await, "wrong-target");
    plant.sign(&["--fleet", "plant-a", "--days", "31"]).await;
    assert_eq!(plant.code("update.signed").await, "not-authorised");
    plant.sign(&["--fleet", "plant-a", "--version", "12"]).await;
    let file = std::fs::read_to_string(plant.path("update.signed")).unwrap();
    plant.write("changed", &file.replace("\"version\": 12", "\"version\": 13"));
    let found = plant.verify("changed").await;
    assert_eq!(found["code"], "wrong-signature");
    let outcomes: Vec<&str> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| check[1].as_str().unwrap())
        .collect();
    assert_eq!(outcomes[..3], ["ok", "refused", "not reached"]);
    // what the configuration does
    let mut weaker = remote(&json!({}));
    weaker["pilotlight"]["policy"] = json!({});
    plant.write("remote.json", &weaker.to_string());
    plant.sign(&["--device", "pi-7"]).await;
    let found = plant.verify("update.signed").await;
    assert_eq!(found["code"], "forbidden-config");
    let told = found["mistakes"][0].as_str().unwrap();
    assert!(told.starts_with("pilotlight.policy.redact: lacks the rule EMAIL"), "{told}");
    // a replay, a lower version, a lost file
    plant.write("remote.json", &remote(&json!({})).to_string());
    plant.keep(12);
    plant.sign(&["--device", "pi-7", "--version", "12"]).await;
    assert_eq!(plant.code("update.signed").await, "old-version");
    plant.sign(&["--device", "pi-7", "--version", "13"]).await;
    assert_eq!(plant.code("update.signed").await, "");
    std::fs::remove_file(plant.path("state/fleet/floor")).unwrap();
    assert_eq!(plant.code("update.signed").await, "floor-missing");
    let told = plant.run(&["config", "repair"], 0).await;
    assert!(told.contains("a higher version than 12"), "{told}");
    assert_eq!(plant.code("update.signed").await, "");
    // nothing is trusted that others can write
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(plant.path("trust.json"), mode).unwrap();
    let told = plant.run(&["config", "verify", "update.signed"], 2).await;
    assert!(told.contains("other users can write to it"), "{told}");
}

#[tokio::test]
async fn nothing_wrong_is_signed() {
    let plant = Plant::new().await;
    for (file, told) in [
        (json!({"mcpServers": {}}), "mcpServers: has 0 entries"),
        (
            json!({"mcpServers": {"a": {"command": "x"}}, "pilotlight": {"http": {}}}),
            "pilotlight.http: is always",
        ),
        (json!({"mcpServers": {"a": {"comand": "x"}}}), "mcpServers.a.comand"),
    ] {
        plant.write("bad.json", &file.to_string());
        let args =
            ["config", "sign", "bad.json", "--key", "ops.key", "--no-password", "--device", "x"];
        let shown = plant.run(&args, 2).await;
        assert!(shown.contains(told), "{shown}");
        assert!(!plant.path("update.signed").exists());
    }
    let sign = ["config", "sign", "remote.json", "--key", "ops.key", "--no-password"];
    for wrong in [
        &["--device", "a/b"] as &[&str],
        &["--device", "a", "--version", "0"],
        &["--device", "a", "--days", "0"],
        &["--device", "a", "--days", "99999"],
    ] {
        plant.run(&[&sign[..], wrong].concat(), 1).await;
    }
    for wrong in
        [&[] as &[&str], &["--device", "a", "--fleet", "b"], &["--device", "a", "--replaces", "x"]]
    {
        plant.run(&[&sign[..], wrong].concat(), 2).await;
    }
}

/// A server that answers each request with this; returns its port.
async fn server(answer: String) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = client.read(&mut head).await;
            let _ = client.write_all(answer.as_bytes()).await;
            let _ = client.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn a_configuration_at_a_url_is_fetched_from_neighbours_and_compared() {
    let plant = Plant::new().await;
    let text = remote(&json!({})).to_string();
    let ok = |body: &str| {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    };
    let right = server(ok(&text)).await;
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{right}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    let other = ok(&text.replace("near", "near2").replacen('2', "", 1));
    for (port, told) in [
        (right, ""),
        (server(redirect).await, "302"),
        (server(other).await, ""),
        (server(ok(&text.replace("email", "phone"))).await, "digest"),
        (server(ok(&format!("{text} "))).await, "more than the"),
        (server(ok(&text[1..])).await, "sends"),
    ] {
        let url = format!("http://127.0.0.1:{port}/c.json");
        plant.trust(&json!({"neighbours": [format!("http://127.0.0.1:{port}")]}));
        plant.sign(&["--device", "pi-7", "--url", &url]).await;
        let found = plant.verify("update.signed").await;
        if port == right {
            assert_eq!(found["accepted"], true, "{found}");
            // without the permission no connection is made
            plant.trust(&json!({}));
            let found = plant.verify("update.signed").await;
            assert!(found["reason"].as_str().unwrap().contains("must begin with https"), "{found}");
        } else {
            assert_eq!(found["code"], "wrong-content", "{found}");
            assert!(found["reason"].as_str().unwrap().contains(told), "{found}");
        }
    }
}

#[tokio::test]
async fn the_operator_sees_and_takes_back_what_runs() {
    let plant = Plant::new().await;
    let told = plant.run(&["config", "rollback"], 1).await;
    assert!(told.contains("no configuration before this one"), "{told}");
    plant.keep(11);
    plant.keep(12);
    let shown = plant.run(&["config", "history"], 0).await;
    assert!(shown.contains("version 12 kept, signed by ops-2026"), "{shown}");
    assert!(shown.contains("runs: version 12"), "{shown}");
    // what a push would change, without secrets
    let mut next = remote(&json!({"t": {"template": "version 13"}}));
    next["mcpServers"]["near"]["headers"] = json!({"Authorization": "Bearer 4711"});
    plant.write("remote.json", &next.to_string());
    plant.sign(&["--device", "pi-7"]).await;
    for file in ["update.signed", "update.json", "remote.json"] {
        let shown = plant.run(&["config", "diff", file], 0).await;
        let changed = "~ pilotlight.tasks.t.template: \"version 12\" -> \"version 13\"";
        assert!(shown.contains(changed), "{shown}");
        assert!(shown.contains("+ mcpServers.near.headers") && !shown.contains("4711"), "{shown}");
    }
    let shown = plant.run(&["config", "diff", "update.signed", "--json"], 0).await;
    let found: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 2, "{found}");
    let shown = plant.run(&["config", "rollback", "--json"], 0).await;
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["state"], "rolled-back");
    plant.sign(&["--device", "pi-7", "--version", "12"]).await;
    assert_eq!(plant.code("update.signed").await, "old-version");
    let shown = plant.run(&["config", "history", "--json"], 0).await;
    let last: Value = serde_json::from_str(shown.lines().last().unwrap()).unwrap();
    assert_eq!((&last["version"], &last["floor"]), (&json!(11), &json!(12)));
    plant.keep(14);
    plant.run(&["config", "rollback", "--allow-downgrade"], 0).await;
    plant.sign(&["--device", "pi-7", "--version", "12"]).await;
    assert_eq!(plant.code("update.signed").await, "");
    // while the service uses the folder, nothing is changed
    let _held = DiskFolder::to_write(&plant.path("state/fleet")).unwrap();
    let told = plant.run(&["config", "rollback"], 1).await;
    assert!(told.contains("another process uses"), "{told}");
    plant.run(&["config", "history"], 0).await;
}
