//! A real service: the program itself, in a folder and on ports of its own.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::{PROGRAM, SOON, pace};

/// The login of the applications of tests, at the embedded broker.
pub const LOGIN: [(&str, &str); 2] =
    [("PILOTLIGHT_MQTT_USERNAME", "apps"), ("PILOTLIGHT_MQTT_PASSWORD", "a password of tests")];

/// A running service; it is ended when this is dropped.
pub struct Service {
    pub child: Child,
    pub http: u16,
    pub mqtt: u16,
    pub folder: tempfile::TempDir,
}

/// A port that was free a moment ago, below those that the system gives to outgoing connections;
/// never the same twice in this process, and other processes begin elsewhere.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() % 12_000 * 97;
    loop {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A catalog with one engine, started with these arguments.
pub fn catalog(engine: &[&str]) -> Value {
    let mut args = vec!["engine"];
    args.extend(engine);
    serde_json::json!({
        "mcpServers": {"local": {"command": "pilotlight", "args": args}},
        "pilotlight": {
            "device": {"name": "dev"},
            "tasks": {
                "echo": {"template": "say {{word}}"},
                "label": {
                    "template": "The reading is {{reading}}.",
                    "schema": {"type": "object", "properties": {"state": {"enum": ["ok", "hot"]}}, "required": ["state"], "additionalProperties": false}
                }
            }
        }
    })
}

/// The settings, with a login at the embedded broker.
fn with_login<'s>(mqtt: &str, more: &[(&'s str, &'s str)]) -> Vec<(&'s str, &'s str)> {
    let login: &[_] = if mqtt == "embedded" { &LOGIN } else { &[] };
    [login, more].concat()
}

impl Service {
    /// Starts the program with this catalog and its embedded broker, and waits until it is ready.
    pub async fn start(catalog: &Value) -> Service {
        let service = Service::launch(catalog, "embedded", &[]);
        service.ready().await;
        service
    }

    /// Starts the program and does not wait.
    pub fn launch(catalog: &Value, mqtt: &str, more: &[(&str, &str)]) -> Service {
        Service::launch_logged(catalog, mqtt, more, Stdio::inherit())
    }

    /// The same with its log where it is wanted.
    pub fn launch_logged(
        catalog: &Value,
        mqtt: &str,
        more: &[(&str, &str)],
        log: Stdio,
    ) -> Service {
        let folder = tempfile::tempdir().unwrap();
        Service::launch_with(PROGRAM, folder, catalog, mqtt, &with_login(mqtt, more), log)
    }

