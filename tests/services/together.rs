//! Models that work together: who is asked, whose answer counts, what it cost, and what if one fails.

use std::time::{Duration, Instant};

use crate::support::cloud::{Act, Cloud, answer, ending, entry, error, head, piece, stream};
use crate::support::mqtt::App;
use crate::support::service::{Service, catalog, program};
use pilotlight::scheduler::decision::Decision;
use pilotlight::scheduler::explain;
use serde_json::{Value, json};

/// A service with a scripted model, and clouds that answer so.
async fn service(clouds: &[(&str, &Cloud)]) -> (Service, App) {
    let mut catalog = catalog(&["--scripted", "small"]);
    for (name, cloud) in clouds {
        catalog["pilotlight"]["providers"][*name] = entry(&cloud.url);
    }
    let service = Service::start(&catalog).await;
    service.ready_all().await;
    let app = App::of(service.mqtt, "app").await;
    (service, app)
}

async fn ask(app: &mut App, strategy: &str, prompt: &str, more: Value) -> Value {
    let mut ask = json!({"prompt": prompt, "strategy": strategy, "deadline_ms": 5000});
    ask.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let reply = app.ask("app", ask.to_string()).await;
    explains(&reply);
    reply
}

/// The record decides again as it was decided.
fn explains(reply: &Value) {
    let decision: Decision = serde_json::from_value(reply["decision"].clone()).unwrap();
    let expected = (decision.route, decision.reason);
    assert_eq!(explain(&decision), Ok(expected), "{reply}");
}

/// What it says, where it is from, why, and each attempt.
fn told(reply: &Value) -> (String, String, String, Vec<String>) {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let attempts = reply["decision"]["attempts"].as_array().cloned().unwrap_or_default();
    let attempt = |one: &Value| format!("{} {}", word(&one["server"]), word(&one["outcome"]));
    (
        word(&reply["text"]),
        word(&reply["decision"]["route"]),
        word(&reply["decision"]["reason"]),
        attempts.iter().map(attempt).collect(),
    )
}

