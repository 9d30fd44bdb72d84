//! Cloud models in `OpenAI`'s protocol: answers, every kind of failure, the key, and prompts that must stay
//! on the device.

use std::time::Duration;

use crate::support::cloud::{
    Act, Cloud, KEY, answer, ending, entry, error, event, head, open, open_as, piece, trusting,
};
use crate::support::contract::{job, run};
use crate::support::failures::failures;
use crate::support::figures::memory;
#[cfg(feature = "embedded-broker")]
use crate::support::mqtt::App;
use crate::support::pace::stretched;
use crate::support::service::{Service, program};
use crate::support::storm;
use futures::StreamExt;
use pilotlight::catalog::expand::Variables;
use pilotlight::catalog::read;
use pilotlight::catalog::server::Endpoint;
use pilotlight::limits::PROVIDER_HELD_BYTES_MAX;
use pilotlight::model::generate::{Fault, Finish, Usage};
use pilotlight::model::out::channel;
use pilotlight::providers;
use pilotlight::request::format::Format;
use pilotlight::request::job::Job;
use pilotlight::request::refusal::Code;
use serde_json::{Value, json};

async fn ask(
    acts: impl IntoIterator<Item = Act>,
    job: Job,
) -> (Result<(String, Usage), Fault>, Cloud) {
    let cloud = Cloud::start(acts).await;
    let result = run(open(&cloud.url).as_ref(), &job).await;
    (result, cloud)
}

#[tokio::test]
async fn an_answer_is_streamed_and_its_tokens_are_counted() {
    let mut request = job("What burns?", 60);
    request.sampling.temperature = Some(0.5);
    request.sampling.seed = Some(7);
    request.sampling.stop = vec!["\n".to_owned()];
    let (result, cloud) = ask([answer(&["A pilot", " light.", " \u{e9}"])], request).await;
    let (text, usage) = result.unwrap();
    assert_eq!(text, "A pilot light. \u{e9}");
    assert_eq!((usage.finish, usage.chunks, usage.prompt_tokens), (Finish::Stop, 3, 1000));
    assert_eq!((usage.completion_tokens, usage.cached_tokens), (500, 7));
    // 1,000 tokens at 2 and 500 at 10 dollars a million
    assert!((usage.cost_usd - 0.007).abs() < 1e-12, "{}", usage.cost_usd);
    let asked = &cloud.asked()[0];
    assert!(asked.head.starts_with("POST /v1/chat/completions HTTP/1.1"), "{}", asked.head);
    assert!(asked.head.contains(&format!("authorization: Bearer {KEY}")));
    let expected = json!({
        "model": "big-1", "messages": [{"role": "user", "content": "What burns?"}], "stream": true,
        "stream_options": {"include_usage": true}, "max_tokens": 60, "temperature": 0.5,
        "seed": 7, "stop": ["\n"],
    });
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn log_probabilities_are_read() {
    let likely = |token: &str, more: Value| {
        let mut one = json!({"token": token, "logprob": -0.5, "bytes": token.as_bytes()});
        one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"choices": [{"delta": {"content": token}, "logprobs": {"content": [one]}}]})
    };
    let others = json!([{"token": "B", "logprob": -1.5}]);
    let pieces = event(&likely("A", json!({"top_logprobs": others})))
        + &event(&likely("\u{e9}", json!({"bytes": null})));
    let all = head("200 OK", "text/event-stream", "") + &pieces + &ending("stop");
    let cloud = Cloud::start([Act::Say(all.into())]).await;
    let mut entry = entry(&cloud.url);
    entry["logprobs"] = json!(true);
    let model = open_as(&entry);
    assert!(model.context().capabilities.logprobs);
    let mut request = job("hello", 4);
    request.sampling.logprobs = Some(1);
    let (_, usage) = run(model.as_ref(), &request).await.unwrap();
    let told = |n: usize| serde_json::to_value(&usage.logprobs[n]).unwrap();
    let other = json!({"token": "B", "bytes": [66], "logprob": -1.5});
    assert_eq!(told(0)["top_logprobs"], json!([other]));
    assert_eq!((&told(1)["bytes"], &told(1)["logprob"]), (&json!([195, 169]), &json!(-0.5)));
    assert_eq!(cloud.asked()[0].body["top_logprobs"], 1);
}

