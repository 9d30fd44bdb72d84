//! The service under a service manager: the notifications of `sd_notify(3)` at a real socket, the watchdog,
//! and `pilotlight ready`.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::service::{Service, catalog, program, signal};
use crate::support::{SOON, pace};

/// The socket of a service manager, in a folder of its own.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path: path.display().to_string(), _folder: folder }
    }

    /// The next notification, within this time.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 4096];
        let count = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..count].to_vec()).unwrap())
    }

    /// The first notification with this text.
    fn until(&self, text: &str) -> String {
        let began = Instant::now();
        while began.elapsed() < pace::stretched(SOON) {
            if let Some(told) = self.next(SOON).filter(|told| told.contains(text)) {
                return told;
            }
        }
        panic!("{text} was not told");
    }

    fn launch(&self) -> Service {
        let watchdog = ("WATCHDOG_USEC", "600000");
        Service::launch(
            &catalog(&["--scripted", "s"]),
            "off",
            &[("NOTIFY_SOCKET", &self.path), watchdog],
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_is_told_what_the_service_does() {
    let manager = Manager::new();
    let service = manager.launch();
    let pid = service.child.id().unwrap().cast_signed();
    assert_eq!(manager.until("READY=1"), "READY=1\n");
    assert!(service.state().await.is_some(), "ready before the interface listens");
    manager.until("STATUS=1 of 1 models ready");
    for _ in 0..3 {
        manager.until("WATCHDOG=1");
    }
    // children have no part in it
    let engine = std::fs::read(format!("/proc/{}/environ", service.engine())).unwrap();
    let engine = String::from_utf8_lossy(&engine);
    assert!(!engine.contains("NOTIFY_SOCKET") && !engine.contains("WATCHDOG_"), "{engine}");

    signal(pid, Signal::SIGHUP);
    let told = manager.until("RELOADING=1");
    let time = told.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(time.parse::<u64>().unwrap() > 0);
    manager.until("READY=1");

    let stopped = tokio::spawn(service.stop());
    let told = manager.until("STOPPING=1");
    assert!(told.contains("EXTEND_TIMEOUT_USEC="), "{told}");
    assert!(stopped.await.unwrap());
}

/// A process that does not run feeds nothing, and goes on feeding afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_process_does_not_feed_the_watchdog() {
    let manager = Manager::new();
    let service = manager.launch();
    let pid = service.child.id().unwrap().cast_signed();
    manager.until("WATCHDOG=1");
    signal(pid, Signal::SIGSTOP);
    while manager.next(Duration::from_millis(100)).is_some() {}
    assert_eq!(manager.next(Duration::from_millis(1500)), None);
    signal(pid, Signal::SIGCONT);
    manager.until("WATCHDOG=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_ready_when_its_own_model_answers() {
    let folder = tempfile::tempdir().unwrap();
    // applications that are not listed are refused, the operator's probe is none
    let mut config = catalog(&["--scripted", "s"]);
    config["pilotlight"]["policy"] = json!({"apps": {"+": {"refuse": true}}});
    let service = Service::launch(&config, "off", &[]);
    let at = [("PILOTLIGHT_HTTP", format!("127.0.0.1:{}", service.http))];
    let env: Vec<(&str, &str)> = at.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let ready = async |args: &[&str]| program(folder.path(), args, &env).await;
    let (code, out, err) = ready(&["ready", "--probe"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.starts_with("local: answered in ") && out.ends_with("3 tokens\n"), "{out}");
    let (code, out, _) = ready(&["ready", "--probe", "--json"]).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["models"][0]["server"]), (0, &json!("local")));
    assert_eq!(ready(&["ready"]).await, (0, "ready\n".to_owned(), String::new()));

    // the interface works and the engine does not
    signal(service.engine(), Signal::SIGSTOP);
    let (code, _, err) = ready(&["ready", "--probe", "--wait", "2"]).await;
    assert_eq!((code, err.as_str()), (4, "local: has not answered in time\n"));
    let (status, refused) = service.post("/probe?deadline_s=2", &json!({})).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("deadline_s")), "{refused}");

    assert!(service.stop().await);
    let (code, _, err) = ready(&["ready", "--probe", "--wait", "1"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("no service has answered"), "{err}");
}

/// Remote models do not make a device ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_without_a_model_of_its_own_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = catalog(&["--scripted", "s"]);
    config["pilotlight"]["servers"] = json!({"local": {"reach": "cloud"}});
    let service = Service::launch(&config, "off", &[]);
    service.ready().await;
    let at = format!("127.0.0.1:{}", service.http);
    let env = [("PILOTLIGHT_HTTP", at.as_str())];
    let (code, out, err) = program(folder.path(), &["ready", "--probe", "--wait", "0"], &env).await;
    assert_eq!(code, 4, "{out}{err}");
    assert!(err.contains("no model of this device is configured"), "{err}");
}
