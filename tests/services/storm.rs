//! A storm of scripted brokers: every reason code of every packet, and every limit of CONNACK. Whatever
//! a broker answers, the service does not wear it or the flash card out, and other applications have
//! their replies.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use crate::support::scripted_broker::{Act, Published, Script, ScriptedBroker, Seen, Which};
use crate::support::{PROGRAM, pace};
use bytes::Bytes;
use pilotlight::catalog::expand::Variables;
use pilotlight::daemon::{Core, calm, keep_of};
use pilotlight::ingress::mqtt::MqttInterface;
use pilotlight::ingress::mqtt::topics::DeviceTopics;
use pilotlight::metrics::Metrics;
use pilotlight::mqtt::{ConnectionOptions, FixedPresence, Presence, Router, Session};
use pilotlight::{config, mqtt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time until a service has settled with its broker, and the time in which it is watched then.
const SETTLES: Duration = Duration::from_secs(12);
const WATCHED: Duration = Duration::from_secs(5);
const LINES_A_MINUTE: usize = 100;

struct Case {
    name: String,
    script: Script,
    /// An application whose topics the script spares has its replies.
    answers_others: bool,
}

fn case(name: impl Into<String>, script: Script, answers_others: bool) -> Case {
    Case { name: name.into(), script, answers_others }
}

fn publish(which: Which, act: Act) -> Script {
    Script { publish: Some((which, act)), ..Script::default() }
}

fn connack(code: u8, properties: &[u8]) -> Script {
    Script { connack: (code, properties.to_vec()), ..Script::default() }
}

/// The topics of the application that is refused.
const BAD: Which = Which::Topic("/reply/bad");

fn packets() -> Vec<Case> {
    let mut all = Vec::new();
    // CONNACK: all codes, one that the standard does not have, and one of MQTT 3.1.1
    let codes =
        [0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95];
    let more = [0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F, 0x42, 0x05];
    for code in codes.into_iter().chain(more) {
        all.push(case(format!("CONNACK {code:02X}"), connack(code, &[]), false));
    }
    // PUBACK, and PUBREC in its place
    let codes = [0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99, 0x95, 0x96, 0x9A, 0x42];
    for code in codes {
        for (name, kind) in [("PUBACK", 0x40), ("PUBREC", 0x50)] {
            let act = Act::Send(vec![kind, 3, b'P', b'P', code]);
            all.push(case(format!("{name} {code:02X}"), publish(BAD, act.clone()), true));
            // a refusal of every topic, the presence's too
            all.push(case(format!("{name} {code:02X} always"), publish(Which::All, act), false));
        }
    }
    for (name, bytes) in [
        ("PUBCOMP", vec![0x70, 2, b'P', b'P']),
        ("PUBCOMP 92", vec![0x70, 3, b'P', b'P', 0x92]),
        ("PUBREL", vec![0x62, 2, b'P', b'P']),
        ("PUBREC that is good", vec![0x50, 2, b'P', b'P']),
        ("PUBACK for another", vec![0x40, 2, 0x7F, 0x7F]),
        ("PUBACK for none", vec![0x40, 2, 0, 0]),
        ("PINGRESP", vec![0xD0, 0]),
        ("SUBACK for a publish", vec![0x90, 4, b'P', b'P', 0, 0]),
    ] {
        all.push(case(name, publish(BAD, Act::Send(bytes)), true));
    }
    for code in [0x00, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2, 0x42] {
        let script = Script { suback: Some((code, "")), ..Script::default() };
        all.push(case(format!("SUBACK {code:02X}"), script, code < 3));
    }
    let after = |bytes: Vec<u8>| Script { subscribed: Some(Act::Send(bytes)), ..Script::default() };
    for code in [0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91] {
        let bytes = vec![0xB0, 4, 0, 9, 0, code];
        all.push(case(format!("UNSUBACK {code:02X}"), after(bytes), false));
    }
    for code in [0x00, 0x18, 0x19] {
        all.push(case(format!("AUTH {code:02X}"), after(vec![0xF0, 2, code, 0]), false));
    }
    let codes = (0x80..=0xA2).filter(|code| ![0x84, 0x85, 0x86, 0x88, 0x8A, 0x8C].contains(code));
    for code in [0x00, 0x04, 0x42].into_iter().chain(codes) {
        let bytes = vec![0xE0, 2, code, 0];
        let closes = Act::SendAndClose(bytes);
        let script = Script { subscribed: Some(closes.clone()), ..Script::default() };
        all.push(case(format!("DISCONNECT {code:02X}"), script, false));
        all.push(case(format!("DISCONNECT {code:02X} for a topic"), publish(BAD, closes), false));
    }
    all
}

fn limits() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, properties, answers) in [
        ("maximum packet 50", vec![0x27, 0, 0, 0, 50], false),
        ("maximum packet 100", vec![0x27, 0, 0, 0, 100], false),
        ("maximum packet 200", vec![0x27, 0, 0, 0, 200], true),
        ("maximum packet 400", vec![0x27, 0, 0, 1, 0x90], true),
        ("maximum packet 1000", vec![0x27, 0, 0, 3, 0xE8], true),
        ("maximum packet 0", vec![0x27, 0, 0, 0, 0], false),
        ("receive maximum 1", vec![0x21, 0, 1], true),
        ("receive maximum 65535", vec![0x21, 0xFF, 0xFF], true),
        ("receive maximum 0", vec![0x21, 0, 0], false),
        ("maximum QoS 0", vec![0x24, 0], true),
        ("maximum QoS 1", vec![0x24, 1], true),
        ("maximum QoS 2", vec![0x24, 2], false),
        ("no retain", vec![0x25, 0], true),
        ("retain", vec![0x25, 1], true),
        ("topic alias 0", vec![0x22, 0, 0], true),
        ("topic alias 10", vec![0x22, 0, 10], true),
        ("no wildcards", vec![0x28, 0], false),
        ("no subscription identifiers", vec![0x29, 0], true),
        ("no shared subscriptions", vec![0x2A, 0], true),
        ("keep alive 0", vec![0x13, 0, 0], true),
        ("keep alive 1", vec![0x13, 0, 1], true),
        ("keep alive 65535", vec![0x13, 0xFF, 0xFF], true),
        ("session expiry 0", vec![0x11, 0, 0, 0, 0], true),
        ("session expiry for ever", vec![0x11, 0xFF, 0xFF, 0xFF, 0xFF], true),
        ("assigned identifier", vec![0x12, 0, 1, b'x'], false),
        ("reason string", vec![0x1F, 0, 2, b'h', b'i'], true),
        ("user property", vec![0x26, 0, 1, b'a', 0, 1, b'b'], true),
        ("response information", vec![0x1A, 0, 1, b'r'], false),
        ("server reference", vec![0x1C, 0, 1, b's'], true),
        ("authentication method", vec![0x15, 0, 1, b'm'], false),
        ("unknown property", vec![0x7E, 0], false),
    ] {
        all.push(case(name, connack(0, &properties), answers));
    }
    let all_at_once = [
        0x27, 0, 0, 1, 0x90, 0x21, 0, 1, 0x24, 0, 0x25, 0, 0x29, 0, 0x2A, 0, 0x13, 0, 1, 0x11, 0,
        0, 0, 0,
    ];
    all.push(case("all limits", connack(0, &all_at_once), true));
    // the will is refused before a limit can be stated
    let will = |code, is: fn(&rumqttc::mqttbytes::v5::LastWill) -> bool, properties: &[u8]| {
        Script { will: Some((code, is)), ..connack(0, properties) }
    };
    let qos = |will: &rumqttc::mqttbytes::v5::LastWill| will.qos as u8 > 0;
    all.push(case("retained will 9A", will(0x9A, |will| will.retain, &[0x25, 0]), true));
    all.push(case("will with QoS 9B", will(0x9B, qos, &[0x24, 0]), true));
    for code in [0x90, 0x95, 0x99] {
        all.push(case(format!("will {code:02X}"), will(code, |_| true, &[]), true));
    }
    all
}