#[tokio::test]
async fn each_attempt_has_its_own_idempotency_key() {
    let cloud = Cloud::start([answer(&["x"])]).await;
    let model = open(&cloud.url);
    for _ in 0..3 {
        run(model.as_ref(), &job("hello", 4)).await.unwrap();
    }
    let key = |head: &str| {
        head.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap().to_owned()
    };
    let mut keys: Vec<String> = cloud.asked().iter().map(|asked| key(&asked.head)).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 3);
}

#[tokio::test]
async fn json_is_requested_and_checked() {
    let schema = json!({"type": "object", "properties": {"hot": {"type": "boolean"}}});
    let wants = |format| Job { format, ..job("Is it hot?", 20) };
    let (result, cloud) =
        ask([answer(&["{\"hot\":", "true}"])], wants(Format::Schema(schema.clone().into()))).await;
    assert_eq!(result.unwrap().0, "{\"hot\":true}");
    let shape = &cloud.asked()[0].body["response_format"];
    assert_eq!((&shape["type"], &shape["json_schema"]["schema"]), (&json!("json_schema"), &schema));
    let (result, cloud) = ask([answer(&["It is hot."])], wants(Format::Json)).await;
    assert!(matches!(result, Err(Fault::ProtocolError(why)) if why.contains("JSON")));
    assert_eq!(cloud.asked()[0].body["response_format"]["type"], "json_object");
    // an unsupported format is not sent
    let (result, cloud) = ask([answer(&["x"])], wants(Format::Embedding)).await;
    assert!(matches!(result, Err(Fault::Rejected(_))));
    assert_eq!(cloud.opened(), 0);
}

