//! `config push` and `config watch` at a real broker, with the program itself as the devices.

mod plant;

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal::{SIGINT, SIGKILL};
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use self::plant::{GOOD, Plant, WORSE, idle, remote};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog, free_port, program, signal};
use crate::support::{PROGRAM, SOON};

const FLEET: &str = "pilotlight/fleet/plant/config/desired";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_ends_when_every_device_has_kept_it() {
    let mut plant = Plant::with(3, 1).await;
    let version = plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let (code, out, errors) = plant.run(&["config", "push", "update.signed"]).await;
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains("100 % kept") && out.contains("kept 3") && out.contains("p99"), "{out}");
    for name in ["d0", "d1", "d2"] {
        assert!(out.contains(&format!("{name} trial\n")), "{out}");
        assert!(out.contains(&format!("{name} kept after ")), "{out}");
    }
    for (name, report) in plant.reports().await {
        assert_eq!(
            (&report["version"], &report["source"]),
            (&json!(version), &json!("update")),
            "{name}"
        );
        assert!(report["offered_digest"].as_str().unwrap().starts_with("sha256:"), "{report}");
    }
    let signed = std::fs::read(plant.path("update.signed")).unwrap();
    assert_eq!(plant.retained("pilotlight/#").await.get(FLEET), Some(&signed));
    // it is there already
    let (code, lines, summary) = plant.push(&[]).await;
    assert_eq!((code, lines.len(), &summary["states"]), (0, 0, &json!({"kept": 3})), "{summary}");
    // the same version with another content, and a lower one
    plant.version -= 1;
    plant.sign(&remote("the reading {{word}}"), ["--fleet", "plant"]).await;
    let (code, out, errors) = plant.run(&["config", "push", "update.signed"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(errors.contains("old-version") && errors.contains("higher version"), "{errors}");
    // for one device
    plant.version = version;
    plant.sign(&remote("the reading {{word}}"), ["--device", "d1"]).await;
    let (code, lines, summary) = plant.push(&["--timeout", "120"]).await;
    assert_eq!(
        (code, &summary["devices"], &summary["states"]),
        (0, &json!(1), &json!({"kept": 1})),
        "{summary}"
    );
    assert!(lines.iter().all(|line| line["device"] == "d1"), "{lines:?}");
    // what the watch says
    let (code, out, _) = plant.run(&["config", "watch", "--once", "--version", "2"]).await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("d1 kept\n") && out.contains("kept 1, not-begun 2"), "{out}");
    let (code, out, _) = plant.run(&["config", "watch", "--once", "--json"]).await;
    assert_eq!((code, out.lines().count()), (0, 4), "{out}");
    assert!(out.contains(r#""versions":{"1":2,"2":1}"#), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_staged_push_of_a_worse_update_reaches_its_first_stage_alone() {
    let mut plant = Plant::with(3, 1).await;
    let bad = plant.sign(&remote(WORSE), ["--fleet", "plant"]).await;
    let stages = ["--percent", "5", "--then", "50", "--then", "100"];
    let (code, lines, summary) = plant.push(&stages).await;
    assert_eq!((code, &summary["ending"]), (2, &json!("stopped")), "{summary}");
    assert_eq!(summary["states"], json!({"rolled-back": 1, "not-offered": 2}), "{lines:?}");
    let why = summary["reasons"][0]["reason"].as_str().unwrap();
    assert!(why.contains("5 of 10"), "{why}");
    let first = summary["reasons"][0]["names"][0].as_str().unwrap().to_owned();
    for (name, report) in plant.reports().await {
        assert_eq!(report["offered"] == bad, name == first, "{name}: {report}");
        assert_eq!(report["source"], "file", "{name}: {report}");
    }
    let is_empty = async |plant: &Plant| {
        let kept = plant.retained("pilotlight/#").await;
        kept.keys().all(|topic| !topic.ends_with("/desired"))
    };
    assert!(is_empty(&plant).await);
    // a device that starts again still knows what became of it, so that the push still stops
    let at = plant.devices.iter().position(|device| {
        std::fs::read_to_string(device.folder.path().join("mcp.json")).unwrap().contains(&first)
    });
    let Service { folder, mut child, .. } = plant.devices.swap_remove(at.unwrap());
    signal(child.id().unwrap().cast_signed(), SIGKILL);
    child.wait().await.unwrap();
    let device = plant.device(&first, folder);
    device.until("it knows", |state| state["config"]["state"] == "rolled-back").await;
    plant.devices.push(device);
    let (code, lines, summary) = plant.push(&stages).await;
    assert_eq!((code, &summary["ending"]), (2, &json!("stopped")), "{summary}");
    assert!(lines.iter().all(|line| line["device"].is_null()), "{lines:?}");
    assert!(is_empty(&plant).await);
    // the next version goes through, and its carriers are removed
    let good = plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let (code, lines, summary) = plant.push(&stages).await;
    assert_eq!((code, &summary["states"]), (0, &json!({"kept": 3})), "{lines:?} {summary}");
    let began: Vec<&Value> = lines.iter().filter(|line| line["stage"].is_object()).collect();
    assert_eq!(began.len(), 3, "{lines:?}");
    let kept_before = |stage: &Value| {
        let at = lines.iter().position(|line| line == stage).unwrap();
        lines[..at].iter().filter(|line| line["state"] == "kept").count()
    };
    assert_eq!(began.iter().map(|stage| kept_before(stage)).collect::<Vec<_>>(), [0, 1, 2]);
    let desired = plant.retained("pilotlight/#").await;
    let desired: Vec<&String> =
        desired.keys().filter(|topic| topic.ends_with("/desired")).collect();
    assert_eq!(desired, [FLEET]);
    for (name, report) in plant.reports().await {
        assert_eq!(
            (&report["version"], &report["state"]),
            (&json!(good), &json!("kept")),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_can_not_go_out_says_why() {
    let mut plant = Plant::with(0, 1).await;
    plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let fails = async |args: &[&str], env: &[(&str, &str)], what: &[&str]| {
        let args = [&["config", "push"], args].concat();
        let (code, out, errors) = program(plant.folder.path(), &args, env).await;
        assert_eq!((code, out.as_str()), (1, ""), "{errors}");
        assert!(what.iter().all(|what| errors.contains(what)), "{what:?}: {errors}");
    };
    let url = plant.url();
    let open = [("PILOTLIGHT_MQTT", url.as_str())];
    fails(&["update.signed"], &open, &["no device of the fleet plant", "--no-wait"]).await;
    fails(&["update.json.minisig"], &open, &["update.json.minisig"]).await;
    fails(&["remote.json"], &open, &["no signature"]).await;
    fails(&["update.signed", "--percent", "50", "--then", "20"], &open, &["--then"]).await;
    fails(&["update.signed", "--percent", "50", "--timeout", "0"], &open, &["--timeout"]).await;
    let nobody = format!("mqtt://127.0.0.1:{}", free_port());
    fails(&["update.signed"], &[("PILOTLIGHT_MQTT", &nobody)], &["not reachable"]).await;
    fails(&["update.signed"], &[("PILOTLIGHT_MQTT", "off")], &["no broker"]).await;
    // bytes that have changed, and another key
    let mut forged = std::fs::read(plant.path("update.signed")).unwrap();
    let at = forged.len() - 20;
    forged[at] ^= 1;
    std::fs::write(plant.path("forged.signed"), forged).unwrap();
    fails(&["forged.signed"], &open, &["have changed"]).await;
    let (code, ..) = plant.run(&["config", "keygen", "other", "--no-password"]).await;
    assert_eq!(code, 0);
    fails(&["update.signed", "--public-key", "other.pub"], &open, &["is signed by the key"]).await;
    // a broker that lets everybody read, and nobody write at this port
    plant.report("d0", idle().to_string().as_bytes()).await;
    let (port, closed) = (free_port(), free_port());
    let rules = plant.path("rules.acl");
    std::fs::write(&rules, "topic read #\n").unwrap();
    let rules = rules.display();
    let broker = Mosquitto::with(
        port,
        &format!(
            "per_listener_settings true\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
         listener {closed} 127.0.0.1\nallow_anonymous true\nacl_file {rules}\n"
        ),
    )
    .await;
    let app = App::log_in(broker.port, "fake", &[], None).await;
    let options = PublishOptions::new(QoS::AtLeastOnce).retain(true);
    app.client.publish("pilotlight/d0/config/reported", idle().to_string(), options).await.unwrap();
    let off = r#"{"state": "offline"}"#;
    plant.retain("pilotlight/d0/status", off.as_bytes()).await;
    fails(&["update.signed", "--percent", "5"], &open, &["none of the 1 devices is there"]).await;
    let url = format!("mqtt://127.0.0.1:{closed}");
    let closed = [("PILOTLIGHT_MQTT", url.as_str())];
    fails(&["update.signed", "--no-wait"], &closed, &["not authorized", "access rules"]).await;
    let args = ["config", "push", "update.signed", "--json"];
    let (code, out, errors) = program(plant.folder.path(), &args, &closed).await;
    let summary: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let summary = &summary["summary"];
    assert_eq!((code, &summary["ending"]), (1, &json!("not-published")), "{summary}{errors}");
    assert_eq!(summary["is_published"], false);
    assert!(summary["problem"].as_str().unwrap().contains("not authorized"), "{summary}");
    // the open one takes it without any device
    let (code, out, errors) = plant.run(&["config", "push", "update.signed", "--no-wait"]).await;
    assert_eq!(code, 0, "{out}{errors}");
    assert!(plant.retained("pilotlight/#").await.contains_key(FLEET));
}

const EVIL: &str = "\u{1b}]0;title\u{7}\u{9b}31m\u{202e}line\nd9 kept";
const SHOWN: &str = "\\u{1b}]0;title\\u{7}\\u{9b}31m\\u{202e}line\\u{a}d9 kept";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_do_not_answer_or_write_control_characters_end_a_push_as_well() {
    let mut plant = Plant::with(0, 1).await;
    plant.report("d0", idle().to_string().as_bytes()).await;
    plant.report("d1", b"no report").await;
    let version = plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let (code, lines, summary) = plant.push(&["--timeout", "1"]).await;
    assert_eq!((code, &summary["ending"]), (1, &json!("through")), "{lines:?}");
    assert_eq!(
        (&summary["states"], &summary["bad_reports"]),
        (&json!({"no-answer": 1}), &json!(1))
    );
    assert_eq!(plant.retained(FLEET).await.len(), 1, "a device that comes later takes it");
    // in stages it is taken back, and the others are not asked
    plant.report("d2", idle().to_string().as_bytes()).await;
    let version =
        version + u64::from(plant.sign(&remote(GOOD), ["--fleet", "plant"]).await > version);
    let (code, _, summary) =
        plant.push(&["--timeout", "1", "--percent", "1", "--then", "100"]).await;
    assert_eq!((code, &summary["ending"]), (1, &json!("stopped")), "{summary}");
    assert_eq!(summary["states"], json!({"no-answer": 1, "not-offered": 1}));
    assert_eq!(plant.retained("pilotlight/+/config/desired").await.len(), 0);
    // a reason that a terminal would obey
    let mut evil = idle();
    evil["state"] = json!("refused");
    evil["offered"] = json!(version);
    evil["code"] = json!("bad\u{1b}[2J");
    evil["reason"] = json!(EVIL);
    plant.report("d0", evil.to_string().as_bytes()).await;
    let args =
        ["config", "push", "update.signed", "--timeout", "1", "--percent", "1", "--then", "100"];
    let watch = ["config", "watch", "--timeout", "2", "--version", &version.to_string()];
    for args in [&args[..], &watch] {
        let (_, out, _) = plant.run(args).await;
        for text in [out, plant.on_terminal(args).await] {
            assert!(text.contains(SHOWN) && text.contains("bad\\u{1b}[2J"), "{args:?}: {text:?}");
            for raw in ["\u{1b}]0", "\u{7}", "\u{9b}", "\u{202e}", "\nd9 kept", "bad\u{1b}"] {
                assert!(!text.contains(raw), "{raw:?} is in {text:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_push_leaves_nothing_half_published_and_goes_on_later() {
    let mut plant = Plant::with(2, 1).await;
    // a third device holds up the first stage
    plant.report("mute", idle().to_string().as_bytes()).await;
    plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let args = ["config", "push", "update.signed", "--percent", "99", "--then", "100"];
    let mut push = Command::new(PROGRAM)
        .args(args)
        .current_dir(plant.folder.path())
        .env("PILOTLIGHT_MQTT", plant.url())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(push.stdout.take().unwrap()).lines();
    let mut kept = 0;
    while kept < 2 {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
        kept += usize::from(line.contains(" kept after "));
    }
    assert_eq!(plant.retained("pilotlight/+/config/desired").await.len(), 3);
    signal(push.id().unwrap().cast_signed(), SIGINT);
    let mut rest = String::new();
    while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap() {
        rest.push_str(&line);
    }
    assert_eq!(push.wait().await.unwrap().code(), Some(1), "{rest}");
    assert!(rest.contains("interrupted") && rest.contains("1 device not begun"), "{rest}");
    assert!(plant.retained("pilotlight/#").await.keys().all(|topic| !topic.ends_with("/desired")));
    // the device goes, and the same push goes on
    plant.report("mute", b"").await;
    let (code, lines, summary) = plant.push(&args[3..]).await;
    assert_eq!((code, &summary["states"]), (0, &json!({"kept": 2})), "{lines:?} {summary}");
    assert!(plant.retained(FLEET).await.contains_key(FLEET));
}

/// A broker may send all retained reports before it answers the subscription, and mosquitto queues 1000.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_devices_are_seen_and_pushed_to() {
    const DEVICES: usize = 3000;
    let mut plant = Plant::with(0, 1).await;
    let app = App::log_in(plant.broker.port, "all", &[], None).await;
    let options = || PublishOptions::new(QoS::AtLeastOnce).retain(true);
    for n in 1..DEVICES {
        let topic = format!("pilotlight/s{n}/config/reported");
        app.client.publish(topic, idle().to_string(), options()).await.unwrap();
    }
    // the last one with an acknowledgement of its own
    plant.report("s0", idle().to_string().as_bytes()).await;
    let (code, out, errors) = plant.run(&["config", "watch", "--once", "--json"]).await;
    assert_eq!((code, out.lines().count()), (0, DEVICES + 1), "{errors}");
    plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let (code, lines, summary) =
        plant.push(&["--percent", "10", "--then", "100", "--timeout", "1"]).await;
    assert_eq!((code, &summary["ending"]), (1, &json!("stopped")), "{lines:?}");
    assert_eq!(summary["states"], json!({"no-answer": 300, "not-offered": 2700}));
    assert_eq!(plant.retained("pilotlight/+/config/desired").await.len(), 0);
}

/// The policy that a device prints for a manager's key lets the manager push at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_printed_trust_policy_is_used_as_it_is() {
    let mut plant = Plant::with(0, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let mut file = catalog(&["--scripted", "old", "--slots", "4"]);
    file["mcpServers"]["gone"] = json!({"command": "no-such-program"});
    std::fs::write(folder.path().join("mcp.json"), file.to_string()).unwrap();
    let key = plant.path("ops.pub").display().to_string();
    let args = ["config", "trust", key.as_str(), "--fleet", "plant"];
    let (code, out, errors) = program(folder.path(), &args, &[]).await;
    assert_eq!(code, 0, "{errors}");
    assert!(errors.contains("gone") && errors.contains("no-such-program"), "{errors}");
    let mut policy: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(policy["commands"]["local"]["args"], file["mcpServers"]["local"]["args"]);
    assert_eq!(policy["keys"]["ops"]["longest_days"], 30, "{policy}");
    policy["trial"] = json!({"good_jobs": 1, "seconds": 1});
    std::fs::write(plant.path("trust.json"), policy.to_string()).unwrap();
    let device = plant.device("d0", folder);
    device.ready().await;
    let config = json!({"mcpServers": {"local": {"command": "local"}}, "pilotlight": {}});
    plant.sign(&config, ["--fleet", "plant"]).await;
    let (code, lines, summary) = plant.push(&[]).await;
    assert_eq!((code, &summary["states"]), (0, &json!({"kept": 1})), "{lines:?}");
    for (args, what) in [
        ([key.as_str(), "--fleet", "a b"], "--fleet"),
        (["mcp.json", "--fleet", "plant"], "must be a public key"),
        (["none.pub", "--fleet", "plant"], "none.pub"),
    ] {
        let args = [&["config", "trust"], &args[..]].concat();
        let (code, out, errors) = program(device.folder.path(), &args, &[]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{errors}");
        assert!(errors.contains(what), "{errors}");
    }
}

/// An update that comes during the trial of another one is not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_during_a_trial_is_taken_after_it() {
    let mut plant = Plant::with(1, 3600).await;
    plant.sign(&remote(GOOD), ["--fleet", "plant"]).await;
    let (code, _, errors) = plant.run(&["config", "push", "update.signed", "--no-wait"]).await;
    assert_eq!(code, 0, "{errors}");
    let device = &plant.devices[0];
    device.until("the trial of 1", |state| state["config"]["version"] == 1).await;
    let ask = json!({"model": "auto", "messages": [{"role": "user", "content": "a"}]});
    let mut second = remote(GOOD);
    second["pilotlight"]["tasks"]["more"] = json!({"template": "more {{word}}"});
    plant.sign(&second, ["--fleet", "plant"]).await;
    let args = ["config", "push", "update.signed", "--no-wait"];
    assert_eq!(plant.run(&args).await.0, 0);
    // the device has heard of it by now: the broker sends in the order of the messages
    tokio::time::sleep(Duration::from_millis(500)).await;
    let device = &plant.devices[0];
    assert_eq!(device.state().await.unwrap()["config"]["offered"], 1);
    device.chat(ask.clone()).await;
    device
        .until("the trial of 2", |state| {
            let config = &state["config"];
            config["offered"] == 2 && config["state"] == "trial" && config["version"] == 2
        })
        .await;
    device.chat(ask).await;
    let (code, _, summary) = plant.push(&["--timeout", "60"]).await;
    assert_eq!((code, &summary["states"]), (0, &json!({"kept": 1})), "{summary}");
}