fn closes() -> Vec<Case> {
    let mut all = Vec::new();
    for most in [60, 150, 300, 600, 1000] {
        let over = |act: Act| publish(Which::Over(most), act);
        let answers = most > 300;
        all.push(case(format!("closes over {most}"), over(Act::Close), answers));
        let named = Act::SendAndClose(vec![0xE0, 2, 0x95, 0]);
        all.push(case(format!("DISCONNECT 95 over {most}"), over(named), answers));
        let undefined = Act::Send(vec![0x40, 3, b'P', b'P', 0x95]);
        all.push(case(format!("PUBACK 95 over {most}"), over(undefined), answers));
    }
    all.push(case("closes for a topic", publish(BAD, Act::Close), true));
    all.push(case("closes for retained", publish(Which::Retained, Act::Close), true));
    all.push(case("closes for every publish", publish(Which::All, Act::Close), false));
    all.push(case("answers no publish", publish(Which::All, Act::Nothing), false));
    all.push(case("answers no publish to a topic", publish(BAD, Act::Nothing), true));
    let connect = |act| Script { connect: Some(act), ..Script::default() };
    all.push(case("closes on CONNECT", connect(Act::Close), false));
    all.push(case("answers no CONNECT", connect(Act::Nothing), false));
    all.push(case("no MQTT", connect(Act::Send(b"HTTP/1.1 400 \r\n\r\n".to_vec())), false));
    all.push(case("CONNACK of 3.1.1", connect(Act::SendAndClose(vec![0x20, 2, 0, 1])), false));
    let two = [[0x20, 3, 0, 0, 0], [0x20, 3, 0, 0, 0]].concat();
    all.push(case("two CONNACKs", connect(Act::Send(two)), false));
    let subscribe = |act| Script { subscribe: Some(act), ..Script::default() };
    all.push(case("closes on SUBSCRIBE", subscribe(Act::Close), false));
    all.push(case("answers no SUBSCRIBE", subscribe(Act::Nothing), false));
    let subscribed = |act| Script { subscribed: Some(act), ..Script::default() };
    all.push(case("closes when subscribed", subscribed(Act::Close), false));
    all.push(case("garbage", subscribed(Act::Send(vec![0xFF; 16])), false));
    let ping = |act| Script { ping: Some(act), ..connack(0, &[0x13, 0, 1]) };
    all.push(case("answers no ping", ping(Act::Nothing), false));
    all.push(case("closes on a ping", ping(Act::Close), false));
    all
}

