//! Signed configurations that programs of the device apply and take back: without a broker, at the service
//! that runs.

use serde_json::{Value, json};

use super::fleet_push::{Manager, remote, until_one_engine};
use crate::support::service::{Service, catalog, client, program};

/// A device without a broker, and a manager whose updates it takes.
struct Device {
    manager: Manager,
    service: Service,
}

impl Device {
    async fn start(good_jobs: u32, seconds: u32) -> Device {
        let manager = Manager::new().await;
        let trust = std::fs::read_to_string(manager.path("trust.json")).unwrap();
        let mut trust: Value = serde_json::from_str(&trust).unwrap();
        trust["trial"] = json!({"good_jobs": good_jobs, "seconds": seconds});
        std::fs::write(manager.path("trust.json"), trust.to_string()).unwrap();
        let trust = manager.path("trust.json").display().to_string();
        let env = [("PILOTLIGHT_TRUST", trust.as_str())];
        let service = Service::launch(&catalog(&["--scripted", "old"]), "off", &env);
        service.ready().await;
        Device { manager, service }
    }

    /// Runs a command of the program beside the service.
    async fn run(&self, args: &[&str], expected: i32) -> String {
        let state = self.service.folder.path().join("state").display().to_string();
        let http = format!("127.0.0.1:{}", self.service.http);
        let trust = self.manager.path("trust.json").display().to_string();
        let env = [
            ("PILOTLIGHT_STATE", state.as_str()),
            ("PILOTLIGHT_HTTP", http.as_str()),
            ("PILOTLIGHT_MQTT", "off"),
            ("PILOTLIGHT_TRUST", trust.as_str()),
        ];
        let (code, out, errors) = program(self.service.folder.path(), args, &env).await;
        assert_eq!(code, expected, "{args:?}: {out}{errors}");
        out + &errors
    }

    /// Signs a configuration and applies it.
    async fn apply(&mut self, config: &Value, more: &[&str], expected: i32) -> String {
        self.manager.sign(config).await;
        let file = self.manager.path("update.signed").display().to_string();
        self.run(&[&["config", "apply", &file], more].concat(), expected).await
    }