    /// Starts another program, such as an earlier version of this one, and does not wait.
    pub fn launch_program(program: &str, catalog: &Value, mqtt: &str) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let login = with_login(mqtt, &[]);
        Service::launch_with(program, folder, catalog, mqtt, &login, Stdio::inherit())
    }

    /// Starts the program with its log in a file; see [`Service::log`].
    pub fn launch_with_log(catalog: &Value, mqtt: &str, more: &[(&str, &str)]) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        Service::launch_with(PROGRAM, folder, catalog, mqtt, &with_login(mqtt, more), log.into())
    }

    /// What the program has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Starts the program in this folder, with no more settings than these, and does not wait.
    pub fn launch_in(
        folder: tempfile::TempDir,
        catalog: &Value,
        mqtt: &str,
        more: &[(&str, &str)],
    ) -> Service {
        Service::launch_with(PROGRAM, folder, catalog, mqtt, more, Stdio::inherit())
    }

    fn launch_with(
        program: &str,
        folder: tempfile::TempDir,
        catalog: &Value,
        mqtt: &str,
        more: &[(&str, &str)],
        log: Stdio,
    ) -> Service {
        pace::watch();
        std::fs::write(folder.path().join("mcp.json"), catalog.to_string()).unwrap();
        let (http, broker) = (free_port(), free_port());
        let child = Command::new(program)
            .arg("serve")
            .current_dir(folder.path())
            .env("PILOTLIGHT_HTTP", format!("127.0.0.1:{http}"))
            .env("PILOTLIGHT_BROKER", format!("127.0.0.1:{broker}"))
            .env("PILOTLIGHT_MQTT", mqtt)
            // a board without sensors: the machine of the tests may be hot or full
            .env("PILOTLIGHT_SENSORS", folder.path().join("sensors"))
            .env("PILOTLIGHT_STATE", folder.path().join("state"))
            .envs(more.iter().copied())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Service { child, http, mqtt: broker, folder }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http)
    }

    /// What `/readyz` says, if it says anything.
    pub async fn state(&self) -> Option<Value> {
        let answer = ONE_BY_ONE.get(self.url("/readyz")).send().await.ok()?;
        answer.json().await.ok()
    }

    /// Waits until the state is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.until_within(SOON, what, wanted).await
    }

    /// The same for what takes its time.
    pub async fn until_within(
        &self,
        time: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let end = Instant::now() + time;
        loop {
            let state = self.state().await;
            if let Some(state) = state.as_ref().filter(|state| wanted(state)) {
                return state.clone();
            }
            assert!(Instant::now() < end, "not {what}: {state:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ready(&self) -> Value {
        self.until("ready", |state| {
            state["ready"] == true && (state["mqtt"].is_null() || state["mqtt"]["state"] == "up")
        })
        .await
    }

    /// Asks over the chat API.
    pub async fn chat(&self, body: Value) -> (u16, Value) {
        self.post("/v1/chat/completions", &body).await
    }

    /// Asks for an answer from the cloud alone; the end must come at the latest a second after the
    /// deadline (longer on a machine that has much else to do), and say what happened.
    pub async fn cloud_in_time(&self, prompt: &str, deadline_ms: u64) -> (u16, Value) {
        let began = Instant::now();
        let (status, answer) = self
            .chat(serde_json::json!({
                "model": "auto", "messages": [{"role": "user", "content": prompt}],
                "metadata": {"deadline_ms": deadline_ms.to_string(), "mode": "cloud-only"},
            }))
            .await;
        let took = began.elapsed();
        let most = Duration::from_millis(deadline_ms) + pace::stretched(Duration::from_secs(1));
        assert!(took < most, "{prompt:?} took {took:?}: {answer}");
        let is_told = status == 200 || answer["error"]["message"].is_string();
        assert!(is_told, "{prompt:?}: {status} {answer}");
        (status, answer)
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let answer = ONE_BY_ONE.post(self.url(path)).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Waits until every model can be asked.
    pub async fn ready_all(&self) {
        let up = |state: &Value| {
            state["servers"].as_array().unwrap().iter().all(|server| !server["model"].is_null())
        };
        self.until("all models are ready", up).await;
    }

    /// The process of the first engine.
    pub fn engine(&self) -> i32 {
        *self.engines().first().expect("the service has no child")
    }

    /// The processes of all engines.
    pub fn engines(&self) -> Vec<i32> {
        let parent = self.child.id().unwrap();
        let children = format!("/proc/{parent}/task");
        let mut found = Vec::new();
        for task in std::fs::read_dir(children).unwrap() {
            let path = task.unwrap().path().join("children");
            let list = std::fs::read_to_string(path).unwrap_or_default();
            found.extend(list.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
        }
        found
    }

    /// Asks the program to stop and waits for it; says whether it ended well.
    pub async fn stop(mut self) -> bool {
        signal(self.child.id().unwrap() as i32, nix::sys::signal::Signal::SIGTERM);
        tokio::time::timeout(SOON, self.child.wait()).await.unwrap().unwrap().success()
    }
}

pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// A client that opens a connection for each request, so that all tests can share it: an open one would
/// belong to the runtime of the test that opened it. It is made once, for it reads the system's certificates.
pub static ONE_BY_ONE: LazyLock<reqwest::Client> =
    LazyLock::new(|| plain().pool_max_idle_per_host(0).build().unwrap());

fn plain() -> reqwest::ClientBuilder {
    pilotlight::net::tls::install_provider();
    reqwest::Client::builder().no_proxy().timeout(SOON)
}

/// A client of a test's own, which keeps its connections.
pub fn client() -> reqwest::Client {
    plain().build().unwrap()
}

/// Runs the program to its end.
pub async fn program(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let run =
        Command::new(PROGRAM).args(args).current_dir(folder).envs(env.iter().copied()).output();
    let out = tokio::time::timeout(SOON, run).await.unwrap().unwrap();
    (
        out.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}