#[tokio::test]
async fn a_buffered_answer_is_read() {
    let body = json!({
        "choices": [{"message": {"role": "assistant", "content": "All at once."}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    });
    let response = format!("{}{body}", head("200 OK", "application/json; charset=utf-8", ""));
    let (result, _) = ask([Act::Say(response.into())], job("hello", 4)).await;
    let (text, usage) = result.unwrap();
    assert_eq!((text.as_str(), usage.finish), ("All at once.", Finish::Length));
}

/// Each failure has the expected fault, without the key in it.
#[tokio::test]
async fn each_failure_has_its_fault() {
    for (name, act, expected) in failures() {
        let (result, cloud) = ask([act], job("hello", 4)).await;
        let fault = result.unwrap_err();
        assert_eq!(fault.name(), expected, "{name}: {fault}");
        assert!(!format!("{fault} {fault:?}").contains(KEY), "{name}: {fault}");
        assert_eq!(cloud.asked().len().max(1), 1, "{name}: it was asked again");
        if let Fault::Rejected(refusal) = fault {
            let code = if name == "forbidden" { Code::Forbidden } else { Code::Incapable };
            assert_eq!(refusal.code, code, "{name}: another model may do it");
        }
    }
}

/// Without a trusted certificate nothing is sent.
#[tokio::test]
async fn the_key_is_not_sent_without_a_trusted_certificate() {
    let cloud = Cloud::start([answer(&["x"])]).await;
    let model = open(&cloud.url.replace("http://", "https://"));
    let fault = run(model.as_ref(), &job("hello", 4)).await.unwrap_err();
    assert!(matches!(fault.name(), "away" | "hung"), "{fault}");
    assert!(cloud.asked().is_empty());
    let mut missing = entry(&cloud.url);
    missing["ca"] = json!("/nowhere/ca.pem");
    let file = json!({"pilotlight": {"providers": {"big": missing}}}).to_string();
    let (catalog, mistakes) = read::read(&file, &Variables::new());
    assert_eq!(mistakes, []);
    let Endpoint::Provider(missing) = &catalog.servers[0].endpoint else { panic!("no provider") };
    let fault = providers::open(missing, Duration::from_secs(1)).err().unwrap();
    assert!(fault.to_string().contains("/nowhere/ca.pem cannot be read"), "{fault}");
}

/// A private certificate authority is trusted only if it is configured.
#[tokio::test]
async fn a_private_authority_is_trusted_if_it_is_configured() {
    let (cloud, certificate) = Cloud::start_encrypted([answer(&["secret"])]).await;
    let (mut trusted, _folder) = trusting(&cloud.url, &certificate);
    let fault = run(open(&cloud.url).as_ref(), &job("hello", 4)).await.unwrap_err();
    assert!(fault.name() == "away" && fault.to_string().contains("certificate"), "{fault}");
    assert!(cloud.asked().is_empty());
    let (text, _) = run(open_as(&trusted).as_ref(), &job("hello", 4)).await.unwrap();
    assert_eq!(text, "secret");
    // the certificate is for another host name
    trusted["base_url"] = json!(cloud.url.replace("localhost", "127.0.0.1"));
    let fault = run(open_as(&trusted).as_ref(), &job("hello", 4)).await.unwrap_err();
    assert_eq!((fault.name(), cloud.asked().len()), ("away", 1), "{fault}");
}

/// The provider states the time, the scheduler's circuit breaker keeps it: a refusal comes in time, and no
/// call is made before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_made_before_retry_after() {
    let busy = || error("429 Too Many Requests", "retry-after: 60\r\n", "slow down");
    let (result, _) = ask([busy()], job("hello", 4)).await;
    let Err(Fault::Unavailable { retry_after, .. }) = result else { panic!("{result:?}") };
    assert_eq!(retry_after, Some(Duration::from_secs(60)));

    let cloud = Cloud::start([busy(), answer(&["x"])]).await;
    let catalog = json!({"pilotlight": {"providers": {"big": entry(&cloud.url)}}});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready().await;
    for n in 0..4 {
        let (status, refusal) = service.cloud_in_time(&format!("request {n}"), 800).await;
        assert_ne!(status, 200, "{refusal}");
    }
    assert_eq!(cloud.opened(), 1);
}

/// A refused key is a fault of the configuration, not a lack of a capability.
#[tokio::test]
async fn a_refused_key_is_stated() {
    let refused = error("401 Unauthorized", "", "Incorrect API key");
    let (result, _) = ask([refused], job("hello", 4)).await;
    let Err(Fault::Unavailable { reason, retry_after: None }) = result else {
        panic!("{result:?}")
    };
    assert!(reason.contains("refused the key") && reason.contains("Incorrect API key"), "{reason}");
}

#[tokio::test]
async fn a_client_that_stops_reading_cancels_the_request() {
    let cloud = Cloud::start([Act::Flood(
        head("200 OK", "text/event-stream", "").into(),
        piece("word ").into(),
    )])
    .await;
    let model = open(&cloud.url);
    let (out, mut chunks) = channel();
    let job = job("hello", 400);
    let answer = tokio::spawn(async move { model.generate(&job, out).await });
    assert_eq!(chunks.recv().await.unwrap().text, "word ");
    drop(chunks);
    let ended =
        tokio::time::timeout(stretched(Duration::from_secs(5)), answer).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err(), Fault::Cancelled);
}