    async fn model(&self) -> Value {
        let body = json!({"model": "auto", "messages": [{"role": "user", "content": "a"}]});
        self.service.chat(body).await.1["pilotlight"]["source"]["model"].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_applied_and_taken_back_while_the_service_runs() {
    let mut device = Device::start(100, 1).await;
    assert_eq!(device.model().await, "old");
    let told = device.run(&["config", "rollback"], 1).await;
    assert!(told.contains("no configuration before this one"), "{told}");
    let told = device.apply(&remote("better", "reading {{word}}"), &["--json"], 0).await;
    let status: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&status["state"], &status["source"]), (&json!("kept"), &json!("update")));
    assert_eq!(device.model().await, "better");
    // what fails is not taken
    let told = device.apply(&remote("broken", "reading {{word}}"), &[], 2).await;
    assert!(told.contains("does not start"), "{told}");
    let told = device.run(&["config", "apply", "mcp.json"], 2).await;
    assert!(told.contains("malformed-signature"), "{told}");
    // another version, which is taken back to the first one, and that to the local file
    let told = device.apply(&remote("better", "value {{word}}"), &[], 0).await;
    assert!(told.contains("kept"), "{told}");
    let told = device.run(&["config", "rollback", "--json"], 0).await;
    let status: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&status["state"], &status["version"]), (&json!("rolled-back"), &json!(1)));
    assert_eq!(device.model().await, "better");
    let state = device.service.state().await.unwrap();
    assert_eq!(state["config"]["version"], 1, "{state}");
    let told = device.run(&["config", "history"], 0).await;
    assert!(told.contains("version 1 rolled-back") && told.contains("runs: version 1"), "{told}");
    until_one_engine(&device.service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_update_is_taken_back_to_the_local_file() {
    let mut device = Device::start(100, 1).await;
    device.apply(&remote("better", "reading {{word}}"), &[], 0).await;
    // the version floor comes down too
    device.run(&["config", "rollback", "--allow-downgrade"], 0).await;
    assert_eq!(device.model().await, "old");
    let state = device.service.state().await.unwrap();
    assert_eq!(
        (&state["config"]["source"], &state["config"]["state"]),
        (&json!("file"), &json!("rolled-back"))
    );
    device.manager.version = 0;
    let told = device.apply(&remote("better", "other {{word}}"), &[], 0).await;
    assert!(told.contains("kept"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_is_ended_by_the_operator() {
    let mut device = Device::start(100, 3600).await;
    let told = device.apply(&remote("better", "reading {{word}}"), &["--no-wait"], 0).await;
    assert!(told.contains("trial"), "{told}");
    assert_eq!(device.model().await, "better");
    let told = device.apply(&remote("better", "value {{word}}"), &[], 2).await;
    assert!(told.contains("busy"), "{told}");
    let told = device.run(&["config", "rollback"], 0).await;
    assert!(told.contains("the operator has taken it back"), "{told}");
    assert_eq!(device.model().await, "old");
    until_one_engine(&device.service).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_loaded_any_more_is_not_returned_to() {
    let mut device = Device::start(100, 1).await;
    device.apply(&remote("better", "reading {{word}}"), &[], 0).await;
    device.apply(&remote("better", "value {{word}}"), &[], 0).await;
    // the first update does what the local file no longer permits
    let mut file = catalog(&["--scripted", "old"]);
    file["pilotlight"]["policy"] = json!({"redact": ["email"]});
    let path = device.service.folder.path().join("mcp.json");
    std::fs::write(path.with_extension("new"), file.to_string()).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
    device.service.until("the update is left out", |s| s["config"]["source"] == "file").await;
    let told = device.run(&["config", "rollback"], 1).await;
    assert!(told.contains("redact"), "{told}");
    assert_eq!(device.model().await, "old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_have_bounds_of_their_own() {
    let mut device = Device::start(100, 1).await;
    let signed = device.manager.sign(&remote("better", "reading {{word}}")).await;
    let url = device.service.url("/config/check");
    let send = async |kind: &str, body: Vec<u8>| {
        let answer =
            client().post(&url).header("content-type", kind).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let octets = "application/octet-stream";
    let (code, body) = send(octets, signed.clone()).await;
    assert_eq!(code, 200, "{body}");
    // a check changes nothing
    assert_eq!(device.model().await, "old");
    let (code, body) = send("text/plain", signed.clone()).await;
    assert!(code == 415 && body.contains(octets), "{code} {body}");
    let (code, body) = send(octets, vec![b'x'; 3 << 20]).await;
    assert_eq!(code, 413, "{body}");
    let mut forged = signed;
    *forged.last_mut().unwrap() ^= 1;
    let (code, body) = send(octets, forged).await;
    assert!(code == 422 && body.contains("wrong-signature"), "{code} {body}");
    // a trust policy that others can write is not used, and the refusal is told
    std::fs::write(device.manager.path("trust.json"), "{").unwrap();
    let told = device.apply(&remote("better", "reading {{word}}"), &[], 2).await;
    assert!(told.contains("no-policy"), "{told}");
    let state = device.service.state().await.unwrap();
    assert_eq!(state["config"]["code"], "no-policy", "{state}");
    // only the operator's token opens them
    let guarded =
        Service::launch(&catalog(&["--scripted", "old"]), "off", &[("PILOTLIGHT_HTTP_TOKEN", "t")]);
    guarded.ready().await;
    for path in ["/reload", "/config/apply", "/config/check", "/config/rollback"] {
        let answer = client().post(guarded.url(path)).json(&json!({})).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401, "{path}");
    }
    // a device without a trust policy says so
    let service = Service::launch(&catalog(&["--scripted", "old"]), "off", &[]);
    service.ready().await;
    let answer = client().post(service.url("/config/apply")).header("content-type", octets);
    let answer = answer.body("x").send().await.unwrap();
    let text = answer.text().await.unwrap();
    assert!(text.contains("PILOTLIGHT_TRUST"), "{text}");
}

/// What the agent of thin-edge.io calls, in its order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_of_thin_edge_applies_verifies_and_takes_back() {
    let mut device = Device::start(100, 1).await;
    let work = tempfile::tempdir().unwrap();
    let work_dir = work.path().display().to_string();
    let file = device.manager.path("update.signed").display().to_string();
    let step = |name: &'static str, has_file: bool| {
        let mut args = vec!["thin-edge", name, "mcp.json"];
        args.extend(has_file.then_some(file.as_str()));
        args.extend(["--work-dir", work_dir.as_str()]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |device: &Device, name, has_file, expected| {
        let args = step(name, has_file);
        device.run(&args.iter().map(String::as_str).collect::<Vec<_>>(), expected).await
    };
    assert_eq!(device.run(&["thin-edge", "list"], 0).await, "mcp.json\n");
    let told = device.run(&["thin-edge", "get", "other.json"], 1).await;
    assert!(told.contains("no type other.json"), "{told}");
    // a mistake ends with the first step
    std::fs::write(&file, "no update").unwrap();
    let told = run(&device, "prepare", true, 1).await;
    assert!(told.contains("malformed-signature"), "{told}");
    // the whole way
    let mut better = remote("better", "reading {{word}}");
    better["mcpServers"]["far"] =
        json!({"url": "https://far.example/mcp", "headers": {"Authorization": "Bearer 4711"}});
    device.manager.sign(&better).await;
    run(&device, "prepare", true, 0).await;
    assert_eq!(device.model().await, "old");
    run(&device, "set", true, 0).await;
    run(&device, "verify", false, 0).await;
    assert_eq!(device.model().await, "better");
    let shown = run_get(&device).await;
    assert_eq!(
        shown["mcpServers"]["local"]["args"],
        json!(["engine", "--scripted", "better", "--slots", "4"])
    );
    assert_eq!(shown["mcpServers"]["far"]["headers"]["Authorization"], "(secret)");
    assert_eq!(shown["pilotlight"]["device"]["name"], "dev");
    run(&device, "rollback", false, 0).await;
    assert_eq!(device.model().await, "old");
    assert_eq!(run_get(&device).await["mcpServers"]["local"]["args"][2], "old");
    // a second call has nothing to do
    run(&device, "rollback", false, 0).await;
    // what fails its trial is taken back by the service, and the agent sees that
    device.manager.sign(&remote("broken", "reading {{word}}")).await;
    run(&device, "prepare", true, 0).await;
    let told = run(&device, "set", true, 1).await;
    assert!(told.contains("does not start"), "{told}");
    let told = run(&device, "verify", false, 1).await;
    assert!(told.contains("rolled-back"), "{told}");
    run(&device, "rollback", false, 0).await;
    assert_eq!(device.model().await, "old");
}

async fn run_get(device: &Device) -> Value {
    serde_json::from_str(&device.run(&["thin-edge", "get", "mcp.json"], 0).await).unwrap()
}
