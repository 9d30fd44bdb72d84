//! Remote servers whose figures, claims and answers can't be true: they harm neither the budget nor the
//! answers of others.

use std::time::Instant;

use crate::support::SOON;
use crate::support::cloud::{Cloud, answer, entry};
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog, program};
use crate::support::untrusted::{
    ask, beside, context, reads, respond, says, server, text, to_calls,
};
use pilotlight::limits::IMPLAUSIBLE_MAX;
use pilotlight::model::context::ModelContext;
use serde_json::{Value, json};

fn absurd_bill(body: &Value) -> Vec<u8> {
    respond(body, |body| to_calls(body, || says("well", &json!({"cost_usd": 1e9}))))
}

/// A neighbour without a configured price states a thousand million dollars: paid models go on, also after
/// a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_price_charges_nothing() {
    let (liar, cloud) = (server(absurd_bill).await, Cloud::start([answer(&["paid"])]).await);
    let mut catalog = beside(&liar.url);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["policy"] = json!({"budget": {"usd_per_month": 1}});
    let state = tempfile::tempdir().unwrap();
    let place = [("PILOTLIGHT_STATE", state.path().to_str().unwrap())];
    for run in 0..2 {
        let service = Service::launch(&catalog, "off", &place);
        service.ready_all().await;
        if run == 0 {
            let reply = ask(&service, "remote").await;
            assert_eq!(text(&reply), "well", "{reply}");
            // what it states is not repeated either
            let cost = reply["pilotlight"]["usage"]["cost_usd"].as_f64().unwrap_or_default();
            assert!(cost < 1000.0, "{reply}");
        }
        let spent = service.state().await.unwrap()["spent_usd"]["month"].as_f64().unwrap();
        assert!(spent < 0.1, "{spent}");
        let reply = ask(&service, "big").await;
        assert_eq!(text(&reply), "paid", "{reply}");
        assert!(service.stop().await);
    }
}

/// With a configured price, what counts are the tokens, and at most those that were reserved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bill_is_at_most_its_reservation() {
    let liar = server(|body| {
        respond(body, |body| {
            let absurd = json!({"prompt_tokens": u32::MAX, "completion_tokens": u32::MAX});
            to_calls(body, || says("well", &absurd))
        })
    })
    .await;
    let mut catalog = beside(&liar.url);
    catalog["pilotlight"]["servers"]["remote"]["price"] = json!({"input": 100, "output": 1000});
    catalog["pilotlight"]["policy"] = json!({"budget": {"usd_per_month": 1}});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    let reply = ask(&service, "remote").await;
    assert_eq!(text(&reply), "well", "{reply}");
    let tokens = &reply["usage"];
    assert_eq!(tokens["completion_tokens"], 50, "{reply}");
    let spent = service.state().await.unwrap()["spent_usd"]["month"].as_f64().unwrap();
    // 50 tokens of the answer, and at most one for each byte of the prompt with its frame
    assert!((0.05..0.1).contains(&spent), "{spent}");
}

/// After some answers that can't be true a server gets no prompts for a long time; this is counted, and
/// all prompts are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_impossible_figures_is_rested() {
    let liar = server(|body| {
        respond(body, |body| {
            to_calls(body, || says("believe me", &json!({"decode_ms": -1e308, "cost_usd": -5.0})))
        })
    })
    .await;
    let cloud = Cloud::start([answer(&["from afar"])]).await;
    let mut catalog = beside(&liar.url);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    let far = json!({
        "model": "auto", "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"mode": "cloud-only", "deadline_ms": "30000"},
    });
    let mut texts = Vec::new();
    for n in 0..IMPLAUSIBLE_MAX + 4 {
        let mut ask = far.clone();
        // the provider is preferred in this mode: the neighbour is asked by its name
        ask["model"] = json!(if n < IMPLAUSIBLE_MAX { "remote" } else { "auto" });
        texts.push(text(&service.chat(ask).await.1).to_owned());
    }
    let asked = |method: &str| liar.asked().iter().filter(|a| a.body["method"] == method).count();
    assert_eq!(asked("tools/call"), IMPLAUSIBLE_MAX as usize, "{texts:?}");
    // it is asked for by name in vain, and not waited for
    let began = Instant::now();
    let mut named = far.clone();
    (named["model"], named["metadata"]["deadline_ms"]) = (json!("remote"), json!("1000"));
    let (status, reply) = service.chat(named).await;
    assert_ne!(status, 200, "{reply}");
    assert!(began.elapsed() < SOON);
    assert_eq!(asked("tools/call"), IMPLAUSIBLE_MAX as usize);
    let metrics = reqwest::get(service.url("/metrics")).await.unwrap().text().await.unwrap();
    let line =
        format!("pilotlight_implausible_answers_total{{server=\"remote\"}} {IMPLAUSIBLE_MAX}");
    assert!(metrics.contains(&line), "{metrics}");
    assert!(texts[IMPLAUSIBLE_MAX as usize..].iter().all(|text| text == "from afar"), "{texts:?}");
}