/// The request ends at once when the client is gone, also while the provider is silent.
#[tokio::test]
async fn a_client_that_stops_reading_is_noticed_while_the_provider_is_silent() {
    let begun = head("200 OK", "text/event-stream", "") + &piece("word ");
    let cloud = Cloud::start([Act::Hang(begun.into())]).await;
    let mut patient = entry(&cloud.url);
    patient["silence_ms"] = json!(60_000);
    let model = crate::support::cloud::open_as(&patient);
    let (out, mut chunks) = channel();
    let job = job("hello", 400);
    let answer = tokio::spawn(async move { model.generate(&job, out).await });
    assert_eq!(chunks.recv().await.unwrap().text, "word ");
    drop(chunks);
    let ended =
        tokio::time::timeout(stretched(Duration::from_secs(5)), answer).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err(), Fault::Cancelled);
}

/// An event without end is rejected at the bound of one line, far below that of an answer.
#[tokio::test]
async fn an_event_without_end_is_rejected() {
    let line = vec![b'x'; PROVIDER_HELD_BYTES_MAX * 2];
    let mut bytes = (head("200 OK", "text/event-stream", "") + "data: ").into_bytes();
    bytes.extend(line);
    bytes.extend(b"\n\n");
    bytes.extend(ending("stop").bytes());
    let (result, _) = ask([Act::Say(bytes)], job("hello", 400)).await;
    assert!(result.unwrap_err().to_string().contains("exceeds the size limit"));
}

#[test]
fn invalid_provider_entries_are_named() {
    let wrong = |change: Value| {
        let mut entry = entry("https://models.example/v1");
        for (key, value) in change.as_object().unwrap() {
            entry[key] = value.clone();
        }
        let file = json!({"pilotlight": {"providers": {"big": entry}}}).to_string();
        let found = read::read(&file, &Variables::new()).1;
        assert!(!format!("{found:?}").contains(KEY));
        found[0].to_string()
    };
    for (change, part) in [
        (json!({"base_url": "http://models.example/v1"}), "base_url: must begin with https://"),
        (json!({"base_url": "http://127.models.example/v1"}), "must begin with https://"),
        (json!({"base_url": "https://user@models.example/v1"}), "a user name"),
        (json!({"base_url": "models.example"}), "must begin with https://"),
        (json!({"model": ""}), "model: must be the provider's name"),
        (json!({"price": {"input": -1}}), "price: must be US dollars"),
        (json!({"slots": 0}), "slots: must be 1 to 256"),
        (json!({"max_output_tokens": 9000}), "max_output_tokens: must be 1 to context_tokens"),
        (json!({"kind": "telepathy"}), "openai"),
        (
            json!({"kind": "anthropic", "tools": false, "json_schema": true}),
            "json_schema: needs tool calls",
        ),
        (
            json!({"kind": "anthropic", "logprobs": true}),
            "logprobs: is supported for the kind openai only",
        ),
        (json!({"colour": "red"}), "colour"),
    ] {
        let found = wrong(change);
        assert!(found.contains(part), "{found}");
    }
}

/// Through the whole service: what is sent to the cloud, what is not, and the decision record.
#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_goes_to_the_cloud_and_a_private_one_does_not() {
    let cloud = Cloud::start([answer(&["from ", "afar"])]).await;
    let mut catalog = crate::support::service::catalog(&["--scripted", "small"]);
    let mut big = entry(&cloud.url);
    big["key"] = json!("${CLOUD_KEY}");
    catalog["pilotlight"]["providers"] = json!({"big": big});
    let service =
        Service::launch(&catalog, "embedded", &[("CLOUD_KEY", KEY), ("PILOTLIGHT_LOG", "trace")]);
    service.ready_all().await;
    service.ready().await;
    let mut app = App::of(service.mqtt, "app").await;
    let asks = |mode: &str| json!({"prompt": "hello there", "mode": mode}).to_string();

    let private = app.ask("app", asks("local-only")).await;
    assert_eq!(private["source"]["where"], "device", "{private}");
    assert_eq!(cloud.opened(), 0, "a private prompt left");

    let far = app.ask("app", asks("prefer-cloud")).await;
    assert_eq!((&far["status"], &far["text"]), (&json!("ok"), &json!("from afar")), "{far}");
    assert_eq!(
        (&far["source"]["server"], &far["source"]["model"]),
        (&json!("big"), &json!("big-1"))
    );
    assert_eq!(
        (&far["decision"]["route"], &far["decision"]["reason"]),
        (&json!("cloud"), &json!("mode"))
    );
    assert!((far["usage"]["cost_usd"].as_f64().unwrap() - 0.007).abs() < 1e-12, "{far}");
    assert!(!far.to_string().contains(KEY));
    assert!(!service.state().await.unwrap().to_string().contains(KEY));
}

