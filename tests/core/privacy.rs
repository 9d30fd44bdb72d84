//! What may not leave the device does not, and what may leaves without what is to be hidden.

use std::sync::{Arc, Mutex};

use crate::support::cloud::{Act, Cloud, answer, entry, error, stream};
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

/// The answer of a cloud that repeats the text of the last message.
fn echo(body: &Value) -> Vec<u8> {
    let said = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    stream(&[said])
}

/// A device without rules of its own, whose only model for other devices is this cloud.
async fn neighbour(cloud: &Cloud) -> Service {
    let mut catalog = catalog(&["--scripted", "near"]);
    catalog["pilotlight"]["device"]["name"] = json!("near");
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["policy"] = json!({"default_mode": "cloud-only"});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    service
}

/// A device that redacts addresses and has this peer.
async fn beside(peer: &Service) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["mcpServers"]["near"] = json!({"type": "http", "url": peer.url("/mcp")});
    catalog["pilotlight"]["servers"] = json!({"near": {"reach": "peer"}});
    catalog["pilotlight"]["policy"] = json!({"redact": ["email"]});
    let service = Service::launch(&catalog, "off", &[]);
    service.ready_all().await;
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redaction_does_not_end_at_a_neighbour() {
    let cloud = Cloud::start([Act::Make(echo)]).await;
    let near = neighbour(&cloud).await;
    let service = beside(&near).await;
    let prompt = format!("write to {ADDRESS}");
    let mut ask = chat(&prompt, &json!({"mode": "cloud-only"}));
    let (_, reply) = service.chat(ask.clone()).await;
    assert_eq!(text(&reply), prompt.as_str(), "{reply}");
    let record = &reply["pilotlight"];
    assert_eq!(record["source"]["where"], "peer", "{reply}");
    assert_eq!(record["decision"]["attempts"][0]["redacted"], 1, "{reply}");
    ask["stream"] = json!(true);
    assert_eq!(told(&service, &ask).await, prompt);
    let asked = cloud.asked();
    assert!(!format!("{asked:?}").contains(ADDRESS), "{asked:?}");
    assert_eq!(asked[1].body["messages"][0]["content"], "write to [EMAIL_1]");
}

/// What the service answers to a call by the book, from a client that passed no other service.
async fn call(url: &str, reach: &str) -> String {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "generate", "arguments": {"prompt": "hello", "mode": "cloud-only"},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "by-the-book", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.pilotlight/reach": reach,
        },
    }});
    let request = client().post(url).json(&body);
    let request = request.header("accept", "application/json, text/event-stream");
    let request = request.header("mcp-protocol-version", "2026-07-28");
    let request = request.header("mcp-method", "tools/call").header("mcp-name", "generate");
    request.send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_obeys_the_reach_of_a_request() {
    let cloud = Cloud::start([answer(&["from ", "afar"])]).await;
    let near = neighbour(&cloud).await;
    let between = beside(&near).await;
    let too_far = "no model is configured within the reach that the request allows";
    for (url, reach, why) in [
        (near.url("/mcp"), "device", too_far),
        (near.url("/mcp"), "peer", too_far),
        (near.url("/mcp"), "lan", "_meta.io.pilotlight/reach"),
        (between.url("/mcp"), "device", too_far),
        // the neighbour is a peer, and is told that it may not ask a cloud
        (between.url("/mcp"), "peer", too_far),
    ] {
        let said = call(&url, reach).await;
        assert!(said.contains(why), "{url} {reach}: {said}");
        assert_eq!(cloud.opened(), 0, "{url} {reach}: {said}");
    }
    let said = call(&between.url("/mcp"), "cloud").await;
    assert!(said.contains("from afar") && cloud.opened() == 1, "{said}");
}

/// The text of a streamed answer.
async fn told(service: &Service, ask: &Value) -> String {
    let url = service.url("/v1/chat/completions");
    let stream = client().post(url).json(ask).send().await.unwrap().text().await.unwrap();
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let pieces =
        events.map(|rest| -> Value { serde_json::from_str(&format!("{{{rest}")).unwrap() });
    pieces
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect()
}

/// The answer of a cloud that fills in the first values of the schema, in short pieces.
fn obedient(body: &Value) -> Vec<u8> {
    let schema = &body["response_format"]["json_schema"]["schema"]["properties"];
    let first = |of: &Value| of["const"].as_str().map_or(of["enum"][0].clone(), Value::from);
    let members = schema.as_object().unwrap().iter().map(|(name, of)| (name.clone(), first(of)));
    let text = Value::Object(members.collect()).to_string();
    let pieces: Vec<&str> =
        text.as_bytes().chunks(5).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
    stream(&pieces)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_sent_holds_a_value_in_any_spelling() {
    let cloud = Cloud::start([Act::Make(obedient)]).await;
    let service = hiding(&cloud).await;
    let spelled = ["ann\u{ff20}mail.example", "ann%40mail.example", "ann@ma\u{ad}il.example"];
    let schema = json!({
        "type": "object",
        "properties": {"to": {"enum": [ADDRESS, "none"]}, ADDRESS: {"const": spelled[0]}},
        "required": ["to"],
    });
    let mut ask = chat("Who is it?", &json!({"mode": "cloud-only"}));
    ask["messages"] = json!([
        {"role": "system", "content": format!("badge B-\u{661}\u{662}\u{663}\u{664}\u{665}, {}", spelled[1])},
        {"role": "user", "content": [{"type": "text", "text": "I am ann@"}, {"type": "text", "text": "mail.example"}]},
        {"role": "assistant", "tool_calls": [{"id": ADDRESS, "type": "function", "function": {
            "name": "write", "arguments": json!({"to": spelled[2]}).to_string()}}]},
        {"role": "tool", "tool_call_id": ADDRESS, "content": "done for ann@"},
        {"role": "user", "content": "mail.example, as I said"},
    ]);
    ask["tools"] = json!([{"type": "function", "function": {
        "name": "write", "description": format!("Writes to {ADDRESS}."), "parameters": schema,
    }}]);
    ask["stop"] = json!([ADDRESS]);
    ask["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (_, reply) = service.chat(ask.clone()).await;
    let value: Value = serde_json::from_str(text(&reply).as_str().unwrap()).unwrap();
    let sent = cloud.asked()[0].body.clone();
    assert_eq!(value, json!({"to": ADDRESS, ADDRESS: spelled[0]}), "{reply}\n{sent}");
    let all = sent.to_string();
    for secret in [ADDRESS, "mail.example", "ma\u{ad}il.example", "B-\u{661}"] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    ask["stream"] = json!(true);
    assert_eq!(told(&service, &ask).await, text(&reply).as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cannot_be_replaced_stays_here() {
    let cloud = Cloud::start([answer(&["{}"])]).await;
    let service = hiding(&cloud).await;
    let schema =
        json!({"type": "object", "properties": {"to": {"pattern": "^ann@mail\\.example$"}}});
    let mut ask = chat("Who is it?", &json!({"mode": "cloud-only"}));
    ask["response_format"] =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let (code, reply) = service.chat(ask.clone()).await;
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("policy.redact") && message.contains("pattern"), "{code} {reply}");
    assert!(reply["error"]["param"] == "schema", "{reply}");

    // the device's own model supports no schema
    ask["metadata"]["mode"] = json!("prefer-cloud");
    let (_, again) = service.chat(ask).await;
    assert_eq!(again["error"]["message"], message, "{again}");
    assert_eq!(cloud.opened(), 0);
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
