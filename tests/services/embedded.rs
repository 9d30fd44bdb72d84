//! The embedded broker: who may connect, and how much it keeps.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{
    ConnectProperties, ConnectReturnCode, LastWill, Packet, PubAckReason,
};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, PublishOptions};
use serde_json::json;

use crate::support::SOON;
use crate::support::mqtt::App;
use crate::support::service::{LOGIN, Service, catalog, program};

const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

fn login() -> (&'static str, &'static str) {
    let [(_, user), (_, password)] = LOGIN;
    (user, password)
}

/// A service that has no login configured.
async fn service(more: &[(&str, &str)]) -> Service {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::launch_in(folder, &catalog(&DRY), "embedded", more);
    service.ready().await;
    service
}

fn kept_password(service: &Service) -> String {
    let path = service.folder.path().join("state/broker.password");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others can read {}", path.display());
    std::fs::read_to_string(path).unwrap().trim_end().to_owned()
}

fn client(
    port: u16,
    name: &str,
    login: Option<(&str, &str)>,
    change: impl FnOnce(&mut MqttOptions),
) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, ("127.0.0.1", port));
    if let Some((user, password)) = login {
        options.set_credentials(user, password.to_owned());
    }
    options.set_max_packet_size(Some(64 * 1024 * 1024));
    change(&mut options);
    AsyncClient::builder(options).capacity(64).build()
}

/// Most attempts to connect: the broker closes connections beyond so many a second, and on a busy machine it
/// still counts those that have just ended.
const ATTEMPTS_MAX: u32 = 100;

/// How the broker answers a connection: by a return code, or by closing it again and again.
async fn connected(events: &mut EventLoop) -> Result<(), String> {
    let mut attempts = 1;
    loop {
        match tokio::time::timeout(SOON, events.poll()).await.expect("the broker is silent") {
            Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.code == ConnectReturnCode::Success => {
                return Ok(());
            }
            Ok(Event::Incoming(Packet::ConnAck(ack))) => return Err(format!("{:?}", ack.code)),
            Ok(_) => {}
            Err(error @ ConnectionError::ConnectionRefused(_)) => return Err(format!("{error:?}")),
            Err(_) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(format!("{error:?}")),
        }
    }
}

/// The broker's answers to these publishes.
async fn acknowledged(events: &mut EventLoop, count: usize) -> Vec<PubAckReason> {
    let mut reasons = Vec::new();
    while reasons.len() < count {
        let event = tokio::time::timeout(SOON, events.poll()).await.expect("the broker is silent");
        if let Event::Incoming(Packet::PubAck(ack)) = event.unwrap() {
            reasons.push(ack.reason);
        }
    }
    reasons
}