/// On a system without certificate authorities, models and the service itself are reached without encryption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_encryption_no_authorities_are_needed() {
    let cloud = Cloud::start([answer(&["from ", "afar"])]).await;
    let catalog = json!({"pilotlight": {"providers": {"big": entry(&cloud.url)}}});
    let none = [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")];
    let service = Service::launch(&catalog, "off", &none);
    service.ready().await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    let (status, body) = service.chat(json!({"model": "auto", "messages": hello})).await;
    assert_eq!(status, 200, "{body}");
    let http = format!("127.0.0.1:{}", service.http);
    let env = [none[0], none[1], ("PILOTLIGHT_HTTP", &http), ("PILOTLIGHT_MQTT", "off")];
    let (code, out, err) = program(service.folder.path(), &["status"], &env).await;
    assert!(code == 0 && out.contains("big"), "{code} {out} {err}");
}

/// If the cloud fails, the device answers, or a refusal is sent within the deadline.
#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_cloud_leads_to_a_fallback_or_a_refusal_in_time() {
    let cloud = Cloud::start([error("500 Internal Server Error", "", "oh")]).await;
    let mut catalog = crate::support::service::catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let service = Service::launch(&catalog, "embedded", &[]);
    service.ready_all().await;
    service.ready().await;
    let mut app = App::of(service.mqtt, "app").await;
    let asks =
        |mode: &str| json!({"prompt": "hello", "mode": mode, "deadline_ms": 1500}).to_string();

    let near = app.ask("app", asks("prefer-cloud")).await;
    assert_eq!(
        (&near["status"], &near["source"]["server"]),
        (&json!("ok"), &json!("local")),
        "{near}"
    );
    assert_eq!(near["decision"]["attempts"][0]["server"], "big", "{near}");

    let began = std::time::Instant::now();
    let none = app.ask("app", asks("cloud-only")).await;
    let most = Duration::from_millis(1500) + stretched(Duration::from_secs(1));
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
    assert_ne!(none["status"], "ok", "{none}");
}

#[test]
fn the_key_is_in_no_debug_print() {
    let file = json!({"pilotlight": {"providers": {"big": entry("https://models.example/v1")}}});
    let (catalog, mistakes) = read::read(&file.to_string(), &Variables::new());
    assert_eq!(mistakes, []);
    assert!(!format!("{catalog:?}").contains(KEY));
}

