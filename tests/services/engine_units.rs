//! Engines that a service manager starts at a socket, one for each connection, as systemd does with
//! `Accept=yes`.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::service::{Service, catalog, signal};
use crate::support::{PROGRAM, pace};

/// The id of a process, and whether it ended well once it has ended.
type Started = (i32, Option<bool>);

/// A service manager that starts engines.
struct Manager {
    path: String,
    started: Arc<Mutex<Vec<Started>>>,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn start() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let started: Arc<Mutex<Vec<Started>>> = Arc::default();
        let list = Arc::clone(&started);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let input = OwnedFd::from(connection.unwrap());
                let output = input.try_clone().unwrap();
                let mut child = Command::new(PROGRAM)
                    .arg("engine-unit")
                    .stdin(input)
                    .stdout(output)
                    .spawn()
                    .unwrap();
                list.lock().unwrap().push((child.id().cast_signed(), None));
                let (at, list) = (list.lock().unwrap().len() - 1, Arc::clone(&list));
                std::thread::spawn(move || {
                    let ended = child.wait().unwrap();
                    list.lock().unwrap()[at].1 = Some(ended.success());
                });
            }
        });
        Manager { path: path.display().to_string(), started, _folder: folder }
    }

    fn engines(&self) -> Vec<Started> {
        self.started.lock().unwrap().clone()
    }

    /// Waits until as many engines were started and all but the last have ended.
    async fn until(&self, count: usize) -> Vec<Started> {
        for _ in 0..pace::stretched(std::time::Duration::from_secs(20)).as_millis() / 50 {
            let engines = self.engines();
            let (last, before) = engines.split_last().unwrap();
            if engines.len() == count && last.1.is_none() && before.iter().all(|e| e.1.is_some()) {
                return engines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{count} engines expected: {:?}", self.engines());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_are_started_by_the_service_manager() {
    let manager = Manager::start();
    let sockets = [("PILOTLIGHT_ENGINES", manager.path.as_str())];
    let service = Service::launch(&catalog(&["--scripted", "s"]), "off", &sockets);
    service.ready_all().await;
    assert!(service.engines().is_empty(), "the service itself has started an engine");
    let hello = || {
        json!({"model": "auto", "messages": [{"role": "user", "content": "hello"}],
            "metadata": {"deadline_ms": "300"}})
    };
    assert_eq!(service.chat(hello()).await.0, 200);

    // the service ends an engine that is stuck, though the engine is not its child
    let stuck = manager.until(1).await[0].0;
    signal(stuck, Signal::SIGSTOP);
    assert_eq!(service.chat(hello()).await.0, 504);
    let engines = manager.until(2).await;
    assert_eq!(engines[0], (stuck, Some(false)));
    service.ready_all().await;
    assert_eq!(service.chat(hello()).await.0, 200);

    // the service notices an engine that ends by itself
    signal(engines[1].0, Signal::SIGTERM);
    manager.until(3).await;
    service.ready_all().await;

    // at the end of the service the connection is closed, and the engine ends by itself
    assert!(service.stop().await);
    for _ in 0..100 {
        if manager.engines()[2].1.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(manager.engines()[2].1, Some(true), "{:?}", manager.engines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_without_a_manager_is_named() {
    let sockets = [("PILOTLIGHT_ENGINES", "/nowhere/engine.sock")];
    let service = Service::launch(&catalog(&["--scripted", "s"]), "off", &sockets);
    let state = service
        .until("the fault is told", |state| state.to_string().contains("/nowhere/engine.sock"))
        .await;
    assert!(state.to_string().contains("PILOTLIGHT_ENGINES"), "{state}");
}