/// The resident memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_generated_and_required() {
    let service = service(&[]).await;
    let password = kept_password(&service);
    for (name, login) in [
        ("nobody", None),
        ("no password", Some(("pilotlight", ""))),
        ("wrong password", Some(("pilotlight", "x"))),
        ("other user", Some(("root", password.as_str()))),
        ("half of it", Some(("pilotlight", &password[..16]))),
    ] {
        let (_client, mut events) = client(service.mqtt, "stranger", login, |_| {});
        let refused = connected(&mut events).await.expect_err(name);
        assert!(refused.contains("BadUserNamePassword"), "{name}: {refused}");
    }
    let topics = ["pilotlight/dev/reply/app/#"];
    let login = Some(("pilotlight", password.as_str()));
    let mut app = App::log_in(service.mqtt, "app", &topics, login).await;
    assert_eq!(app.ask("app", "one two").await["text"], "one two");
    // a program of the same user finds it; and it stays over a restart
    let (broker, state) =
        (format!("127.0.0.1:{}", service.mqtt), service.folder.path().join("state"));
    let env = [
        ("PILOTLIGHT_BROKER", broker.as_str()),
        ("PILOTLIGHT_HTTP", "off"),
        ("PILOTLIGHT_STATE", state.to_str().unwrap()),
    ];
    let (code, out, err) = program(service.folder.path(), &["ask", "three four"], &env).await;
    assert!(code == 0 && out.starts_with("three four\n"), "{out}{err}");
    let (_, out, _) = program(service.folder.path(), &["doctor"], &env).await;
    let named = format!("user pilotlight, password in {}", state.join("broker.password").display());
    assert!(out.contains(&named) && !out.contains(&password), "{out}");
    let elsewhere = [env[0], env[1], ("PILOTLIGHT_STATE", "off")];
    let (code, _, err) = program(service.folder.path(), &["ask", "x"], &elsewhere).await;
    assert!(code == 1 && err.contains("refused the login"), "{err}");
    assert!(err.contains("PILOTLIGHT_STATE"), "what to do: {err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_out_is_asked_for_by_name() {
    let service = service(&[("PILOTLIGHT_BROKER_ANONYMOUS", "yes")]).await;
    assert!(!service.folder.path().join("state/broker.password").exists());
    let mut app = App::log_in(service.mqtt, "app", &["pilotlight/dev/reply/app/#"], None).await;
    assert_eq!(app.ask("app", "one two").await["text"], "one two");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), catalog(&DRY).to_string()).unwrap();
    let env = [("PILOTLIGHT_BROKER_ANONYMOUS", "of course")];
    let (code, _, err) = program(folder.path(), &["check"], &env).await;
    assert!(code == 2 && err.contains("PILOTLIGHT_BROKER_ANONYMOUS: must be yes or no"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_the_password_nobody_else_gets_in() {
    let service = service(&[("PILOTLIGHT_STATE", "off")]).await;
    let (_client, mut events) = client(service.mqtt, "stranger", None, |_| {});
    let refused = connected(&mut events).await.unwrap_err();
    assert!(refused.contains("BadUserNamePassword"), "{refused}");
}

/// 60 retained messages of 10 MB, as far as the broker takes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_are_bounded() {
    let service = Service::start(&catalog(&DRY)).await;
    let before = resident(service.child.id().unwrap());
    for n in 0..60 {
        // a connection may also end with a packet that is too large
        let name = format!("big-{n}");
        let (client, mut events) = client(service.mqtt, &name, Some(login()), |_| {});
        connected(&mut events).await.unwrap();
        let retained = PublishOptions::new(QoS::AtLeastOnce).retained();
        client.publish(format!("big/{n}"), vec![b'x'; 10_000_000], retained).await.unwrap();
        loop {
            match tokio::time::timeout(SOON, events.poll()).await.expect("the broker is silent") {
                Ok(Event::Incoming(Packet::PubAck(ack))) => {
                    assert_ne!(ack.reason, PubAckReason::Success, "{n}");
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    let used = resident(service.child.id().unwrap());
    assert!(used < before + 64, "{before} MiB before, {used} after");

    // within the largest packet: too large to be retained, and too many
    let (client, mut events) = client(service.mqtt, "many", Some(login()), |options| {
        options.set_outgoing_inflight_upper_limit(16);
    });
    connected(&mut events).await.unwrap();
    let publish = async |topic: String, bytes: usize| {
        let retained = PublishOptions::new(QoS::AtLeastOnce).retained();
        client.publish(topic, vec![b'x'; bytes], retained).await.unwrap();
    };
    publish("large".to_owned(), 1_000_000).await;
    assert_eq!(acknowledged(&mut events, 1).await, [PubAckReason::QuotaExceeded]);
    let mut reasons = Vec::new();
    for n in 0..100 {
        publish(format!("small/{n}"), 1_000).await;
        reasons.extend(acknowledged(&mut events, 1).await);
    }
    let taken = reasons.iter().filter(|reason| **reason != PubAckReason::QuotaExceeded).count();
    assert!((1..=64).contains(&taken), "{taken} were retained");

    // the service is as it was
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "one two").await["text"], "one two");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_wills_are_bounded() {
    let service = Service::start(&catalog(&DRY)).await;
    let refused = async |name: &str, keeps: bool, will: Option<String>| {
        let (_client, mut events) = client(service.mqtt, name, Some(login()), |options| {
            options.set_clean_start(true);
            let session_expiry_interval = Some(if keeps { 600 } else { 0 });
            options.set_connect_properties(ConnectProperties {
                session_expiry_interval,
                ..ConnectProperties::new()
            });
            if let Some(topic) = will {
                options.set_last_will(LastWill::new(topic, "gone", QoS::AtMostOnce, true, None));
            }
        });
        connected(&mut events).await.err()
    };
    let mut first = None;
    for n in 0..200 {
        if let Some(why) = refused(&format!("keeps-{n}"), true, None).await {
            assert!(why.contains("QuotaExceeded"), "{why}");
            first = Some(n);
            break;
        }
    }
    assert!(first.is_some_and(|n| (32..=64).contains(&n)), "{first:?} sessions");
    // one that is known may come back, and one that leaves nothing is welcome
    assert_eq!(refused("keeps-0", true, None).await, None);
    assert_eq!(refused("leaves", false, None).await, None);
    let mut first = None;
    for n in 0..200 {
        if let Some(why) = refused(&format!("will-{n}"), false, Some(format!("will/{n}"))).await {
            assert!(why.contains("QuotaExceeded"), "{why}");
            first = Some(n);
            break;
        }
    }
    assert!(first.is_some_and(|n| n <= 64), "{first:?} retained wills");
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "one two").await["text"], "one two");
}

#[tokio::test]
async fn a_login_of_ones_own_is_used() {
    let own = [("PILOTLIGHT_MQTT_PASSWORD", "own words")];
    let service = service(&own).await;
    assert!(!service.folder.path().join("state/broker.password").exists());
    let login = Some(("pilotlight", "own words"));
    let mut app = App::log_in(service.mqtt, "app", &["pilotlight/dev/reply/app/#"], login).await;
    assert_eq!(app.ask("app", "one two").await["text"], "one two");
    let config = json!({"mcpServers": {"a": {"command": "x"}}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), config.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("state/broker.password"), "one\ntwo words").unwrap();
    let env = [("PILOTLIGHT_STATE", "state")];
    let (code, _, err) = program(folder.path(), &["check"], &env).await;
    assert!(code == 2 && err.contains(&Path::new("state/broker.password").display().to_string()));
    assert!(!err.contains("two words"), "{err}");
}
