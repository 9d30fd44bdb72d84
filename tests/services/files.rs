//! Files that people edit: `.env`, `mcp.json`, certificates, credentials. Their mistakes are told without
//! any value of theirs.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::PROGRAM;
use crate::support::cloud::{Cloud, answer, trusting};
use crate::support::service::{Service, catalog};

const MARK: &str = "\u{feff}";
const CANARY: &str = "hunter two";

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    folder
}

/// A configuration whose child process is named by the variable WORD, which is therefore printed if it
/// names no program of the right form.
fn config() -> String {
    json!({"mcpServers": {"a": {"command": "x"}}, "pilotlight": {"device": {"name": "${WORD}"}}})
        .to_string()
}

fn check(folder: &Path) -> (Option<i32>, String) {
    let run = Command::new(PROGRAM).arg("check").current_dir(folder).output().unwrap();
    let text = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8(text).unwrap())
}

/// The value of WORD as the program reads it, from the message about a wrong device name.
fn word(line: &str) -> String {
    let folder = folder(&[("mcp.json", config().as_bytes()), (".env", line.as_bytes())]);
    let (code, said) = check(folder.path());
    let Some((_, rest)) = said.split_once("pilotlight.device.name: \"") else {
        panic!("{line:?}: {code:?} {said}");
    };
    rest.split_once("\" is not valid").unwrap().0.to_owned()
}

#[test]
fn values_of_the_env_file_are_literal() {
    for (line, expected) in [
        ("WORD=pa$word1\n", "pa$word1"),
        ("WORD=$HOME/x\n", "$HOME/x"),
        ("WORD='pa$word1 ${HOME} #2'\n", "pa$word1 ${HOME} #2"),
        ("WORD=two words \r\n", "two words"),
        ("WORD=a#b # note\n", "a#b"),
        ("WORD=\"a$b c\"\n", "a$b c"),
        ("\u{feff}WORD=a b\r\n", "a b"),
        ("export WORD = a=b c\n", "a=b c"),
    ] {
        assert_eq!(word(line), expected, "{line:?}");
    }
}