/// A complete run at the most verbose log level, with a provider that repeats the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_never_logged_and_a_prompt_only_at_trace() {
    let complaint = format!("Incorrect API key provided: {KEY}");
    let cloud = Cloud::start([error("401 Unauthorized", "", &complaint), answer(&["x"])]).await;
    let folder = tempfile::tempdir().unwrap();
    let mut big = entry(&cloud.url);
    big["key"] = json!("cred:big");
    let file = json!({"pilotlight": {"providers": {"big": big}, "mqtt": {"url": "off"}}});
    std::fs::write(folder.path().join("mcp.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("big"), KEY).unwrap();
    let place = folder.path().display().to_string();
    let args = ["ask", "--local", "the secret of the lighthouse"];
    for level in ["trace", "debug"] {
        let env = [("PILOTLIGHT_LOG", level), ("CREDENTIALS_DIRECTORY", &place)];
        let (_, out, log) = program(folder.path(), &args, &env).await;
        assert!(log.contains("DEBUG"), "nothing was logged: {log}");
        assert!(!out.contains(KEY) && !log.contains(KEY), "{out}\n{log}");
        let told = log.contains("lighthouse") || log.contains("secret");
        assert!(!told || level == "trace", "{log}");
        // only the first run meets the refused key
        let warns = |line: &&str| line.contains("WARN") && line.contains("refused the key");
        assert_eq!(log.lines().filter(warns).count(), usize::from(level == "trace"), "{log}");
    }
    assert!(cloud.asked()[1].head.contains(KEY), "it was not sent at all");
}

/// The faults of many requests, 16 at once, and by how many MiB this process has grown.
async fn repeated(url: &str) -> (Vec<Fault>, f64) {
    let (model, me) = (open(url), std::process::id());
    let one = async |_| run(model.as_ref(), &job("hello", 4)).await.unwrap_err();
    let before = memory(me).resident;
    let faults = futures::stream::iter(0..storm()).map(one).buffer_unordered(16);
    let faults = faults.collect().await;
    (faults, memory(me).resident - before)
}

/// Each failure many times at the provider itself, without the scheduler's circuit breaker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_failures_have_their_fault_and_leak_nothing() {
    for (name, act, expected) in failures() {
        let cloud = Cloud::start([act]).await;
        let (faults, grown) = repeated(&cloud.url).await;
        // with many at once, a connection may also break before the head is read
        let as_told = faults.iter().filter(|fault| fault.name() == expected).count();
        assert!(
            as_told * 10 >= faults.len() * 9,
            "{name}: {as_told} of {}: {faults:?}",
            faults.len()
        );
        println!("{name}: {as_told} of {} {expected}, {grown:.1} MiB more", faults.len());
    }
}

/// The same for a host without a trusted certificate, which is never sent the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_bad_certificates_have_their_fault() {
    let (cloud, _) = Cloud::start_encrypted([answer(&["x"])]).await;
    let (faults, grown) = repeated(&cloud.url).await;
    assert!(faults.iter().all(|fault| fault.name() == "away"), "{faults:?}");
    assert!(cloud.asked().is_empty());
    println!("bad certificate: {} of {} away, {grown:.1} MiB more", faults.len(), storm());
}

/// Requests while each failure occurs in turn: each has one answer in time, no idempotency key is used
/// twice, and memory does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_ends_in_time_under_many_failures() {
    let acts = failures().into_iter().map(|(_, act, _)| act).chain([answer(&["ok"])]);
    let acts: Vec<Act> = acts.collect();
    let count = storm() * acts.len();
    let cloud = Cloud::start_round(acts).await;
    let mut catalog = json!({"pilotlight": {"providers": {"big": entry(&cloud.url)}}});
    catalog["pilotlight"]["device"] = json!({"name": "dev"});
    let service = Service::launch(&catalog, "off", &[("PILOTLIGHT_LOG", "error")]);
    service.ready().await;
    let pid = service.child.id().unwrap();
    let before = memory(pid).resident;
    let one = async |n: usize| service.cloud_in_time(&format!("request {n}"), 800).await.0 == 200;
    let answered = futures::stream::iter(0..count).map(one).buffer_unordered(24);
    let answered = answered.filter(|ok| futures::future::ready(*ok)).count().await;
    let key = |head: &str| {
        head.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap().to_owned()
    };
    let asked = cloud.asked();
    let keys: std::collections::BTreeSet<String> = asked.iter().map(|a| key(&a.head)).collect();
    assert_eq!(keys.len(), asked.len(), "two attempts had one key");
    // the circuit breaker is open most of the time, so few are sent
    assert!(asked.len() > 3, "only {} were sent", asked.len());
    let grown = memory(pid).resident - before;
    println!(
        "{count} requests, {} attempts, {answered} answered, {grown:.1} MiB more",
        asked.len()
    );
    assert!(grown < 40.0, "{grown} MiB more than before");
    assert_eq!(service.state().await.unwrap()["running"], 0);
}
