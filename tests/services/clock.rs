//! A clock that was once far ahead: the budget is told of it and not blocked for as long.

use serde_json::{Value, json};

use crate::support::cloud::{Cloud, answer, entry};
use crate::support::service::{Service, catalog, program};

/// The hour and the month of so many seconds since 1970, as the ledger has them.
fn hour(seconds: u64) -> Value {
    let text = serde_json::to_string(&pilotlight::money::Hour::at(seconds)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// A ledger of a version before this test, whose last hour was at this time, with this much spent in each
/// span.
fn ledger(seconds: u64, usd: u64) -> String {
    let at = hour(seconds);
    let spent = usd * 1_000_000_000_000;
    let totals = json!([
        {"span": at["hour"], "usd": spent},
        {"span": at["hour"].as_u64().unwrap() / 24, "usd": spent},
        {"span": at["month"], "usd": spent},
    ]);
    let books = json!({"now": at, "device": totals, "apps": {}, "open": {}});
    format!("{}\n", json!({"books": books}))
}

/// A service with a provider of a dollar for each answer, and this ledger.
async fn service(cloud: &Cloud, budget: Value, ledger: &str) -> Service {
    let mut config = catalog(&["--scripted", "small"]);
    let mut big = entry(&cloud.url);
    big["max_output_tokens"] = json!(100);
    big["price"] = json!({"input": 0, "output": 10_000});
    config["pilotlight"]["providers"] = json!({"big": big});
    config["pilotlight"]["policy"] = json!({"budget": budget});
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("state")).unwrap();
    std::fs::write(folder.path().join("state/spent.jsonl"), ledger).unwrap();
    let service = Service::launch_in(folder, &config, "off", &[]);
    service.ready_all().await;
    service
}

async fn paid(service: &Service) -> (u16, Value) {
    let far = json!({"mode": "cloud-only", "deadline_ms": "8000"});
    let prompt = json!([{"role": "user", "content": "hello"}]);
    service.chat(json!({"model": "big", "messages": prompt, "metadata": far})).await
}

/// What `doctor` and `status` say of the clock.
async fn told(service: &Service) -> String {
    let http = format!("127.0.0.1:{}", service.http);
    let state = service.folder.path().join("state").display().to_string();
    let env = [
        ("PILOTLIGHT_HTTP", http.as_str()),
        ("PILOTLIGHT_STATE", state.as_str()),
        ("PILOTLIGHT_MQTT", "off"),
    ];
    let mut told = String::new();
    for command in ["status", "doctor"] {
        let (_, out, err) = program(service.folder.path(), &[command], &env).await;
        let line = out.lines().find(|line| line.contains("ledger")).unwrap_or_default();
        assert!(!line.is_empty(), "{command} does not speak of the ledger: {out}{err}");
        told += line;
    }
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_400_days_ahead_blocks_nothing_beyond_the_present_month() {
    let cloud = Cloud::start([answer(&["well"])]).await;
    let ahead = ledger(now() + 400 * 86_400, 2);
    // what was spent counts now
    let service = service(&cloud, json!({"usd_per_month": 3}), &ahead).await;
    let (status, answer) = paid(&service).await;
    assert_eq!(status, 200, "{answer}");
    let state = service.state().await.unwrap();
    assert!(state["spent_usd"]["month"].as_f64().unwrap() >= 2.0, "{state}");
    assert!(state["clock"].as_str().unwrap().contains("9600 hours ahead"), "{state}");
    let told = told(&service).await;
    assert_eq!(told.matches("pilotlight budget correct").count(), 2, "{told}");
    drop(service);

    // and is not given back: the month's budget is used up
    let service = self::service(&cloud, json!({"usd_per_month": 2.5}), &ahead).await;
    let (status, answer) = paid(&service).await;
    assert_eq!(status, 503, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("pilotlight budget correct"), "{message}");
    drop(service);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_some_days_ahead_is_told() {
    let cloud = Cloud::start([answer(&["well"])]).await;
    let ahead = ledger(now() + 10 * 86_400, 2);
    let service = service(&cloud, json!({"usd_per_hour": 2.5}), &ahead).await;
    let (status, answer) = paid(&service).await;
    assert_eq!(status, 503, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("240 hours behind the ledger"), "{message}");
    let told = told(&service).await;
    assert_eq!(told.matches("pilotlight budget correct").count(), 2, "{told}");
}
