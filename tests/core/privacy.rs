//! What may not leave the device does not, and what may leaves without what is to be hidden.

use std::sync::{Arc, Mutex};

use crate::support::cloud::{Cloud, answer, entry, error};
use crate::support::service::{Service, catalog, client};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ADDRESS: &str = "ann@mail.example";
const NUMBER: &str = "+49 30 901820";

fn chat(prompt: &str, metadata: &Value) -> Value {
    json!({
        "model": "auto", "messages": [{"role": "user", "content": prompt}], "metadata": metadata,
    })
}

/// A service with a scripted model that hides addresses, numbers and badges from this cloud.
async fn hiding(cloud: &Cloud) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    let badge = json!({"name": "badge", "pattern": "B-[0-9]{5}"});
    catalog["pilotlight"]["policy"] = json!({"redact": ["email", "phone", badge]});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    service
}

fn text(reply: &Value) -> &Value {
    &reply["choices"][0]["message"]["content"]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_reads_placeholders_and_the_asker_does_not() {
    let said = ["I wrote to [EM", "AIL_1] and called [PHONE_1", "], badge [BADGE_1][", "EMAIL_9]"];
    let cloud = Cloud::start([answer(&said)]).await;
    let service = hiding(&cloud).await;
    let prompt = format!("{ADDRESS} {NUMBER} B-12345 {ADDRESS}");
    let want = format!("I wrote to {ADDRESS} and called {NUMBER}, badge B-12345[EMAIL_9]");

    let far = json!({"mode": "cloud-only"});
    let (_, reply) = service.chat(chat(&prompt, &far)).await;
    assert_eq!(text(&reply), want.as_str(), "{reply}");
    assert_eq!(reply["pilotlight"]["decision"]["attempts"][0]["redacted"], 3, "{reply}");
    let sent = cloud.asked()[0].body["messages"].clone();
    assert_eq!(sent[0]["content"], "[EMAIL_1] [PHONE_1] [BADGE_1] [EMAIL_1]");

    // piece by piece
    let mut ask = chat(&prompt, &far);
    ask["stream"] = json!(true);
    let url = service.url("/v1/chat/completions");
    let stream = client().post(url).json(&ask).send().await.unwrap().text().await.unwrap();
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let pieces =
        events.map(|rest| -> Value { serde_json::from_str(&format!("{{{rest}")).unwrap() });
    let told: String = pieces
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(told, want);

    // the device's own model reads what was written
    let (_, reply) = service.chat(chat(&prompt, &json!({}))).await;
    assert_eq!(text(&reply), prompt.as_str(), "{reply}");
    assert_eq!(reply["pilotlight"]["decision"]["attempts"][0]["redacted"], Value::Null, "{reply}");

    // a draft of the device is hidden as well
    let (_, reply) = service.chat(chat(&prompt, &json!({"strategy": "refine"}))).await;
    assert_eq!(text(&reply), want.as_str(), "{reply}");
    let everything = format!("{:?}", cloud.asked());
    for secret in [ADDRESS, NUMBER, "B-12345"] {
        assert!(!everything.contains(secret), "{everything}");
    }
    assert_eq!(cloud.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_json_answer_is_restored_as_json() {
    let cloud = Cloud::start([answer(&[r#"{"to": "[EMAIL_1]"}"#])]).await;
    let service = hiding(&cloud).await;
    let mut ask = chat(ADDRESS, &json!({"mode": "cloud-only"}));
    ask["response_format"] = json!({"type": "json_object"});
    let (_, reply) = service.chat(ask).await;
    let value: Value = serde_json::from_str(text(&reply).as_str().unwrap()).unwrap();
    assert_eq!(value, json!({"to": ADDRESS}), "{reply}");
}

/// A port that leads to the other, and all that was said to it there.
async fn overheard(to: u16) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((line, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let there = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut from, mut back) = line.into_split();
                let (mut answers, mut on) = there.into_split();
                let copied = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut answers, &mut back).await;
                });
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut bytes).await {
                    seen.lock().unwrap().extend_from_slice(&bytes[..n]);
                    on.write_all(&bytes[..n]).await.unwrap();
                }
                copied.abort();
            });
        }
    });
    (port, all)
}

