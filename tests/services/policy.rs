//! The policy is a ceiling: a request can narrow how far it may go, and never widen it.

use serde_json::{Value, json};

use crate::support::mqtt::App;
use crate::support::service::{Service, catalog};

/// A model of this device and one that counts as a cloud.
fn with(policy: Value) -> Value {
    let mut catalog = catalog(&["--scripted", "near"]);
    catalog["mcpServers"]["far"] =
        json!({"command": "pilotlight", "args": ["engine", "--scripted", "far"]});
    catalog["pilotlight"]["servers"] = json!({"far": {"reach": "cloud"}});
    catalog["pilotlight"]["tasks"]["echo"]["reach"] = json!("device");
    catalog["pilotlight"]["policy"] = policy;
    catalog
}

async fn ask(app: &mut App, name: &str, mode: &str) -> Value {
    app.ask(name, json!({"id": mode, "prompt": "a b", "mode": mode}).to_string()).await
}

fn is_refused(reply: &Value) {
    let error = &reply["error"];
    assert_eq!((&error["code"], &error["field"]), (&json!("forbidden"), &json!("mode")), "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_cannot_widen_the_policy_of_the_device() {
    for policy in [json!({"default_mode": "local-only"}), json!({"reach": "device"})] {
        let service = Service::start(&with(policy)).await;
        service.ready_all().await;
        let mut app = App::of(service.mqtt, "app").await;
        is_refused(&ask(&mut app, "app", "cloud-only").await);
        for mode in ["prefer-cloud", "prefer-local", "local-only"] {
            assert_eq!(ask(&mut app, "app", mode).await["source"]["server"], "local", "{mode}");
        }
        let (status, answer) = service
            .chat(json!({
                "model": "far", "messages": [{"role": "user", "content": "a"}],
                "metadata": {"mode": "cloud-only"},
            }))
            .await;
        assert_eq!(status, 403, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_and_a_task_have_a_ceiling_of_their_own() {
    let policy = json!({"apps": {"alpha": {"reach": "device"}}});
    let service = Service::start(&with(policy)).await;
    service.ready_all().await;
    let mut alpha = App::of(service.mqtt, "alpha").await;
    is_refused(&ask(&mut alpha, "alpha", "cloud-only").await);
    assert_eq!(ask(&mut alpha, "alpha", "prefer-cloud").await["source"]["server"], "local");
    let mut beta = App::of(service.mqtt, "beta").await;
    assert_eq!(ask(&mut beta, "beta", "cloud-only").await["source"]["server"], "far");
    let task = json!({"task": "echo", "input": {"word": "hi"}, "mode": "cloud-only"}).to_string();
    is_refused(&beta.ask("beta", task).await);
    let task = json!({"task": "echo", "input": {"word": "hi"}, "mode": "prefer-cloud"}).to_string();
    assert_eq!(beta.ask("beta", task).await["source"]["server"], "local");
}