/// Claims beyond reason are bounded, shown as one line each, and nobody is scheduled by them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_claims_disturb_nothing() {
    let liar = server(|body| {
        respond(body, |body| {
            (body["method"] == "resources/read").then(|| {
                let mut claims = context();
                claims["identification"]["name"] = json!("local");
                claims["identification"]["licence"] = json!("\u{1b}[2J".repeat(10_000));
                claims["capabilities"]["talents"] = json!(vec!["generate"; 10_000]);
                claims["capabilities"]["max_output_tokens"] = json!(u32::MAX);
                claims["inference_settings"]["max_tokens"] = json!(u32::MAX);
                claims["runtime"]["slots"] = json!(u32::MAX);
                claims["runtime"]["prefill_tokens_per_s"] = json!(1e-300);
                claims["runtime"]["decode_tokens_per_s"] = json!(1e300);
                reads(&claims)
            })
        })
    })
    .await;
    let service = Service::launch(&beside(&liar.url), "off", &[]);
    service.ready_all().await;
    let state = service.state().await.unwrap();
    let servers = state["servers"].as_array().unwrap();
    let claims = servers.iter().find(|server| server["server"] == "remote").unwrap();
    assert!(claims.to_string().len() < 64 * 1024, "{} bytes", claims.to_string().len());
    assert!(!claims.to_string().contains("\\u001b"), "{claims}");
    serde_json::from_value::<ModelContext>(claims["model"].clone()).unwrap();
    // the name of another server brings it no prompts of that server
    let body = json!({
        "model": "local", "messages": [{"role": "user", "content": "one two"}],
        "metadata": {"mode": "prefer-cloud", "deadline_ms": "30000"},
    });
    let (_, reply) = service.chat(body).await;
    assert_eq!(
        (text(&reply), &reply["pilotlight"]["source"]["server"]),
        ("one two", &json!("local"))
    );
    assert_eq!(text(&ask(&service, "remote").await), "well");
}

/// What was not asked for is no answer: a label of the server's own, a call of a tool that was not
/// offered, a cancellation that nobody has asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_one_that_was_asked_for() {
    let label = server(|body| {
        respond(body, |body| {
            let own = json!({"classification": {"label": "open", "confidence": 1.0}});
            to_calls(body, || says("open", &own))
        })
    })
    .await;
    let tool = server(|body| {
        respond(body, |body| {
            let call = json!({"finish": "tool_calls", "tool_calls": [{"id": "1", "name": "unlock", "arguments": {}}]});
            to_calls(body, || says("", &call))
        })
    })
    .await;
    let cancelled = server(|body| {
        respond(body, |body| {
            to_calls(body, || {
                json!({
                    "content": [], "isError": true, "structuredContent": {
                        "fault": "cancelled", "error": {"code": "x", "message": "no"}
                    },
                })
            })
        })
    })
    .await;
    let plain = json!({"prompt": "hello"});
    let labels = json!({"prompt": "hello", "labels": {"shut": [], "ajar": []}});
    for (server, ask) in [(label, labels), (tool, plain.clone()), (cancelled, plain)] {
        let mut catalog = catalog(&["--scripted", "small"]);
        catalog["mcpServers"] = json!({"remote": {"type": "http", "url": server.url}});
        let service = Service::start(&catalog).await;
        service.ready_all().await;
        let mut app = App::of(service.mqtt, "app").await;
        let mut ask = ask;
        (ask["mode"], ask["deadline_ms"]) = (json!("cloud-only"), json!(20_000));
        let reply = app.ask("app", ask.to_string()).await;
        assert_eq!(reply["status"], "failed", "{reply}");
        assert_eq!(reply["error"]["code"], "broken", "{reply}");
    }
}