/// A random wish that the prompt may not leave the device.
fn private(random: &mut fastrand::Rng) -> Value {
    let fault = match random.u32(..10_000) {
        0..9500 => "",
        9500..9750 => "/fail=broken",
        9750..9997 => "/fail=broken@2",
        9997 => "/fail=away",
        9998 => "/fail=hang@1",
        _ => "/fail=crash",
    };
    let tokens = random.u32(..8);
    let delay = random.choice([0, 0, 0, 500, 5_000]).unwrap();
    let prompt = format!("{fault} /tokens={tokens} /delay-us={delay} {ADDRESS} {NUMBER}");
    let strategy = random.choice(["single", "cascade", "refine", "compare"]).unwrap();
    let priority = random.choice(["interactive", "normal", "batch"]).unwrap();
    let deadline = random.choice(["30", "100", "400"]).unwrap();
    let metadata = json!({
        "mode": "local-only", "strategy": strategy, "class": priority, "deadline_ms": deadline,
    });
    let mut ask = chat(&prompt, &metadata);
    ask["model"] =
        json!(random.choice(["auto", "auto", "auto", "small", "big", "second"]).unwrap());
    ask["stream"] = json!(strategy == "single" && random.bool());
    if random.u32(..10) == 0 {
        ask["response_format"] = json!({"type": "json_object"});
    }
    if random.u32(..4) == 0 {
        ask["max_tokens"] = json!(random.u32(1..4));
    }
    ask
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_private_prompts_and_no_byte_at_the_cloud() {
    let openai = Cloud::start([answer(&["from ", "afar"])]).await;
    let anthropic = Cloud::start([error("500 Internal Server Error", "", "oh")]).await;
    let far = Service::launch(&catalog(&["--scripted", "far", "--slots", "8"]), "off", &[]);
    far.ready_all().await;
    let mut catalog = catalog(&["--scripted", "small", "--slots", "4"]);
    catalog["mcpServers"]["also"] = json!({"command": "pilotlight", "args": ["engine", "--scripted", "second", "--slots", "4"]});
    let (port, heard) = overheard(far.http).await;
    let url = format!("http://127.0.0.1:{port}/mcp");
    catalog["mcpServers"]["far"] = json!({"type": "http", "url": url});
    let mut other = entry(&anthropic.url);
    (other["kind"], other["model"]) = (json!("anthropic"), json!("big-2"));
    catalog["pilotlight"]["providers"] = json!({"big": entry(&openai.url), "other": other});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;

    let seed: u64 = std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let client = client();
    let url = service.url("/v1/chat/completions");
    let asks: Vec<Value> = (0..10_000).map(|_| private(&mut random)).collect();
    let answered = futures::stream::iter(asks)
        .map(|ask| {
            let asked = client.post(&url).json(&ask).send();
            async move {
                let reply = asked.await.unwrap();
                let is_ok = reply.status().is_success();
                let said = reply.text().await.unwrap();
                assert!(!said.is_empty() && !said.contains("afar"), "{ask} {said}");
                is_ok
            }
        })
        .buffer_unordered(48)
        .filter(|is_ok| std::future::ready(*is_ok))
        .count()
        .await;
    println!(
        "{answered} of 10000 answered, connections {} {}",
        openai.opened(),
        anthropic.opened()
    );
    assert!(answered > 2_000, "{answered}");
    assert_eq!((openai.opened(), anthropic.opened()), (0, 0));
    let has_passed = || String::from_utf8_lossy(&heard.lock().unwrap()).contains(ADDRESS);
    // it was asked what it is, and nothing else
    assert!(!heard.lock().unwrap().is_empty() && !has_passed());

    // the same prompts, free to leave, do
    for _ in 0..300 {
        let mut ask = private(&mut random);
        ask["metadata"]["mode"] = json!("prefer-cloud");
        let _ = client.post(&url).json(&ask).send().await.unwrap().text().await.unwrap();
    }
    assert!(openai.opened() > 0);
    let mut ask = chat(ADDRESS, &json!({"mode": "cloud-only"}));
    ask["model"] = json!("far");
    let (_, reply) = service.chat(ask).await;
    assert_eq!(reply["pilotlight"]["source"]["server"], "far", "{reply}");
    assert!(has_passed());
}
