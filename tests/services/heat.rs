//! A board that gets hot under the real service: what asker, watcher and fleet manager see of it.

use std::path::Path;

use crate::support::PROGRAM;
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog};
use serde_json::{Value, json};

const ZONE: &str = "sys/class/thermal/thermal_zone0";

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// The scripted model here, and another elsewhere.
fn two() -> Value {
    let mut catalog = catalog(&["--scripted", "here", "--slots", "1"]);
    let away =
        json!({"command": "pilotlight", "args": ["engine", "--scripted", "away", "--slots", "4"]});
    catalog["mcpServers"]["cloud"] = away;
    catalog["pilotlight"]["servers"] = json!({"cloud": {"reach": "cloud"}});
    catalog["pilotlight"]["device_limits"] = json!({"heat_c": [60, 70]});
    catalog
}

/// What `pilotlight explain` says of a reply, and whether it decides the same.
fn explained(reply: &Value) -> (String, bool) {
    let run = std::process::Command::new(PROGRAM).args(["explain", &reply.to_string()]).output();
    let run = run.unwrap();
    (String::from_utf8(run.stdout).unwrap(), run.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_board_sends_away_what_may_leave_and_says_why() {
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
    // what must stay is answered here all the same
    let private = json!({"prompt": "hello", "mode": "local-only"}).to_string();
    let stays = app.ask("app", private).await;
    assert_eq!((&stays["status"], &stays["source"]["server"]), (&json!("ok"), &json!("local")));

    for reply in [&cool, &hot, &stays] {
        let (said, same) = explained(reply);
        assert!(same && said.contains("same decision"), "{reply}: {said}");
    }
    let mut lied = hot.clone();
    lied["decision"]["reason"] = json!("deadline");
    assert!(!explained(&lied).1);

    // a watcher that comes late is told
    let mut watcher = App::connect(service.mqtt, "watcher", &["pilotlight/dev/health"]).await;
    let health: Value = serde_json::from_slice(&watcher.next().await.payload).unwrap();
    assert_eq!(
        (&health["stage"], &health["cause"]),
        (&json!("closed"), &json!("heat")),
        "{health}"
    );
    write(board.path(), &format!("{ZONE}/temp"), "45000");
    let cooled = loop {
        let health: Value = serde_json::from_slice(&watcher.next().await.payload).unwrap();
        if health["stage"] == "calm" {
            break health;
        }
    };
    assert_eq!((&cooled["duty"], &cooled["temperature_c"]), (&json!(1.0), &json!(45.0)));
    assert_eq!(app.ask("app", "again").await["source"]["server"], "local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_unloaded_for_want_of_memory_and_comes_back() {
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
    // it opens after half a minute of plenty
    service.until("back", |state| !is_down(state)).await;
    assert_eq!(app.ask("app", "three").await["source"]["server"], "local");
}

#[test]
fn a_simulated_day_can_be_drawn_and_a_trace_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("day.svg");
    let run = |args: &[&str]| {
        let run = std::process::Command::new(PROGRAM).arg("simulate").args(args).output().unwrap();
        let said = String::from_utf8(run.stdout).unwrap();
        (run.status.success(), said, String::from_utf8(run.stderr).unwrap())
    };
    let picture = svg.display().to_string();
    let day = ["--board", "pi5", "--hours", "1", "--json", "--svg", &picture];
    let (worked, said, _) = run(&day);
    let told: Value = serde_json::from_str(&said).unwrap();
    assert!(worked && told["policies"][0]["jobs"].as_u64().unwrap() > 100, "{said}");
    assert_eq!(run(&day).1, said, "the same seed, the same day");
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
    // a board that is always too hot
    let trace = folder.path().join("trace.jsonl");
    let sample = json!({"zones": [{"name": "z", "kind": "cpu-thermal", "celsius": 90.0}]});
    std::fs::write(&trace, format!("{sample}\n{sample}\n")).unwrap();
    let trace = trace.display().to_string();
    let (_, said, _) = run(&["--hours", "1", "--json", "--trace", &trace]);
    let told: Value = serde_json::from_str(&said).unwrap();
    let ours = &told["policies"][0];
    assert!(
        ours["reasons"]["hot"].as_u64().unwrap() * 2 > ours["jobs"].as_u64().unwrap(),
        "{said}"
    );
    for (args, word) in [
        (["--board", "pi9"], "pi9"),
        (["--load", "0"], "--load"),
        (["--hours", "NaN"], "--hours"),
        (["--trace", "/nowhere"], "/nowhere"),
    ] {
        let (worked, _, complaint) = run(&args);
        assert!(!worked && complaint.contains(word), "{args:?}: {complaint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_starts_again_knows_how_long_answers_take() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("kept").display().to_string();
    let asked = async |times: usize| {
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
    let (unknown, known) = (asked(10).await, asked(1).await);
    assert!(known < unknown / 4.0, "{known} is not far below {unknown}");
    let kept = std::path::Path::new(&folder).join("learned.json");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "others can read {}", kept.display());
}