/// A secret is not sent in plain text over a network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_not_sent_in_plain_text() {
    let check = async |entry: Value| {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"mcpServers": {"far": entry}});
        std::fs::write(folder.path().join("mcp.json"), config.to_string()).unwrap();
        let vars = [("TOKEN", "canary-1"), ("HOME", folder.path().to_str().unwrap())];
        program(folder.path(), &["check"], &vars).await
    };
    let far = "http://192.0.2.7:8080/mcp";
    for (entry, place) in [
        (
            json!({"url": far, "headers": {"Authorization": "Bearer ${TOKEN}"}}),
            "headers.Authorization",
        ),
        (
            json!({"url": far, "headers": {"Proxy-Authorization": "${TOKEN}"}}),
            "headers.Proxy-Authorization",
        ),
        (json!({"url": far, "headers": {"X-Api-Key": "cred:x"}}), "headers.X-Api-Key"),
        (json!({"url": far, "headers": {"cookie": "a=b"}}), "headers.cookie"),
        (json!({"url": far, "headers": {"X-Device": "${TOKEN}"}}), "headers.X-Device"),
        (
            json!({"url": "http://kitchen.local/mcp", "headers": {"authorization": "Basic x"}}),
            "headers.authorization",
        ),
        (
            json!({"url": "http://127.0.0.1.evil.example/mcp", "headers": {"Authorization": "x"}}),
            "headers.Authorization",
        ),
        (json!({"url": "http://localhost@192.0.2.7/mcp"}), "url"),
        (json!({"url": "http://192.0.2.7/mcp?api_key=${TOKEN}"}), "url"),
    ] {
        let (code, _, err) = check(entry.clone()).await;
        assert_eq!(code, 2, "{entry}: {err}");
        assert!(err.contains(&format!("mcpServers.far.{place}: http:// would send")), "{err}");
        assert!(!err.contains("canary-1"), "{err}");
    }
    for entry in [
        json!({"url": far}),
        json!({"url": far, "headers": {"X-Device": "kitchen"}}),
        json!({"url": "https://192.0.2.7/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}),
        json!({"url": "http://127.0.0.1:1/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}),
        json!({"url": "http://localhost:1/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}),
        json!({"url": "http://[::1]:1/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}),
    ] {
        let (code, _, err) = check(entry.clone()).await;
        assert_eq!(code, 0, "{entry}: {err}");
    }
}

/// What was spent by mistake is corrected with a reason, while the service is stopped and while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_budget_is_shown_and_corrected() {
    let cloud = Cloud::start([answer(&["paid"])]).await;
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    // 0.0006 dollars are reserved for each answer, and it costs no more
    catalog["pilotlight"]["policy"] = json!({"budget": {"usd_per_month": 0.003}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), catalog.to_string()).unwrap();
    let state = folder.path().join("state").to_str().unwrap().to_owned();
    let place = [("PILOTLIGHT_STATE", state.as_str()), ("PILOTLIGHT_MQTT", "off")];
    let budget = async |args: &[&str]| {
        let args: Vec<&str> = ["budget"].iter().chain(args).copied().collect();
        program(folder.path(), &args, &place).await
    };
    let shown = async || -> Value {
        let (code, out, err) = budget(&["show", "--json"]).await;
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    let (code, _, err) =
        budget(&["correct", "--app", "a", "--subtract", "1", "--reason", "x"]).await;
    assert!(code == 1 && err.contains("there is no ledger"), "{code}: {err}");

    let service = Service::launch(&catalog, "off", &place);
    service.ready_all().await;
    let mut paid = 0;
    while text(&ask(&service, "big").await) == "paid" {
        paid += 1;
        assert!(paid < 10, "the budget is never used up");
    }
    let before = shown().await;
    let spent = |shown: &Value| shown["apps"]["http"]["month"]["spent_usd"].as_f64().unwrap_or(0.0);
    assert!(paid >= 1 && spent(&before) > 0.0015, "{before}");
    assert!((before["all"]["month"]["cap_usd"].as_f64().unwrap() - 0.003).abs() < 1e-9, "{before}");

    // while it runs
    let reason = "the provider billed twice";
    let correct = ["correct", "--app", "http", "--subtract", "all", "--reason", reason];
    let (code, out, err) = budget(&correct).await;
    assert!(code == 0 && out.contains(reason), "{code}: {out}{err}");
    assert!(spent(&shown().await) < 1e-9);
    assert_eq!(text(&ask(&service, "big").await), "paid");
    // and durably
    signal_kill(service).await;
    let after = shown().await;
    assert!((0.0003..0.001).contains(&spent(&after)), "{after}");
    assert_eq!(after["corrections"][0]["reason"], reason, "{after}");

    // while it is stopped
    let ledger = std::path::Path::new(&state).join("spent.jsonl");
    let file = std::fs::read_to_string(&ledger).unwrap();
    let (code, _, err) =
        budget(&["correct", "--app", "http", "--add", "0.5", "--reason", "an invoice"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        std::fs::read_to_string(&ledger).unwrap().starts_with(&file),
        "the ledger was rewritten"
    );
    assert!(spent(&shown().await) > 0.5);
    let service = Service::launch(&catalog, "off", &place);
    service.ready_all().await;
    assert_ne!(text(&ask(&service, "big").await), "paid");
    assert!(service.stop().await);
    assert_eq!(shown().await["corrections"].as_array().unwrap().len(), 2);

    for (args, why) in [
        (["--app", "nobody", "--subtract", "1", "--reason", "x"], "applications: http"),
        (["--app", "http", "--subtract", "-1", "--reason", "x"], "US dollars"),
        (["--app", "http", "--subtract", "nan", "--reason", "x"], "US dollars"),
        (["--app", "http", "--add", "all", "--reason", "x"], "amount"),
        (["--app", "http", "--add", "1", "--reason", " "], "--reason"),
        (["--app", "http", "--add", "1", "--reason", "two\nlines"], "--reason"),
    ] {
        let (code, _, err) = budget(&[&["correct"], &args[..]].concat()).await;
        assert!(code != 0 && err.contains(why), "{args:?}: {code} {err}");
    }
}

/// Ends the service all at once.
async fn signal_kill(mut service: Service) {
    service.child.kill().await.unwrap();
}
