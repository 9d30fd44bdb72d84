//! The servers that are compared: this program, and llama-server.

use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::support::figures::memory;
use crate::support::service::{ONE_BY_ONE, Service, free_port};
use crate::work;

/// Longest start of a server.
const START_MAX: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Peer,
}

impl Kind {
    pub const ALL: [Kind; 2] = [Kind::Ours, Kind::Peer];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "pilotlight",
            Kind::Peer => "llama-server",
        }
    }
}

/// What a server is started with.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Answers at once. This program measures how many are of use, and llama-server is given this number.
    pub slots: u32,
    /// Tokens of all answers together.
    pub context: u32,
    /// Where this program keeps beginnings of prompts for the next start.
    pub prefixes: Option<&'static Path>,
}

/// A running server.
pub struct Server {
    pub kind: Kind,
    base: String,
    running: Running,
}

enum Running {
    Ours(Box<Service>),
    Peer(Child),
}

impl Server {
    /// Starts a server with this model file and waits until it answers.
    pub async fn start(kind: Kind, model: &Path, setup: Setup) -> Server {
        let server = Server::launch(kind, model, setup);
        server.ready().await;
        server
    }

    fn launch(kind: Kind, model: &Path, setup: Setup) -> Server {
        let Setup { slots, context, prefixes } = setup;
        let prefixes = prefixes.map_or("off", |folder| folder.to_str().unwrap());
        match kind {
            Kind::Ours => {
                let settings = [
                    ("PILOTLIGHT_LOG", "error"),
                    ("PILOTLIGHT_PREFIX_CACHE", prefixes),
                    ("PILOTLIGHT_SENSORS", cool_board()),
                ];
                let service = Service::launch(&catalog(model, context), "off", &settings);
                let base = service.url("");
                Server { kind, base, running: Running::Ours(Box::new(service)) }
            }
            Kind::Peer => {
                let program = std::env::var("LLAMA_SERVER").expect("LLAMA_SERVER");
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let port = free_port();
                let child = Command::new(program)
                    .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--no-webui"])
                    .args(["--parallel", &slots.to_string(), "--ctx-size", &context.to_string()])
                    .args(["--kv-unified", "--threads", &threads.to_string()])
                    .arg("--model")
                    .arg(model)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()
                    .expect("llama-server starts");
                let base = format!("http://127.0.0.1:{port}");
                Server { kind, base, running: Running::Peer(child) }
            }
        }
    }

    async fn ready(&self) {
        let path = match self.kind {
            Kind::Ours => "/readyz",
            Kind::Peer => "/health",
        };
        let (url, began) = (self.url(path), Instant::now());
        loop {
            let answer = ONE_BY_ONE.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            assert!(began.elapsed() < START_MAX, "{} does not start", self.kind.name());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Memory of all processes of the server, MiB: their own, and with what they share with a file.
    pub fn memory(&self) -> (f64, f64) {
        let pids = match &self.running {
            Running::Ours(service) => {
                let engines =
                    service.engines().into_iter().filter_map(|pid| u32::try_from(pid).ok());
                service.child.id().into_iter().chain(engines).collect()
            }
            Running::Peer(child) => Vec::from_iter(child.id()),
        };
        let all = pids.into_iter().map(memory);
        all.fold((0.0, 0.0), |sum, one| (sum.0 + one.anonymous, sum.1 + one.resident))
    }

    /// Ends the server and waits for it.
    pub async fn stop(self) {
        match self.running {
            Running::Ours(service) => {
                service.stop().await;
            }
            Running::Peer(mut child) => child.kill().await.unwrap(),
        }
    }
}

/// The sensors of a board that stays cool: without any, steps that other programs slow down would count as heat.
fn cool_board() -> &'static str {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let zone = folder.path().join("sys/class/thermal/thermal_zone0");
        std::fs::create_dir_all(&zone).unwrap();
        std::fs::write(zone.join("type"), "cpu-thermal\n").unwrap();
        std::fs::write(zone.join("temp"), "45321\n").unwrap();
        folder
    });
    FOLDER.path().to_str().unwrap()
}

fn catalog(model: &Path, context: u32) -> Value {
    json!({
        "mcpServers": {"local": {"command": "pilotlight", "args": [
            "engine", "--gguf", model, "--name", "m", "--context", context.to_string(),
        ]}},
        "pilotlight": {
            "device": {"name": "dev"},
            "tasks": {"topic": {
                "template": format!("{} {{{{input}}}}", work::TOPIC), "labels": work::labels(),
            }},
            "servers": {"local": {"role": "model", "reach": "device"}},
        },
    })
}