/// The log of this process, line by line.
static LINES: LazyLock<Mutex<Vec<(Instant, String)>>> = LazyLock::new(Mutex::default);

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        LINES.lock().unwrap().push((Instant::now(), text));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The MQTT interface of a service with this broker; it ends with the set.
fn serve(device: &str, port: u16, core: &Core) -> (mqtt::Bus, JoinSet<()>) {
    let topics = DeviceTopics::new("pilotlight", device);
    let presence = |state: &str| Bytes::from(json!({"state": state}).to_string());
    let mut router = Router::default();
    let requests = router.subscribe(topics.filters(), 128);
    let options = ConnectionOptions {
        spool: None,
        host: "127.0.0.1".to_owned(),
        port,
        tls: None,
        client_id: format!("pilotlight-{device}"),
        credentials: None,
        presence: Some(Presence {
            topic: topics.status(),
            messages: Arc::new(FixedPresence {
                online: presence("online"),
                offline: presence("offline"),
            }),
            is_asserted: false,
        }),
        session: Session::Kept,
    };
    let stop = CancellationToken::new();
    let (bus, driver) = mqtt::open(options, router, stop.clone());
    let interface = MqttInterface {
        bus: bus.clone(),
        dispatch: core.dispatch.clone(),
        topics,
        metrics: Metrics::default(),
        state: None,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    tasks.spawn(interface.run(requests, stop));
    (bus, tasks)
}

/// One service at its broker; requests of a refused and of another application.
async fn check(case: Case, number: usize, core: Arc<Core>) -> Vec<String> {
    let device = format!("d{number}x");
    let broker = ScriptedBroker::start(case.script).await;
    let (bus, _tasks) = serve(&device, broker.port, &core);
    let ask = |app: &str, id: &str| {
        let payload = json!({"id": id, "prompt": "one two three"}).to_string();
        broker.request(&format!("pilotlight/{device}/request/{app}"), &payload);
    };
    ask("bad", "b-1");
    ask("good", "g-1");
    let mut faults = Vec::new();
    tokio::time::sleep(SETTLES).await;
    let began = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let in_window = |at: Instant| at >= began && at < began + WATCHED;
    let most = usize::try_from(WATCHED.as_secs()).unwrap();
    {
        let seen = broker.seen.lock().unwrap();
        let connects = seen.connects.iter().filter(|(at, ..)| in_window(*at)).count();
        let publishes = seen.publishes.iter().filter(|publish| in_window(publish.at)).count();
        if connects > most || publishes > most {
            faults.push(format!("{connects} connects, {publishes} publishes in {WATCHED:?}"));
        }
        // and it did not wear it out before
        if seen.connects.len() > 20 || seen.publishes.len() > 60 {
            let (connects, publishes) = (seen.connects.len(), seen.publishes.len());
            faults.push(format!("{connects} connects, {publishes} publishes in all"));
        }
    }
    let lines: Vec<(Instant, String)> = {
        let port = format!("port={}\n", broker.port);
        let device = format!("/{device}/");
        let is_ours = |line: &str| line.contains(&device) || line.ends_with(&port);
        let lines = LINES.lock().unwrap();
        lines.iter().filter(|(_, line)| is_ours(line)).cloned().collect()
    };
    // the first minute has the search for the cause
    let late = lines.iter().filter(|(at, _)| in_window(*at)).count();
    let per_minute = late * 60 / usize::try_from(WATCHED.as_secs()).unwrap();
    if per_minute > LINES_A_MINUTE || lines.len() > LINES_A_MINUTE / 2 {
        faults.push(format!("{late} log lines in {WATCHED:?}: {lines:#?}"));
    }
    if case.answers_others {
        ask("good", "g-2");
        let both = |seen: &Seen| {
            let taken = seen.taken("/reply/good");
            let is_last = |reply: &Published| reply.payload.windows(3).any(|part| part == b"g-2");
            taken.iter().any(is_last).then_some(taken)
        };
        let within = pace::stretched(Duration::from_secs(20));
        match broker.until_within(within, both).await {
            Some(taken) => {
                let id_of = |reply: &Published| {
                    serde_json::from_slice::<Value>(&reply.payload).unwrap()["id"].clone()
                };
                let mut ids: Vec<Value> = taken.iter().map(id_of).collect();
                let count = ids.len();
                ids.dedup();
                // QoS 1: an acknowledgement that is lost with the connection
                if ids != ["g-1", "g-2"] || count > 3 {
                    faults.push(format!("answered {ids:?}"));
                }
            }
            None => {
                let seen = broker.seen.lock().unwrap();
                let all = seen.publishes.iter();
                let all: Vec<_> = all.map(|p| (&p.topic, p.size, p.qos, p.is_taken)).collect();
                let problems = bus.report().problems();
                let connects = seen.connects.len();
                faults.push(format!(
                    "the others are not answered; {connects} connects, {all:?} {problems:?} {lines:?}"
                ));
            }
        }
    }
    faults.into_iter().map(|fault| format!("{}: {fault}", case.name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_brokers_wear_nothing_out() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Lines).init();
    let folder = tempfile::tempdir().unwrap();
    let args = ["engine", "--scripted", "dry", "--slots", "8"];
    let file = json!({"mcpServers": {"local": {"command": PROGRAM, "args": args}}});
    std::fs::write(folder.path().join("mcp.json"), file.to_string()).unwrap();
    let variables = Variables::from([
        ("PILOTLIGHT_STATE".to_owned(), "off".to_owned()),
        ("PILOTLIGHT_DEVICE".to_owned(), "dev".to_owned()),
    ]);
    let config = config::load(Some(&folder.path().join("mcp.json")), &variables).unwrap();
    let core = Arc::new(Core::start(&config, calm(), keep_of(&config), None));
    core.dispatch.ready().await;
    let mut all = JoinSet::new();
    let cases: Vec<Case> = [packets(), limits(), closes()].into_iter().flatten().collect();
    assert!(cases.len() >= 200, "{}", cases.len());
    for (number, case) in cases.into_iter().enumerate() {
        all.spawn(check(case, number, Arc::clone(&core)));
    }
    let faults: Vec<Vec<String>> = all.join_all().await;
    let faults: Vec<String> = faults.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{} faults: {faults:#?}", faults.len());
}
