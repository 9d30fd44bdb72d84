//! A real model in a signed configuration: downloaded, tried beside the model before, and kept.

use serde_json::{Value, json};

use crate::support::model_server::ModelServer;
use crate::support::service::{Service, catalog, client};
use crate::support::signing::{keygen, sha256, sign};
use crate::support::{PROGRAM, model_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pushed_model_is_downloaded_tried_and_kept() {
    let content = std::fs::read(model_file()).unwrap();
    let digest = sha256(&model_file().display().to_string());
    let bytes = content.len();
    let server = ModelServer::of(content).await;
    let folder = tempfile::tempdir().unwrap();
    let key = json!({
        "public_key": keygen(folder.path()).await, "targets": ["device"],
        "operations": ["config", "models"], "longest_days": 30,
    });
    let args = ["engine", "--gguf", "{model}", "--context", "1024"];
    let real = json!({"path": PROGRAM, "sha256": sha256(PROGRAM), "args": args});
    let trust = json!({
        "keys": {"ops": key}, "commands": {"real": real}, "neighbours": [server.url],
        "trial": {"good_jobs": 1, "seconds": 3600},
    });
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("trust.json"), trust.to_string()).unwrap();
    std::fs::write(path("ca.pem"), &server.certificate).unwrap();
    let (trust, ca) = (path("trust.json"), path("ca.pem"));
    let env = [("PILOTLIGHT_TRUST", trust.as_str()), ("SSL_CERT_FILE", &ca)];
    let service = Service::launch(&catalog(&["--scripted", "old"]), "off", &env);
    service.ready().await;
    let config = json!({
        "mcpServers": {"local": {"command": "real"}},
        "pilotlight": {
            "servers": {"local": {"model": "small.gguf"}},
            "models": {"small.gguf": {
                "source": format!("{}/small.gguf", server.url), "sha256": digest, "bytes": bytes,
                "licence": "apache-2.0",
            }},
        },
    });
    let signed = sign(folder.path(), &config, ["--device", "dev"], 1).await;
    let apply = client().post(service.url("/config/apply"));
    let apply = apply.header("content-type", "application/octet-stream").body(signed);
    let status: Value = apply.send().await.unwrap().json().await.unwrap();
    assert_eq!(status["state"], "verified", "{status}");
    service.until("adopted", |state| state["config"]["source"] == "update").await;
    let body = json!({"model": "auto", "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 4});
    let (code, answer) = service.chat(body).await;
    assert_eq!(
        (code, &answer["pilotlight"]["source"]["server"]),
        (200, &json!("local")),
        "{answer}"
    );
    assert_ne!(answer["pilotlight"]["source"]["model"], "old", "{answer}");
    service.until("kept", |state| state["config"]["state"] == "kept").await;
}
