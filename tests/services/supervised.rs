//! Engine processes under supervision: one that hangs is replaced, one that may end is let.

use std::time::Instant;

use nix::sys::signal::Signal;
use pilotlight::limits::engine::ENGINE_CANCEL_MAX;
use pilotlight::limits::liveness::IDLE_PROBE_ANSWER_MIN;
use serde_json::json;

use crate::support::service::{Service, catalog, signal};
use crate::support::{PROGRAM, pace};

/// The watchdog counts from the cancellation of a request: nobody else has to wait for the engine first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_ignores_a_cancellation_is_replaced() {
    let service = Service::start(&catalog(&["--scripted", "s"])).await;
    let before = service.engine();
    signal(before, Signal::SIGSTOP);
    let request = json!({"model": "auto", "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"deadline_ms": "300"}});
    let (status, body) = service.chat(request).await;
    assert_eq!(status, 504, "{body}");
    let cancelled = Instant::now();
    service
        .until("the engine is replaced", |state| {
            // the process is gone before another one is started
            state["ready"] == true && service.engines().iter().all(|engine| *engine != before)
        })
        .await;
    let took = cancelled.elapsed();
    let most = ENGINE_CANCEL_MAX + pace::stretched(std::time::Duration::from_secs(5));
    assert!(took < most, "replaced after {took:?}");
    let request = json!({"model": "auto", "messages": [{"role": "user", "content": "hello"}]});
    assert_eq!(service.chat(request).await.0, 200);
}

/// An engine that is stuck while it has nothing to do is found before a client waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_engine_that_is_stuck_is_replaced() {
    let mut config = catalog(&["--scripted", "s"]);
    config["pilotlight"]["servers"] = json!({"local": {"idle_probe_s": 1}});
    let service = Service::start(&config).await;
    let before = service.engine();
    // the first answer shows how long one takes
    tokio::time::sleep(pace::stretched(std::time::Duration::from_secs(3))).await;
    assert_eq!(service.engine(), before, "an engine that answers is kept");
    signal(before, Signal::SIGSTOP);
    let stuck = Instant::now();
    service
        .until("the engine is replaced", |state| {
            state["ready"] == true && service.engines().iter().all(|engine| *engine != before)
        })
        .await;
    let took = stuck.elapsed();
    let most = IDLE_PROBE_ANSWER_MIN + pace::stretched(std::time::Duration::from_secs(5));
    assert!(took < most, "replaced after {took:?}");
}

/// A request that is cancelled at an engine that works leaves the engine as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_obeys_is_kept() {
    let service = Service::start(&catalog(&["--scripted", "s"])).await;
    let before = service.engine();
    for _ in 0..3 {
        let request = json!({"model": "auto", "metadata": {"deadline_ms": "100"},
            "messages": [{"role": "user", "content": "hello /fail=hang"}]});
        assert_eq!(service.chat(request).await.0, 504);
    }
    tokio::time::timeout(ENGINE_CANCEL_MAX + ENGINE_CANCEL_MAX / 2, async {
        // longer than the watchdog waits
        while service.engine() == before {
            service.ready().await;
        }
    })
    .await
    .unwrap_err();
    assert_eq!(service.engine(), before);
}

/// At the end of the service, the input of an engine is closed and the engine ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_ends_by_itself_when_the_service_stops() {
    let mut wrapped = catalog(&[]);
    // a process that is killed writes nothing afterwards
    let script = format!("{PROGRAM} engine --scripted s; echo $? > ended");
    wrapped["mcpServers"]["local"] = json!({"command": "sh", "args": ["-c", script]});
    let service = Service::start(&wrapped).await;
    let folder = tempfile::tempdir().unwrap();
    let ended = service.folder.path().join("ended");
    let kept = folder.path().join("ended");
    std::os::unix::fs::symlink(&kept, &ended).unwrap();
    assert!(service.stop().await);
    assert_eq!(std::fs::read_to_string(&kept).unwrap_or_default().trim(), "0");
}
