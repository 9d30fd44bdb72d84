//! Noisy neighbour: three applications with a low request rate beside an application that overloads the
//! service. Deadlines that the three miss, and memory of the service. A real model, a real broker and the HTTP
//! interface; every row has a service of its own, all in one run.
//!
//! `SECONDS=60` sets the length of a row (20 by default), `ROWS=names` chooses those whose name has the word.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    missing_docs,
    unreachable_pub,
    reason = "a bench ends at the first surprise"
)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use support::figures::memory;
use support::mqtt::{App, Mosquitto};
use support::service::{Service, client};
use support::{model_file, print_head, print_machine, print_row, quantile};

/// Three applications ask in turn, each this often.
const HONEST: [&str; 3] = ["camera", "door", "lamp"];
const EACH: Duration = Duration::from_millis(2400);
/// Deadline of an honest request.
const DEADLINE: Duration = Duration::from_millis(4000);

/// Load of the other application.
#[derive(Clone, Copy, PartialEq)]
enum Attack {
    Nothing,
    /// A thousand requests a second.
    Flood,
    /// The same under a new name each time.
    Names,
    /// Schemas of many patterns in a tool.
    Schemas,
    /// Constraints without an end.
    Grammars,
    /// Long answers with the most urgent class and the longest deadline.
    Slow,
    /// Large prompts.
    Large,
}

const ATTACKS: [(&str, Attack); 7] = [
    ("nothing", Attack::Nothing),
    ("1,000 requests a second", Attack::Flood),
    ("1,000 names a second", Attack::Names),
    ("300 patterns in a schema", Attack::Schemas),
    ("a constraint without end", Attack::Grammars),
    ("long answers, 40 at once", Attack::Slow),
    ("prompts of 200 KiB", Attack::Large),
];

impl Attack {
    /// The pause between two requests.
    fn pause(self) -> Duration {
        match self {
            Attack::Nothing => Duration::MAX,
            Attack::Flood | Attack::Names => Duration::from_millis(1),
            Attack::Schemas | Attack::Slow | Attack::Large => Duration::from_millis(100),
            Attack::Grammars => Duration::from_millis(500),
        }
    }

    fn request(self, n: usize) -> Value {
        let id = format!("n{n}");
        match self {
            Attack::Nothing | Attack::Flood | Attack::Names => {
                json!({"id": id, "prompt": format!("Tell me about {n}."), "max_tokens": 16})
            }
            Attack::Schemas => {
                let property = |i| {
                    (
                        format!("p{i}"),
                        json!({"type": "string", "pattern": format!("^\\pL{{200}}{i}$")}),
                    )
                };
                let properties: Value = (0..300).map(property).collect();
                let schema = json!({"type": "object", "properties": properties});
                json!({"id": id, "prompt": "x", "tools": [{"name": "t", "input_schema": schema}]})
            }
            Attack::Grammars => json!({
                "id": id, "prompt": "A number?",
                "schema": {"type": "object", "properties": {"n": {
                    "type": "integer", "minimum": 0, "maximum": 999_999_999_999_999_u64,
                    "multipleOf": 997 + n % 3,
                }}, "required": ["n"]},
            }),
            Attack::Slow => json!({
                "id": id, "prompt": format!("Count from {n} upwards, without an end."), "max_tokens": 512,
                "class": "interactive", "deadline_ms": 3_600_000,
            }),
            Attack::Large => {
                json!({"id": id, "prompt": format!("{n} ").repeat(40_000), "max_tokens": 16})
            }
        }
    }

    fn app(self, n: usize) -> String {
        if self == Attack::Names { format!("name-{n}") } else { "other".to_owned() }
    }
}

fn catalog() -> Value {
    let apps: Value = HONEST
        .iter()
        .map(|name| ((*name).to_owned(), json!({"http_token": format!("${{TOKEN_{name}}}")})))
        .collect();
    let mut catalog = json!({
        "mcpServers": {"local": {"command": "pilotlight", "args": ["engine", "--gguf", model_file()]}},
        "pilotlight": {"device": {"name": "dev"}, "policy": {"apps": apps}},
    });
    catalog["pilotlight"]["policy"]["apps"]["other"] = json!({"http_token": "${TOKEN_other}"});
    catalog
}