#[test]
fn a_mistake_of_the_env_file_is_told_without_its_value() {
    for (env, place) in [
        ("A=1\nhunter two\n", ".env, line 2"),
        ("A=1\nB='hunter two\n", ".env, line 2: B"),
        ("A=1\nB=\"hunter two\"x\n", ".env, line 2: B"),
        ("B=hunter two\\\n", ".env, line 1: B"),
        ("B=hunter two${A}\n", ".env, line 1: B"),
        ("B=hunter two\0\n", ".env, line 1: B"),
        ("B=1\nB=hunter two\n", ".env, line 2: B is set on line 1"),
        ("hunter two=1\n", ".env, line 1"),
    ] {
        let folder = folder(&[("mcp.json", config().as_bytes()), (".env", env.as_bytes())]);
        let (code, said) = check(folder.path());
        assert_eq!(code, Some(2), "{env:?}: {said}");
        assert!(said.contains(place), "{env:?}: {said}");
        assert!(!said.contains("hunter"), "{env:?}: {said}");
    }
    for (bytes, why) in [
        (b"A=1\nB=hunter two\xff\n".as_slice(), "not UTF-8 in line 2"),
        (b"\xff\xfeA\0=\0", "UTF-16"),
    ] {
        let folder = folder(&[("mcp.json", config().as_bytes()), (".env", bytes)]);
        let (code, said) = check(folder.path());
        assert!(code == Some(2) && said.contains(why) && !said.contains("hunter"), "{said}");
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_told_and_ends_nothing() {
    let folder = folder(&[("mcp.json", catalog(&["--scripted", "x"]).to_string().as_bytes())]);
    let value = std::ffi::OsStr::from_bytes(b"hunter two\xff");
    let run = |name: &str| {
        let mut command = Command::new(PROGRAM);
        let run = command.arg("check").current_dir(&folder).env(name, value).output().unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    let (code, said) = run("SOME_OTHER_PROGRAM");
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let (code, said) = run("PILOTLIGHT_HTTP_TOKEN");
    assert!(code == Some(2) && said.contains("PILOTLIGHT_HTTP_TOKEN: is not UTF-8"), "{said}");
    assert!(!said.contains("hunter"), "{said}");
}

#[test]
fn no_message_shows_a_secret() {
    let server = json!({"a": {"command": "x"}});
    for (ours, place) in [
        (json!({"device_limits": {"heat_c": "${MY_PASSWORD}"}}), "device_limits.heat_c"),
        (json!({"policy": {"default_mode": "${MY_PASSWORD}"}}), "policy.default_mode"),
        (json!({"mqtt": {"prefix": "${MY_PASSWORD}#"}}), "mqtt.prefix"),
        (json!({"http": {"listen": "${MY_PASSWORD}"}}), "http.listen"),
        (json!({"http": {"token": ["hunter two"]}}), "http.token"),
        (json!({"http": {"token": "hunter two${"}}), "http.token"),
        (json!({"http": {"token": "${hunter two}"}}), "http.token"),
        (json!({"mqtt": {"password": 123_454_321}}), "mqtt.password"),
        (
            json!({"providers": {"big": {
                "kind": "openai", "model": "m", "base_url": "https://hunter two@x", "key": "${MY_PASSWORD}",
            }}}),
            "base_url",
        ),
        (
            json!({"providers": {"big": {
                "kind": "${MY_PASSWORD}", "model": "m", "base_url": "https://x", "key": "${MY_PASSWORD}",
            }}}),
            "kind",
        ),
    ] {
        let config = json!({"mcpServers": server, "pilotlight": ours}).to_string();
        let env = format!("MY_PASSWORD={CANARY}\n");
        let folder = folder(&[("mcp.json", config.as_bytes()), (".env", env.as_bytes())]);
        let (code, said) = check(folder.path());
        assert!(code == Some(2) && said.contains(place), "{ours}: {said}");
        assert!(!said.contains("hunter") && !said.contains("123454321"), "{ours}: {said}");
    }
}

#[test]
fn a_secret_that_others_can_read_is_told() {
    let config = catalog(&["--scripted", "x"]).to_string();
    let env = format!("MY_PASSWORD={CANARY}\n");
    let folder = folder(&[("mcp.json", config.as_bytes()), (".env", env.as_bytes())]);
    let path = folder.path().join(".env");
    let with_mode = |mode: u32| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        check(folder.path()).1
    };
    assert!(!with_mode(0o600).contains("warning"));
    let said = with_mode(0o644);
    assert!(said.contains("warning: .env: ") && said.contains("chmod 600 .env"), "{said}");
    std::fs::write(&path, "PLACE=Berlin\n").unwrap();
    assert!(!with_mode(0o644).contains("warning"), "it holds no secret");
}

/// A mark at the head of every file that an editor may have written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_order_mark_is_left_out_everywhere() {
    let (cloud, certificate) = Cloud::start_encrypted([answer(&["well"])]).await;
    // two certificates that were joined: the second has a mark of its own
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap().cert.pem();
    let joined = format!("{MARK}{other}{MARK}{certificate}");
    let (mut big, _ca) = trusting(&cloud.url, &joined);
    big["key"] = json!("cred:key");
    let credentials = tempfile::tempdir().unwrap();
    std::fs::write(credentials.path().join("key"), format!("{MARK}sk-1\r\n")).unwrap();
    let mut config = catalog(&["--scripted", "small"]);
    config["pilotlight"]["providers"] = json!({"big": big});
    let place = credentials.path().display().to_string();
    let service = Service::launch(&config, "off", &[("CREDENTIALS_DIRECTORY", &place)]);
    service.ready_all().await;
    let (status, answer) = service.cloud_in_time("x", 8000).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("well")));
    assert!(cloud.asked()[0].head.contains("Bearer sk-1\r\n"), "{}", cloud.asked()[0].head);

    let config = format!("{MARK}{}", catalog(&["--scripted", "x"]));
    let env = format!("{MARK}PILOTLIGHT_DEVICE=here\r\n");
    let folder = folder(&[("mcp.json", config.as_bytes()), (".env", env.as_bytes())]);
    let (code, said) = check(folder.path());
    assert!(code == Some(0) && said.contains("valid"), "{said}");
    let record = json!({"route": "local", "reason": "rule", "attempts": [], "pressure": {}});
    std::fs::write(folder.path().join("record.json"), format!("{MARK}{record}")).unwrap();
    let sample = json!({"zones": [{"name": "z", "kind": "cpu-thermal", "celsius": 50.3}]});
    std::fs::write(folder.path().join("trace.jsonl"), format!("{MARK}{sample}\n")).unwrap();
    for args in
        [&["explain", "record.json"][..], &["simulate", "--hours", "0.1", "--trace", "trace.jsonl"]]
    {
        let run = Command::new(PROGRAM).args(args).current_dir(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{args:?}: {said}");
    }
}
