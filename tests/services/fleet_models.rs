//! Signed configurations with models: what is missing is downloaded before the update is tried, while the
//! service goes on.

use std::time::Duration;

use serde_json::{Value, json};

use super::fleet_push::{Manager, remote};
use crate::support::model_fixture::sha256 as digest;
use crate::support::model_server::{ModelServer, Sent, gguf, reply, whole};
use crate::support::service::{Service, catalog, client};
use crate::support::signing::sha256;
use crate::support::{PROGRAM, SOON};

const BYTES: usize = 2_000_000;

/// A configuration whose engine loads this model from the server.
fn with_model(server: &ModelServer, content: &[u8], sha256: &str) -> Value {
    let mut config = remote("real", "reading {{word}}");
    config["pilotlight"]["servers"] = json!({"local": {"model": "new.gguf"}});
    config["pilotlight"]["models"] = json!({"new.gguf": {
        "source": format!("{}/new.gguf", server.url), "sha256": sha256, "bytes": content.len(),
        "licence": "apache-2.0",
    }});
    config
}

/// A manager whose key may sign models of this server, and a device.
async fn plant(server: &ModelServer) -> (Manager, Service) {
    let manager = Manager::new().await;
    let path = manager.path("trust.json");
    let mut trust: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    trust["keys"]["ops"]["operations"] = json!(["config", "models"]);
    trust["neighbours"] = json!([server.url]);
    let args = ["engine", "--gguf", "{model}"];
    trust["commands"]["real"] = json!({"path": PROGRAM, "sha256": sha256(PROGRAM), "args": args});
    std::fs::write(path, trust.to_string()).unwrap();
    let ca = manager.path("ca.pem").display().to_string();
    std::fs::write(&ca, &server.certificate).unwrap();
    let file = catalog(&["--scripted", "old", "--slots", "4"]);
    let device = manager.launch(tempfile::tempdir().unwrap(), &file, &[("SSL_CERT_FILE", &ca)]);
    device.ready().await;
    (manager, device)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_stops_nothing_and_is_ended_by_the_operator() {
    let content = gguf(BYTES, 1);
    let sent = content.clone();
    let server = ModelServer::start(move |_| {
        let first = [whole(&sent, "\"1\""), sent[..BYTES / 2].to_vec()].concat();
        Sent::Gate(first, sent[BYTES / 2..].to_vec())
    })
    .await;
    let (mut manager, device) = plant(&server).await;
    let version = manager.push(&with_model(&server, &content, &digest(&content))).await;
    manager.until("verified", version).await;
    // the service answers and reads its configuration again meanwhile
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "old");
    let (code, _) = device.post("/reload", &json!({})).await;
    assert_eq!(code, 200);
    // a message of another does not end it
    manager.publish(b"no update".to_vec()).await;
    assert_eq!(manager.ask(json!({"id": "b", "prompt": "b"})).await["status"], "ok");
    assert_eq!(device.state().await.unwrap()["config"]["state"], "verified");
    let part = device.folder.path().join("state/models/new.gguf.part");
    let end = tokio::time::Instant::now() + SOON;
    while part.metadata().map_or(0, |file| file.len()) < BYTES as u64 / 2 {
        assert!(tokio::time::Instant::now() < end, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, status) = device.post("/config/rollback", &json!({})).await;
    assert_eq!((code, &status["state"]), (200, &json!("rolled-back")), "{status}");
    // what has arrived stays for the next time
    assert!(part.metadata().unwrap().len() >= BYTES as u64 / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_update_ends_the_download_of_the_one_before() {
    let content = gguf(BYTES, 1);
    let sent = content.clone();
    let server = ModelServer::start(move |_| {
        Sent::Hang([whole(&sent, "\"1\""), sent[..9].to_vec()].concat())
    })
    .await;
    let (mut manager, device) = plant(&server).await;
    let older = manager.sign(&remote("better", "value {{word}}")).await;
    let version = manager.push(&with_model(&server, &content, &digest(&content))).await;
    manager.until("verified", version).await;
    // an older one does not
    let apply = client().post(device.url("/config/apply")).body(older);
    let apply = apply.header("content-type", "application/octet-stream").send().await.unwrap();
    let (code, refusal) = (apply.status().as_u16(), apply.text().await.unwrap());
    assert!(code == 422 && refusal.contains("busy"), "{code} {refusal}");
    assert_eq!(device.state().await.unwrap()["config"]["state"], "verified");
    let version = manager.push(&remote("better", "reading {{word}}")).await;
    manager.until("trial", version).await;
    device.until("adopted", |state| state["config"]["source"] == "update").await;
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "better");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_signed_model_is_refused() {
    let content = gguf(BYTES, 1);
    let sent = content.clone();
    let server = ModelServer::start(move |request| Sent::All(reply(request, &sent, "\"1\""))).await;
    let (mut manager, device) = plant(&server).await;
    let version = manager.push(&with_model(&server, &content, &"0".repeat(64))).await;
    let report = manager.until("refused", version).await;
    assert_eq!((&report["code"], &report["source"]), (&json!("not-pulled"), &json!("file")));
    assert!(report["reason"].as_str().unwrap().contains("new.gguf"), "{report}");
    assert!(!device.folder.path().join("state/models/new.gguf").exists());
    // without the name of a model, with one that the update has not, and without the right
    for (model, told) in [(Value::Null, "model"), (json!("other.gguf"), "not in pilotlight.models")]
    {
        let mut config = with_model(&server, &content, &digest(&content));
        config["pilotlight"]["servers"]["local"] = json!({"model": model});
        manager.push(&config).await;
        let state = device
            .until("refused", |s| {
                s["config"]["reason"].as_str().is_some_and(|why| why.contains(told))
            })
            .await;
        assert_eq!(state["config"]["state"], "refused", "{state}");
    }
    assert_eq!(manager.ask(json!({"prompt": "a"})).await["source"]["model"], "old");
}
