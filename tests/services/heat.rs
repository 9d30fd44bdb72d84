//! Device pressure in the real service: replies, status and the health topic of a hot board.

use std::path::Path;

use crate::support::PROGRAM;
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog, program};
use serde_json::{Value, json};

const ZONE: &str = "sys/class/thermal/thermal_zone0";

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// One scripted model on the device and one that counts as a cloud model.
fn two() -> Value {
    let mut catalog = catalog(&["--scripted", "device", "--slots", "1"]);
    let remote = json!({"command": "pilotlight", "args": ["engine", "--scripted", "remote", "--slots", "4"]});
    catalog["mcpServers"]["cloud"] = remote;
    catalog["pilotlight"]["servers"] = json!({"cloud": {"reach": "cloud"}});
    catalog["pilotlight"]["device_limits"] = json!({"heat_c": [60, 70]});
    catalog
}

/// A Jetson Nano that is cool: its `PMIC-Die` always reads 100 °C.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_always_reads_100_degrees_closes_nothing() {
    let board = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/boards/jetson-nano.txt");
    for file in std::fs::read_to_string(path).unwrap().split("== ").skip(1) {
        let (path, content) = file.split_once('\n').unwrap();
        write(board.path(), path, content);
    }
    let sensors = board.path().display().to_string();
    let mut catalog = two();
    catalog["pilotlight"]["device_limits"] = json!({});
    let env = [("PILOTLIGHT_SENSORS", sensors.as_str())];
    let service = Service::launch(&catalog, "embedded", &env);
    service.ready_all().await;
    service.ready().await;
    let seen = |celsius: f64| move |state: &Value| state["device"]["temperature_c"] == celsius;
    let state = service.until("measured", seen(41.5)).await;
    assert_eq!(
        (&state["device"]["stage"], &state["device"]["duty"]),
        (&json!("calm"), &json!(1.0))
    );
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "hello").await["source"]["server"], "local");
    let (_, out, _) = program(service.folder.path(), &["doctor"], &env).await;
    let line = out.lines().find(|line| line.contains("PMIC-Die")).unwrap_or_default();
    assert!(line.contains("100.0 °C") && line.contains("not used: no processor's"), "{out}");

    // the processor is hot
    write(board.path(), "sys/class/thermal/thermal_zone1/temp", "101000");
    let state = service.until("closed", |state| state["device"]["stage"] == "closed").await;
    assert_eq!(state["device"]["temperature_c"], 101.0);
    // while the device is closed no time is predicted for it
    let private = json!({"prompt": "hello", "mode": "local-only"}).to_string();
    let reply = app.ask("app", private).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    assert!(reply["decision"].get("predicted_ms").is_none(), "{}", reply["decision"]);
    drop(service);

    // named in the configuration it counts
    catalog["pilotlight"]["device_limits"] = json!({"zones": {"PMIC-Die": [90, 95]}});
    write(board.path(), "sys/class/thermal/thermal_zone1/temp", "34000");
    let service = Service::launch(&catalog, "off", &env);
    service.until("closed", |state| state["device"]["stage"] == "closed").await;
}

/// A record with a time that no answer can take.
#[test]
fn a_prediction_beyond_every_deadline_is_none() {
    let record = json!({
        "route": "local", "reason": "rule", "attempts": [], "pressure": {},
        "predicted_ms": {"p50": 201_821_539.0, "p95": 201_821_539.0},
    });
    let (output, _) = explained(&record);
    assert!(output.contains("Route: local") && !output.contains("Predicted"), "{output}");
    let mut known = record.clone();
    known["predicted_ms"] = json!({"p50": 1_000.0, "p95": 2_000.0});
    assert!(explained(&known).0.contains("Predicted at arrival: 1000 ms"), "{known}");
}