fn honest(n: usize) -> Value {
    let deadline_ms = u64::try_from(DEADLINE.as_millis()).unwrap();
    json!({"id": format!("h{n}"), "prompt": format!("Reading {n} is 21 degrees. Is it warm?"),
           "max_tokens": 8, "deadline_ms": deadline_ms})
}

/// Outcomes of the honest requests.
#[derive(Default)]
struct Tally {
    asked: usize,
    missed: usize,
    ms: Vec<f64>,
    refusals: BTreeMap<String, usize>,
}

impl Tally {
    fn note(&mut self, took: Duration, reply: Option<&Value>) {
        self.asked += 1;
        self.ms.push(took.as_secs_f64() * 1e3);
        let is_ok = reply.is_some_and(|reply| reply["status"] == "ok") && took <= DEADLINE;
        if !is_ok {
            self.missed += 1;
            let code = reply.map_or("no reply".to_owned(), |reply| {
                reply["error"]["code"].as_str().unwrap_or("late").to_owned()
            });
            *self.refusals.entry(code).or_default() += 1;
        }
    }
}

/// When the request of this number is due.
fn due(n: usize) -> Duration {
    EACH * u32::try_from(n).unwrap() / u32::try_from(HONEST.len()).unwrap()
}

async fn honest_over_mqtt(port: u16, length: Duration) -> Tally {
    let mut app = App::connect(port, "honest", &["pilotlight/dev/reply/+"]).await;
    let began = Instant::now();
    let (mut tally, mut sent, mut at) = (Tally::default(), BTreeMap::new(), 0);
    let last = length + DEADLINE + Duration::from_secs(1);
    loop {
        let next = if due(at) < length { due(at) } else { last };
        let wait = next.saturating_sub(began.elapsed());
        tokio::select! {
            Some(publish) = app.inbox.recv() => {
                let reply: Value = serde_json::from_slice(&publish.payload).unwrap();
                let id = reply["id"].as_str().unwrap_or_default().to_owned();
                if let Some(asked) = sent.remove(&id) {
                    let asked: Instant = asked;
                    tally.note(asked.elapsed(), Some(&reply));
                }
            }
            () = tokio::time::sleep(wait) => {
                if due(at) >= length {
                    for asked in sent.into_values() {
                        tally.note(asked.elapsed(), None);
                    }
                    return tally;
                }
                let request = honest(at);
                sent.insert(request["id"].as_str().unwrap().to_owned(), Instant::now());
                let topic = format!("pilotlight/dev/request/{}", HONEST[at % HONEST.len()]);
                app.send(&topic, request.to_string(), PublishProperties::default()).await;
                at += 1;
            }
        }
    }
}

async fn attack_over_mqtt(port: u16, attack: Attack) {
    let app = App::connect(port, "other", &[]).await;
    let mut tick = tokio::time::interval(attack.pause());
    // ends with the row
    for n in 0.. {
        tick.tick().await;
        let topic = format!("pilotlight/dev/request/{}", attack.app(n));
        let options = rumqttc::PublishOptions::new(QoS::AtLeastOnce);
        app.client.publish(topic, attack.request(n).to_string(), options).await.unwrap();
    }
}

