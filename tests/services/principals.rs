//! Who asks: names that nothing vouches for are one principal, in budgets, queue places and policy.

use pilotlight::limits::REPLAY_MAX;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::support::cloud::{Cloud, answer, entry};
use crate::support::mqtt::{App, Mosquitto};
use crate::support::service::{Service, catalog, client, program};

/// A model of this device and a cloud with a price: 0.0006 dollars are reserved for each answer, of which
/// an application may cause 0.003 in a month.
fn priced(cloud: &Cloud, apps: &Value) -> Value {
    let mut catalog = catalog(&["--scripted", "small", "--slots", "1"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["policy"] =
        json!({"budget": {"per_app": {"usd_per_month": 0.003}}, "apps": apps});
    catalog
}

fn paid(id: &str) -> String {
    json!({"id": id, "prompt": "a", "model": "big", "mode": "cloud-only", "max_tokens": 100})
        .to_string()
}

/// Asks until the budget is used up, each time with the next of these names; returns how many answers came.
async fn spend(app: &mut App, name: impl Fn(usize) -> String) -> usize {
    for n in 0..20 {
        let reply = app.ask(&name(n), paid(&n.to_string())).await;
        if reply["status"] != "ok" {
            assert_eq!(reply["decision"]["reason"], "budget", "{reply}");
            return n;
        }
    }
    panic!("the budget is never used up")
}

async fn listener(port: u16) -> App {
    App::connect(port, "listener", &["pilotlight/dev/reply/#"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_cannot_be_passed_by_renaming() {
    let cloud = Cloud::start([answer(&["paid"])]).await;
    let service = Service::start(&priced(&cloud, &json!({"camera": {}}))).await;
    service.ready_all().await;
    let mut app = listener(service.mqtt).await;
    let invented = spend(&mut app, |n| format!("name-{n}")).await;
    assert_eq!(spend(&mut app, |n| format!("other-{n}")).await, 0);
    // a listed application has a cap of its own
    let listed = spend(&mut app, |_| "camera".to_owned()).await;
    assert!(invented >= 1 && listed == invented, "{listed}, {invented}");
    let state = service.folder.path().join("state");
    let place = [("PILOTLIGHT_STATE", state.to_str().unwrap())];
    let (code, out, err) = program(service.folder.path(), &["budget", "show"], &place).await;
    assert!(code == 0 && out.contains("not listed") && !out.contains("name-0"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_an_interface_is_not_its_principal() {
    let cloud = Cloud::start([answer(&["paid"])]).await;
    let service = Service::start(&priced(&cloud, &json!({"http": {}}))).await;
    service.ready_all().await;
    let mut app = listener(service.mqtt).await;
    spend(&mut app, |_| "http".to_owned()).await;
    let body = json!({"model": "big", "messages": [{"role": "user", "content": "a"}],
                      "max_tokens": 100, "metadata": {"mode": "cloud-only"}});
    let (status, reply) = service.chat(body).await;
    assert_eq!(status, 200, "{reply}");
}

/// A flood under many names waits for one slot, and a listed application still has its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_names_leaves_a_place_in_the_queue() {
    let mut catalog = catalog(&["--scripted", "small", "--slots", "1"]);
    catalog["pilotlight"]["policy"] = json!({"apps": {"camera": {}}});
    let service = Service::start(&catalog).await;
    let mut app = listener(service.mqtt).await;
    let slow = |n: usize, priority: &str| {
        let prompt = "/tokens=200 /delay-us=20000 x";
        json!({"id": format!("{n}"), "prompt": prompt, "class": priority, "deadline_ms": 3_000_000})
            .to_string()
    };
    for n in 0..75 {
        let topic = format!("pilotlight/dev/request/name-{n}");
        app.send(&topic, slow(n, "interactive"), PublishProperties::default()).await;
    }
    service.until("a full queue", |state| state["waiting"] == 64).await;
    for n in 0..32 {
        let topic = "pilotlight/dev/request/camera";
        app.send(topic, slow(n, "batch"), PublishProperties::default()).await;
    }
    // 10 names had no place, and for each request of the camera one of them gave way
    for n in 0..42 {
        let publish = app.next().await;
        let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
        let reply: Value = serde_json::from_slice(&publish.payload).unwrap();
        assert!(topic.starts_with("pilotlight/dev/reply/name-"), "{n}: {topic}: {reply}");
        if reply["status"] != "ok" {
            assert_eq!(reply["error"]["code"], "busy", "{reply}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_listed_applications_can_be_served() {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["policy"] = json!({"apps": {"+": {"refuse": true}, "camera": {}}});
    let service = Service::start(&catalog).await;
    let mut app = listener(service.mqtt).await;
    assert_eq!(app.ask("camera", "a b").await["text"], "a b");
    let reply = app.ask("stranger", "a b").await;
    assert_eq!(reply["error"]["code"], "forbidden", "{reply}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("\"stranger\"") && message.contains("pilotlight.policy.apps"),
        "{message}"
    );
    let (status, _) = service
        .chat(json!({"model": "auto", "messages": [{"role": "user", "content": "a"}]}))
        .await;
    assert_eq!(status, 200);
}

/// The broker states the user in a property, and the topic's name is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_property_of_the_broker_is_the_principal() {
    let broker = Mosquitto::start().await;
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["mqtt"] = json!({"identity": {"user_property": "user"}});
    catalog["pilotlight"]["policy"] =
        json!({"apps": {"camera": {"refuse": true}, "+": {"reach": "device"}}});
    let service = Service::launch(&catalog, &url, &[]);
    service.ready().await;
    let mut app = listener(broker.port).await;
    let mut ask = async |name: &str, users: &[&str]| {
        let property = |user: &&str| ("user".to_owned(), (*user).to_owned());
        let properties = PublishProperties {
            user_properties: users.iter().map(property).collect(),
            ..PublishProperties::default()
        };
        let topic = format!("pilotlight/dev/request/{name}");
        app.send(&topic, "a b", properties).await;
        app.reply().await["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask("camera", &[]).await, "ok");
    assert_eq!(ask("door", &["camera"]).await, "refused");
    assert_eq!(ask("camera", &["door"]).await, "ok");
    assert_eq!(ask("door", &["camera", "door"]).await, "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_an_application() {
    let cloud = Cloud::start([answer(&["paid"])]).await;
    let tokens = json!({
        "camera": {"http_token": "${CAMERA_TOKEN}"},
        "door": {"http_token": "${DOOR_TOKEN}", "reach": "device"},
    });
    let env = [
        ("CAMERA_TOKEN", "of the camera"),
        ("DOOR_TOKEN", "of the door"),
        ("PILOTLIGHT_HTTP_TOKEN", "of the operator"),
    ];
    let service = Service::launch(&priced(&cloud, &tokens), "off", &env);
    service.ready().await;
    let ask = async |token: &str| {
        let body = json!({"model": "big", "messages": [{"role": "user", "content": "a"}],
                          "max_tokens": 100, "metadata": {"mode": "cloud-only"}});
        let request = client().post(service.url("/v1/chat/completions")).json(&body);
        request.bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask("of nobody").await, 401);
    assert_eq!(ask("").await, 401);
    assert_eq!(ask("of the door").await, 403);
    let mut paid = 0;
    while ask("of the camera").await == 200 {
        paid += 1;
        assert!(paid < 20, "the budget is never used up");
    }
    // the operator's own budget is another one
    assert!(paid >= 1 && ask("of the operator").await == 200, "{paid}");
    for path in ["/metrics", "/readyz"] {
        let request = client().get(service.url(path)).bearer_auth("of the camera");
        let told = request.send().await.unwrap().text().await.unwrap();
        assert!(!told.contains("small"), "{told}");
    }
    // over MCP too
    let call = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {
            "name": "generate",
            "arguments": {"prompt": "a", "mode": "cloud-only", "model": "big"},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    });
    let request = client().post(service.url("/mcp")).json(&call).bearer_auth("of the door");
    let request = request
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "generate");
    let told = request.send().await.unwrap().text().await.unwrap();
    assert!(told.contains("the policy keeps this request on the device"), "{told}");

    // two applications with one token are a mistake
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), priced(&cloud, &tokens).to_string()).unwrap();
    let same = [("CAMERA_TOKEN", "one"), ("DOOR_TOKEN", "one")];
    let (code, _, err) = program(folder.path(), &["check"], &same).await;
    assert!(code == 2 && err.contains("pilotlight.policy.apps.door.http_token"), "{code}: {err}");
    assert!(!err.contains("one\""), "{err}");
}

/// Replies of invented names take no place of those that a listed application may ask for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_names_leaves_stored_replies() {
    let cloud = Cloud::start([answer(&["paid"])]).await;
    let service = Service::start(&priced(&cloud, &json!({"camera": {}}))).await;
    service.ready_all().await;
    let mut app = listener(service.mqtt).await;
    assert_eq!(app.ask("camera", paid("once")).await["status"], "ok");
    for n in 0..REPLAY_MAX + 10 {
        let ask = json!({"id": n.to_string(), "prompt": "a", "mode": "local-only"}).to_string();
        assert_eq!(app.ask(&format!("name-{n}"), ask).await["status"], "ok");
    }
    assert_eq!(app.ask("camera", paid("once")).await["status"], "ok");
    assert_eq!(cloud.asked().len(), 1);
}
