//! Two devices that are peers of each other: a failed job is forwarded once and not back.

use std::time::{Duration, Instant};

use crate::support::cloud::{Cloud, answer, entry};
use crate::support::service::{Service, catalog, free_port};
use serde_json::{Value, json};

/// A device with a model of this name, the other device as its peer, and a cloud model.
fn device(name: &str, own: u16, peer: u16, cloud: &Cloud) -> Service {
    let mut catalog = catalog(&["--scripted", name]);
    let url = format!("http://127.0.0.1:{peer}/mcp");
    catalog["mcpServers"]["beside"] = json!({"type": "http", "url": url});
    catalog["pilotlight"]["servers"] = json!({"beside": {"reach": "peer"}});
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let mut service =
        Service::launch(&catalog, "off", &[("PILOTLIGHT_HTTP", &format!("127.0.0.1:{own}"))]);
    service.http = own;
    service
}

async fn ask(service: &Service, prompt: &str, mode: &str) -> Value {
    let body = json!({
        "model": "auto", "messages": [{"role": "user", "content": prompt}],
        "metadata": {"mode": mode, "deadline_ms": 8000},
    });
    service.chat(body).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_fall_back_to_the_peer_and_then_to_the_cloud() {
    let cloud = Cloud::start([answer(&["from ", "afar"])]).await;
    let (a, b) = (free_port(), free_port());
    let (one, two) = (device("a", a, b, &cloud), device("b", b, a, &cloud));
    one.ready_all().await;
    two.ready_all().await;
    let route = |reply: &Value| {
        let record = &reply["pilotlight"];
        let attempts = record["decision"]["attempts"].as_array().cloned().unwrap_or_default();
        let tried: Vec<String> =
            attempts.iter().map(|one| one["server"].as_str().unwrap().to_owned()).collect();
        (record["source"]["where"].as_str().unwrap_or("nowhere").to_owned(), tried)
    };
    let expected = |place: &str, tried: &[&str]| {
        (place.to_owned(), tried.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    };

    let reply = ask(&one, "hello", "prefer-local").await;
    assert_eq!(route(&reply), expected("device", &["local"]), "{reply}");

    // the model of this device fails, that of the peer does not
    let reply = ask(&one, "/fail-a=broken hello", "prefer-local").await;
    assert_eq!(route(&reply), expected("peer", &["local", "beside"]), "{reply}");
    assert_eq!(cloud.asked().len(), 0);

    // both models fail, and the breaker of the own one is still open. The peer does not forward the
    // job back but calls its cloud model.
    let started_at = Instant::now();
    let reply = ask(&one, "/fail-a=broken /fail-b=broken hello", "prefer-local").await;
    let (place, tried) = route(&reply);
    assert_eq!((place.as_str(), tried.last().map(String::as_str)), ("peer", Some("beside")));
    assert_eq!(reply["choices"][0]["message"]["content"], "from afar", "{reply}");
    assert!(started_at.elapsed() < Duration::from_secs(5), "{:?}", started_at.elapsed());
    assert_eq!(cloud.asked().len(), 1);

    // a local-only prompt is not forwarded, though its model fails
    let reply = ask(&one, "/fail-a=broken hello", "local-only").await;
    assert_eq!(reply["choices"], Value::Null, "{reply}");
    assert_eq!(cloud.asked().len(), 1);
    drop((one, two));
}