fn is(
    text: &str,
    route: &str,
    reason: &str,
    attempts: &[&str],
) -> (String, String, String, Vec<String>) {
    let owned = |text: &str| text.to_owned();
    (owned(text), owned(route), owned(reason), attempts.iter().map(|one| owned(one)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cascade_goes_on_only_if_the_first_answer_is_not_good_enough() {
    let cloud = Cloud::start([answer(&[r#"{"a": 1}"#])]).await;
    let (_service, mut app) = service(&[("big", &cloud)]).await;

    let reply = ask(&mut app, "cascade", "good enough", json!({})).await;
    assert_eq!(told(&reply), is("good enough", "local", "feasible", &["local ok"]));
    assert_eq!(cloud.asked().len(), 0);

    let reply = ask(&mut app, "cascade", "/tokens=9", json!({"max_tokens": 3})).await;
    let both = ["local ok", "big ok"];
    assert_eq!(told(&reply), is(r#"{"a": 1}"#, "cloud", "quality:cut-off", &both), "{reply}");
    assert!((reply["usage"]["cost_usd"].as_f64().unwrap() - 0.007).abs() < 1e-12, "{reply}");
    // the cloud was asked what the device was asked
    let sent = &cloud.asked()[0].body;
    assert_eq!(sent["messages"].as_array().unwrap().len(), 1, "{sent}");
    let steps = reply["decision"]["steps"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[0]["lacks"]), (2, &json!("quality:cut-off")), "{reply}");

    // what must stay stays, good enough or not
    let stays = json!({"max_tokens": 3, "mode": "local-only"});
    let reply = ask(&mut app, "cascade", "/tokens=9", stays).await;
    assert_eq!((&reply["source"]["where"], &reply["finish"]), (&json!("device"), &json!("length")));
    assert_eq!(cloud.asked().len(), 1);
}

/// A provider's no is no lack of skill that another could make up for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_provider_forbids_is_not_taken_to_the_next() {
    let no = format!("{}{}", head("200 OK", "text/event-stream", ""), ending("content_filter"));
    let strict = Cloud::start([Act::Say(no.into())]).await;
    let lax = Cloud::start([answer(&["gladly"])]).await;
    let (_service, mut app) = service(&[("a", &strict), ("b", &lax)]).await;
    let reply = ask(&mut app, "single", "hello", json!({"mode": "prefer-cloud"})).await;
    assert_eq!(
        (&reply["status"], &reply["error"]["code"]),
        (&json!("refused"), &json!("forbidden"))
    );
    assert_eq!(told(&reply).3, ["a forbidden"], "{reply}");
    assert_eq!((strict.asked().len(), lax.asked().len()), (1, 0));
}

/// Unless the configuration says who may: then nobody else, however near.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_provider_forbids_is_taken_to_those_it_names() {
    let no = format!("{}{}", head("200 OK", "text/event-stream", ""), ending("content_filter"));
    let strict = Cloud::start([Act::Say(no.into())]).await;
    let long = Cloud::start([error("400 Bad Request", "", "context length exceeded")]).await;
    let lax = Cloud::start([answer(&["gladly"])]).await;
    let mut catalog = catalog(&["--scripted", "small"]);
    for (name, cloud) in [("a", &strict), ("b", &long), ("c", &lax), ("d", &lax)] {
        catalog["pilotlight"]["providers"][name] = entry(&cloud.url);
    }
    catalog["pilotlight"]["providers"]["a"]["fallbacks"] = json!(["b", "d"]);
    catalog["pilotlight"]["providers"]["b"]["fallbacks"] = json!(["d"]);
    let service = Service::start(&catalog).await;
    service.ready_all().await;
    let mut app = App::of(service.mqtt, "app").await;
    let reply = ask(&mut app, "single", "hello", json!({"mode": "prefer-cloud"})).await;
    let attempts = ["a forbidden", "b unfit", "d ok"];
    assert_eq!(told(&reply), is("gladly", "cloud", "policy", &attempts), "{reply}");
    let servers = reply["decision"]["figures"]["servers"].as_array().unwrap();
    let lacks: Vec<&Value> = servers.iter().map(|server| &server["lacks"]).collect();
    assert_eq!(lacks[..4], ["policy", "policy", "capability:context", "policy"], "{reply}");
    // who is named has to be there
    catalog["pilotlight"]["providers"]["a"]["fallbacks"] = json!(["b", "a", "e"]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mcp.json"), catalog.to_string()).unwrap();
    let (code, said, errors) = program(folder.path(), &["check", "mcp.json"], &[]).await;
    let all = said + &errors;
    assert!(
        code != 0
            && all.contains("a.fallbacks[1]: fallbacks must name another")
            && all.contains("[2]"),
        "{all}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answer_is_better_than_none() {
    let cloud = Cloud::start([error("500 Internal Server Error", "", "oh")]).await;
    let (_service, mut app) = service(&[("big", &cloud)]).await;
    let reply =
        ask(&mut app, "cascade", "/tokens=9", json!({"max_tokens": 3, "deadline_ms": 1500})).await;
    let (_, route, reason, attempts) = told(&reply);
    assert_eq!((route.as_str(), reason.as_str()), ("local", "quality:cut-off"), "{reply}");
    assert_eq!(
        (&reply["status"], &attempts[..2]),
        (&json!("ok"), &["local ok".to_owned(), "big away".to_owned()][..])
    );

    let reply = ask(&mut app, "refine", "a draft", json!({"deadline_ms": 1500})).await;
    assert_eq!((&reply["status"], &reply["text"]), (&json!("ok"), &json!("a draft")), "{reply}");
    assert_eq!(reply["decision"]["route"], "local", "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_is_refined() {
    let cloud = Cloud::start([answer(&["much ", "better"])]).await;
    let (_service, mut app) = service(&[("big", &cloud)]).await;
    let reply = ask(&mut app, "refine", "a draft", json!({})).await;
    let both = ["local ok", "big ok"];
    assert_eq!(told(&reply), is("much better", "cloud", "strategy", &both), "{reply}");
    let messages = cloud.asked()[0].body["messages"].clone();
    assert_eq!(messages.as_array().unwrap().len(), 1, "{messages}");
    let said = messages[0]["content"].as_str().unwrap();
    // the draft repeats the prompt, which is at the end
    assert!(said.contains("wrong:\na draft\n") && said.ends_with("\na draft"), "{messages}");

    let reply = ask(&mut app, "refine", "mine alone", json!({"mode": "local-only"})).await;
    assert_eq!(
        (&reply["text"], &reply["source"]["where"]),
        (&json!("mine alone"), &json!("device"))
    );
    assert_eq!(cloud.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_compared() {
    let silent = head("200 OK", "text/event-stream", "") + &piece("I ");
    let (one, two) = (
        Cloud::start([answer(&["Red"]), answer(&["green"]), Act::Hang(silent.into())]).await,
        Cloud::start([answer(&["blue"]), answer(&["red"]), answer(&["red"])]).await,
    );
    let (_service, mut app) = service(&[("one", &one), ("two", &two)]).await;

    // two of three say the same, but for case
    let reply = ask(&mut app, "compare", "red", json!({})).await;
    let (text, _, reason, attempts) = told(&reply);
    assert_eq!((text.to_lowercase().as_str(), reason.as_str()), ("red", "strategy"), "{reply}");
    assert!(attempts.len() == 3, "{attempts:?}");
    // none agrees: the one from furthest away
    let reply = ask(&mut app, "compare", "white", json!({})).await;
    assert_eq!(told(&reply).1, "cloud", "{reply}");

    // two agree while the third is silent: nobody waits for it, and it is paid for
    let began = Instant::now();
    let reply = ask(&mut app, "compare", "red", json!({"deadline_ms": 20_000})).await;
    assert_eq!(reply["text"], "red", "{reply}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let attempts = reply["decision"]["attempts"].as_array().unwrap();
    let lost: Vec<&Value> = attempts.iter().filter(|one| one["outcome"] != "ok").collect();
    assert_eq!(lost.len(), 1, "{reply}");
    assert!(lost[0]["cost_usd"].as_f64().unwrap() > 0.0, "{reply}");
}

/// What a judge says is taken if it says so in both orders, and else what the rule says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_has_the_last_word_where_none_agree() {
    fn shown(body: &Value, answer: &str) -> &'static str {
        let text = body["messages"][0]["content"].as_str().unwrap();
        let first = text.contains(&format!("Answer A:\n{answer}\n"));
        if first { r#"{"best": "A"}"# } else { r#"{"best": "B"}"# }
    }
    let far = Cloud::start([answer(&["blue"])]).await;
    let acts: [fn(&Value) -> Vec<u8>; 6] = [
        |body| stream(&[shown(body, "red or so")]),
        |body| stream(&[shown(body, "red or so")]),
        |_| stream(&[r#"{"best": "A"}"#]),
        |_| stream(&[r#"{"best": "A"}"#]),
        |_| stream(&["I can't say."]),
        |_| stream(&["I can't say."]),
    ];
    let wise = Cloud::start(acts.map(Act::Make)).await;
    let (_service, mut app) = service(&[("big", &far), ("wise", &wise)]).await;
    let judged = json!({"judge": "wise"});
    let attempts = ["local ok", "big ok", "wise ok", "wise ok"];
    // the judge is no contestant, and sees both orders
    let reply = ask(&mut app, "compare", "red or so", judged.clone()).await;
    assert_eq!(told(&reply), is("red or so", "local", "strategy", &attempts), "{reply}");
    let steps = reply["decision"]["steps"].as_array().unwrap();
    let words: Vec<&Value> = steps.iter().map(|step| &step["prefers"]).collect();
    assert_eq!(words, [&Value::Null, &Value::Null, &json!(0), &json!(0)], "{reply}");
    let bodies: Vec<Value> = wise.asked().into_iter().map(|asked| asked.body).collect();
    assert_ne!(shown(&bodies[0], "red or so"), shown(&bodies[1], "red or so"));
    let cost = reply["usage"]["cost_usd"].as_f64().unwrap();
    assert!((cost - 3.0 * 0.007).abs() < 1e-9, "{reply}");
    // one that prefers whatever stands first, and one that says nothing of use
    let reply = ask(&mut app, "compare", "red or so", judged.clone()).await;
    assert_eq!(told(&reply), is("blue", "cloud", "strategy", &attempts), "{reply}");
    let reply = ask(&mut app, "compare", "red or so", judged.clone()).await;
    assert_eq!((&reply["text"], &reply["status"]), (&json!("blue"), &json!("ok")), "{reply}");
    // nothing is left to say where two agree
    let before = wise.asked().len();
    let reply = ask(&mut app, "compare", "BLUE", judged.clone()).await;
    assert_eq!((told(&reply).3.len(), wise.asked().len()), (2, before), "{reply}");
    // a private prompt has no judge either, and without comparing there is nothing to judge
    let private = json!({"judge": "wise", "mode": "local-only"});
    assert_eq!(ask(&mut app, "compare", "mine", private).await["text"], "mine");
    assert_eq!(wise.asked().len(), before);
    let alone = app.ask("app", json!({"prompt": "hi", "judge": "wise"}).to_string()).await;
    assert_eq!(alone["error"]["field"], "judge", "{alone}");
}

/// Whichever strategy is asked for, a private prompt reaches nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_strategy_lets_a_private_prompt_out() {
    let cloud = Cloud::start([answer(&["never"])]).await;
    let (_service, mut app) = service(&[("big", &cloud)]).await;
    for strategy in ["single", "cascade", "refine", "compare"] {
        for prompt in ["hello", "/tokens=9", "/fail=broken"] {
            let private = json!({"mode": "local-only", "max_tokens": 3, "deadline_ms": 700});
            let mut asks = json!({"prompt": prompt, "strategy": strategy});
            asks.as_object_mut().unwrap().extend(private.as_object().unwrap().clone());
            app.ask("app", asks.to_string()).await;
        }
    }
    assert_eq!(cloud.opened(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_have_a_margin_and_no_strategy() {
    let cloud = Cloud::start([answer(&["never"])]).await;
    let (_service, mut app) = service(&[("big", &cloud)]).await;
    let labels = json!({"prompt": "hot", "labels": {"hot": [], "ok": []}, "strategy": "cascade"});
    let reply = app.ask("app", labels.to_string()).await;
    assert_eq!(
        (&reply["status"], &reply["error"]["field"]),
        (&json!("refused"), &json!("strategy"))
    );
}