fn chat_of(request: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["deadline_ms", "class"] {
        if let Some(value) = request.get(field) {
            metadata[field] =
                json!(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    let mut body = json!({
        "model": "auto", "messages": [{"role": "user", "content": request["prompt"]}],
        "max_tokens": request.get("max_tokens").cloned().unwrap_or(json!(64)), "metadata": metadata,
    });
    if let Some(schema) = request.get("schema") {
        body["response_format"] =
            json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    }
    if let Some(tool) = request["tools"].get(0) {
        body["tools"] = json!([{"type": "function",
            "function": {"name": tool["name"], "parameters": tool["input_schema"]}}]);
    }
    body
}

async fn honest_over_http(url: &str, length: Duration) -> Tally {
    let (client, began) = (client(), Instant::now());
    let mut calls = tokio::task::JoinSet::new();
    let mut tally = Tally::default();
    for n in (0..).take_while(|n| due(*n) < length) {
        tokio::time::sleep(due(n).saturating_sub(began.elapsed())).await;
        let token = format!("of {}", HONEST[n % HONEST.len()]);
        let call = client.post(url).bearer_auth(token).json(&chat_of(&honest(n)));
        calls.spawn(async move {
            let began = Instant::now();
            let status = match call.send().await {
                Ok(answer) if answer.status() == 200 => answer.bytes().await.map(|_| json!("ok")),
                Ok(answer) => Ok(json!(answer.status().as_u16())),
                Err(error) => Err(error),
            };
            let status = status.unwrap_or(json!("connection"));
            (began.elapsed(), json!({"status": status, "error": {"code": status.to_string()}}))
        });
    }
    while let Some(done) = calls.join_next().await {
        let (took, reply) = done.unwrap();
        tally.note(took, Some(&reply));
    }
    tally
}

async fn attack_over_http(url: &str, attack: Attack) {
    let client = client();
    let mut tick = tokio::time::interval(attack.pause());
    let mut calls = tokio::task::JoinSet::new();
    // ends with the row
    for n in 0.. {
        tick.tick().await;
        let call = client.post(url).bearer_auth("of other").json(&chat_of(&attack.request(n)));
        calls.spawn(async move {
            let _ = call.send().await;
        });
        while calls.len() > 1000 {
            calls.join_next().await;
        }
    }
}

async fn row(name: &str, attack: Attack, is_http: bool, length: Duration) {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let tokens: Vec<(String, String)> = HONEST
        .iter()
        .chain(&["other"])
        .map(|name| (format!("TOKEN_{name}"), format!("of {name}")))
        .collect();
    let env: Vec<(&str, &str)> =
        tokens.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
    let service = Service::launch_with_log(&catalog(), &url, &env);
    service.ready().await;
    let http = service.url("/v1/chat/completions");
    // the rates are known afterwards
    if is_http {
        honest_over_http(&http, EACH * 2).await;
    } else {
        honest_over_mqtt(broker.port, EACH * 2).await;
    }
    let (pid, engine) = (service.child.id().unwrap(), service.engine());
    let before = memory(pid).resident;
    let attacker = async {
        match (attack, is_http) {
            (Attack::Nothing, _) => std::future::pending().await,
            (_, true) => attack_over_http(&http, attack).await,
            (_, false) => attack_over_mqtt(broker.port, attack).await,
        }
    };
    let honest = async {
        if is_http {
            honest_over_http(&http, length).await
        } else {
            honest_over_mqtt(broker.port, length).await
        }
    };
    let mut most = before;
    let watch = async {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(memory(pid).resident);
        }
    };
    let mut tally = tokio::select! {
        tally = honest => tally,
        () = attacker => unreachable!(),
        () = watch => unreachable!(),
    };
    let engine_now = service.engines();
    let refusals: Vec<String> =
        tally.refusals.iter().map(|(code, times)| format!("{code} {times}")).collect();
    print_row(&[
        if is_http { "HTTP" } else { "MQTT" }.to_owned(),
        name.to_owned(),
        tally.asked.to_string(),
        format!("{:.1} %", 100.0 * tally.missed as f64 / tally.asked as f64),
        refusals.join(", "),
        format!("{:.0}", quantile(&mut tally.ms, 0.5)),
        format!("{:.0}", quantile(&mut tally.ms, 0.95)),
        format!("{before:.0}, +{:.0}", most - before),
        if engine_now == [engine] { "same" } else { "another" }.to_owned(),
    ]);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    support::pace::turn_off();
    print_machine();
    let seconds = std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    println!(
        "Three applications with a request each {} ms and a deadline of {} ms, beside one more, {seconds} s a row",
        EACH.as_millis(),
        DEADLINE.as_millis()
    );
    let columns = [
        "interface",
        "the other does",
        "asked",
        "missed",
        "because",
        "p50 ms",
        "p95 ms",
        "memory of the service, MiB",
        "engine",
    ];
    print_head(&columns);
    let rows = std::env::var("ROWS").unwrap_or_default();
    for is_http in [false, true] {
        for (name, attack) in ATTACKS.iter().copied().filter(|(name, _)| name.contains(&rows)) {
            row(name, attack, is_http, Duration::from_secs(seconds)).await;
        }
    }
}