/// The output of `pilotlight explain` for a reply, and whether the replay decides the same.
fn explained(reply: &Value) -> (String, bool) {
    let run = std::process::Command::new(PROGRAM).args(["explain", &reply.to_string()]).output();
    let run = run.unwrap();
    (String::from_utf8(run.stdout).unwrap(), run.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_board_offloads_with_a_reason() {
    let board = tempfile::tempdir().unwrap();
    write(board.path(), &format!("{ZONE}/type"), "cpu-thermal");
    write(board.path(), &format!("{ZONE}/temp"), "45000");
    let sensors = board.path().display().to_string();
    let service = Service::launch(&two(), "embedded", &[("PILOTLIGHT_SENSORS", &sensors)]);
    service.ready_all().await;
    service.ready().await;
    let mut app = App::of(service.mqtt, "app").await;

    let cool = app.ask("app", "hello").await;
    assert_eq!(
        (&cool["source"]["server"], &cool["decision"]["reason"]),
        (&json!("local"), &json!("feasible"))
    );
    assert!(cool["decision"]["predicted_ms"]["p95"].as_f64().unwrap() > 0.0, "{cool}");

    write(board.path(), &format!("{ZONE}/temp"), "75000");
    let state = service.until("closed", |state| state["device"]["stage"] == "closed").await;
    assert_eq!(
        (&state["device"]["cause"], &state["device"]["temperature_c"]),
        (&json!("heat"), &json!(75.0))
    );
    let hot = app.ask("app", "hello").await;
    assert_eq!(
        (&hot["status"], &hot["source"]["server"]),
        (&json!("ok"), &json!("cloud")),
        "{hot}"
    );
    assert_eq!(hot["decision"]["reason"], "hot");
    assert_eq!(hot["decision"]["pressure"]["heat"], 1.0);
    // a local-only request is answered on the device regardless
    let private = json!({"prompt": "hello", "mode": "local-only"}).to_string();
    let private_reply = app.ask("app", private).await;
    assert_eq!(
        (&private_reply["status"], &private_reply["source"]["server"]),
        (&json!("ok"), &json!("local"))
    );

    for reply in [&cool, &hot, &private_reply] {
        let (output, same) = explained(reply);
        assert!(same && output.contains("same decision"), "{reply}: {output}");
    }
    let mut forged = hot.clone();
    forged["decision"]["reason"] = json!("deadline");
    assert!(!explained(&forged).1);

    // the health topic is retained: a late subscriber has it
    let mut subscriber = App::connect(service.mqtt, "subscriber", &["pilotlight/dev/health"]).await;
    let health: Value = serde_json::from_slice(&subscriber.next().await.payload).unwrap();
    assert_eq!(
        (&health["stage"], &health["cause"]),
        (&json!("closed"), &json!("heat")),
        "{health}"
    );
    write(board.path(), &format!("{ZONE}/temp"), "45000");
    let cooled = loop {
        let health: Value = serde_json::from_slice(&subscriber.next().await.payload).unwrap();
        if health["stage"] == "calm" {
            break health;
        }
    };
    assert_eq!((&cooled["duty"], &cooled["temperature_c"]), (&json!(1.0), &json!(45.0)));
    assert_eq!(app.ask("app", "again").await["source"]["server"], "local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_unloaded_under_memory_pressure_and_loaded_again() {
    let board = tempfile::tempdir().unwrap();
    let memory = |mb: u64| {
        let info = format!("MemTotal: 4000000 kB\nMemAvailable: {} kB\n", mb * 1024);
        write(board.path(), "proc/meminfo", &info);
    };
    memory(2000);
    let sensors = board.path().display().to_string();
    let service = Service::launch(&two(), "embedded", &[("PILOTLIGHT_SENSORS", &sensors)]);
    service.ready_all().await;
    service.ready().await;
    let mut app = App::of(service.mqtt, "app").await;
    assert_eq!(app.ask("app", "one").await["source"]["server"], "local");
    memory(20);
    let is_down = |state: &Value| state["servers"][0]["model"].is_null();
    let state = service.until("unloaded", is_down).await;
    assert_eq!(state["device"]["stage"], "unload");
    let reply = app.ask("app", "two").await;
    assert_eq!(
        (&reply["source"]["server"], &reply["decision"]["reason"]),
        (&json!("cloud"), &json!("memory"))
    );
    assert!(explained(&reply).1, "{reply}");
    memory(2000);
    // the stage is left after half a minute with enough memory
    service.until("back", |state| !is_down(state)).await;
    assert_eq!(app.ask("app", "three").await["source"]["server"], "local");
}

#[test]
fn a_simulation_is_drawn_and_a_trace_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("day.svg");
    let run = |args: &[&str]| {
        let run = std::process::Command::new(PROGRAM).arg("simulate").args(args).output().unwrap();
        let output = String::from_utf8(run.stdout).unwrap();
        (run.status.success(), output, String::from_utf8(run.stderr).unwrap())
    };
    let picture = svg.display().to_string();
    let day = ["--board", "pi5", "--hours", "1", "--json", "--svg", &picture];
    let (succeeded, output, _) = run(&day);
    let result: Value = serde_json::from_str(&output).unwrap();
    assert!(succeeded && result["policies"][0]["jobs"].as_u64().unwrap() > 100, "{output}");
    assert_eq!(run(&day).1, output, "the same seed has another result");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
    // a trace of a board above its upper temperature
    let trace = folder.path().join("trace.jsonl");
    let sample = json!({"zones": [{"name": "z", "kind": "cpu-thermal", "celsius": 90.0}]});
    std::fs::write(&trace, format!("{sample}\n{sample}\n")).unwrap();
    let trace = trace.display().to_string();
    let (_, output, _) = run(&["--hours", "1", "--json", "--trace", &trace]);
    let result: Value = serde_json::from_str(&output).unwrap();
    let policy = &result["policies"][0];
    assert!(
        policy["reasons"]["hot"].as_u64().unwrap() * 2 > policy["jobs"].as_u64().unwrap(),
        "{output}"
    );
    for (args, word) in [
        (["--board", "pi9"], "pi9"),
        (["--load", "0"], "--load"),
        (["--hours", "NaN"], "--hours"),
        (["--trace", "/nowhere"], "/nowhere"),
    ] {
        let (succeeded, _, error) = run(&args);
        assert!(!succeeded && error.contains(word), "{args:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn learned_latencies_survive_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("kept").display().to_string();
    let first_prediction = async |times: usize| {
        let service = Service::launch(&two(), "embedded", &[("PILOTLIGHT_STATE", &folder)]);
        service.ready_all().await;
        service.ready().await;
        let mut app = App::of(service.mqtt, "app").await;
        let first = app.ask("app", "hello").await;
        for _ in 1..times {
            app.ask("app", "hello").await;
        }
        assert!(service.stop().await);
        first["decision"]["predicted_ms"]["p95"].as_f64().unwrap()
    };
    let (unknown, known) = (first_prediction(10).await, first_prediction(1).await);
    assert!(known < unknown / 4.0, "{known} is not far below {unknown}");
    let kept = std::path::Path::new(&folder).join("learned.json");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "others can read {}", kept.display());
}
