//! The HTTP door: the chat API plain and streamed, models, health, metrics, and who is let in.

use crate::support::service::{Service, catalog, client, program};
use serde_json::{Value, json};

pub const DRY: [&str; 4] = ["--scripted", "dry", "--slots", "4"];

pub fn ask(prompt: &str) -> Value {
    json!({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
}

pub fn and(mut base: Value, more: Value) -> Value {
    let more: serde_json::Map<String, Value> = serde_json::from_value(more).unwrap();
    base.as_object_mut().unwrap().extend(more);
    base
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_plain_and_streamed() {
    let service = Service::start(&catalog(&DRY)).await;
    let (status, body) = service.chat(ask("one two three")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "one two three");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("dry")));
    assert_eq!(body["usage"]["total_tokens"], 6);
    assert_eq!(body["pilotlight"]["decision"]["route"], "local");

    let request =
        and(ask("a b c d"), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let url = service.url("/v1/chat/completions");
    let answer = client().post(url).json(&request).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(*data.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> =
        data[..data.len() - 1].iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), "a b c d");
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[chunks.len() - 2]["pilotlight"]["decision"]["reason"], "feasible");
    assert_eq!(chunks[chunks.len() - 1]["usage"]["completion_tokens"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_and_the_next_is_unharmed() {
    let service = Service::start(&catalog(&DRY)).await;
    let cases = [
        ("unknown field", and(ask("x"), json!({"tool": 1})), 400, "tool"),
        ("wrong type", and(ask("x"), json!({"temperature": "hot"})), 400, "temperature"),
        ("no model", json!({"messages": []}), 400, ""),
        ("no messages", json!({"model": "auto", "messages": []}), 400, "prompt"),
        (
            "image",
            json!({"model": "auto", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "messages[0].content[0]",
        ),
        ("unknown model", and(ask("x"), json!({"model": "gpt-9"})), 404, "model"),
        ("two choices", and(ask("x"), json!({"n": 2})), 400, "n"),
        ("absurd", and(ask("x"), json!({"max_tokens": 1_000_000})), 400, "max_tokens"),
        (
            "bad deadline",
            and(ask("x"), json!({"metadata": {"deadline_ms": "soon"}})),
            400,
            "metadata.deadline_ms",
        ),
        ("bad class", and(ask("x"), json!({"metadata": {"class": "vip"}})), 400, "metadata.class"),
        (
            "late",
            and(ask("/delay-us=400000 x y"), json!({"metadata": {"deadline_ms": "50"}})),
            504,
            "",
        ),
        ("broken", ask("/fail=broken@1 x y"), 502, ""),
    ];
    for (name, body, status, param) in cases {
        let (got, answer) = service.chat(body).await;
        assert_eq!(got, status, "{name}: {answer}");
        assert_eq!(answer["error"]["param"].as_str().unwrap_or(""), param, "{name}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty(), "{name}");
    }
    let post = |body: Vec<u8>| {
        let request = client().post(service.url("/v1/chat/completions"));
        request.header("content-type", "application/json").body(body).send()
    };
    assert_eq!(post(b"{".to_vec()).await.unwrap().status(), 400);
    assert_eq!(post(vec![0xFF]).await.unwrap().status(), 400);
    assert_eq!(post(vec![b' '; 10 * 1024 * 1024]).await.unwrap().status(), 413);
    assert_eq!(service.chat(ask("fine")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_health_and_metrics() {
    let service = Service::start(&catalog(&DRY)).await;
    let get = async |path: &str| client().get(service.url(path)).send().await.unwrap();
    assert_eq!(get("/healthz").await.text().await.unwrap(), "ok\n");
    assert_eq!(get("/readyz").await.status(), 200);
    let models: Value = get("/v1/models").await.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "dry");
    let context = &models["data"][0]["pilotlight"]["context"];
    for part in ["identification", "capabilities", "inference_settings", "tokenizer", "runtime"] {
        assert!(context[part].is_object(), "{part}");
    }
    service.chat(ask("a b")).await;
    service.chat(and(ask("a"), json!({"n": 2}))).await;
    let metrics = get("/metrics").await.text().await.unwrap();
    for line in [
        r#"pilotlight_replies_total{door="http",status="ok",route="local"} 1"#,
        r#"pilotlight_replies_total{door="http",status="refused",route="none"} 1"#,
        r#"pilotlight_tokens_total{kind="completion"} 2"#,
        r#"pilotlight_server_up{server="local"} 1"#,
        "pilotlight_mqtt_up 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert_eq!(get("/nothing").await.status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_let_in() {
    let mut catalog = catalog(&DRY);
    catalog["pilotlight"]["http"] =
        json!({"allowed_hosts": ["pi.lan"], "allowed_origins": ["https://app.example"]});
    let service = Service::launch(&catalog, "off", &[("PILOTLIGHT_HTTP_TOKEN", "s3cret")]);
    service.ready().await;
    let check = async |path: &str, headers: &[(&str, &str)], expected: u16| {
        let mut request = client().get(service.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let status = request.send().await.unwrap().status().as_u16();
        assert_eq!(status, expected, "{path} {headers:?}");
    };
    let token = ("authorization", "Bearer s3cret");
    check("/healthz", &[], 200).await;
    check("/v1/models", &[], 401).await;
    check("/v1/models", &[("authorization", "Bearer s3cre")], 401).await;
    check("/v1/models", &[("authorization", "s3cret")], 401).await;
    check("/v1/models", &[token], 200).await;
    check("/metrics", &[], 401).await;
    check("/metrics", &[token], 200).await;
    check("/mcp", &[], 401).await;
    check("/v1/models", &[token, ("host", "pi.lan:8080")], 200).await;
    check("/v1/models", &[token, ("host", "evil.example")], 403).await;
    check("/healthz", &[("host", "evil.example")], 403).await;
    let app = ("origin", "https://app.example");
    check("/v1/models", &[token, app], 200).await;
    check("/v1/models", &[token, app, ("sec-fetch-site", "cross-site")], 200).await;
    for path in ["/v1/models", "/mcp", "/metrics", "/readyz"] {
        for page in ["https://evil.example", "http://localhost:3000", "http://127.0.0.1", "null"] {
            check(path, &[token, ("origin", page)], 403).await;
        }
        check(path, &[token, ("sec-fetch-site", "cross-site")], 403).await;
        check(path, &[token, ("sec-fetch-site", "same-site")], 403).await;
        check(path, &[token, token], 400).await;
        check(path, &[token, app, app], 400).await;
    }
}

/// A page can send a form or a text anywhere without its browser asking first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_json_is_taken() {
    let service = Service::start(&catalog(&DRY)).await;
    let chat = ask("x").to_string();
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}).to_string();
    for (path, body) in
        [("/v1/chat/completions", &chat), ("/v1/embeddings", &chat), ("/mcp", &list)]
    {
        let post = async |kind: Option<&str>| {
            let mut request = client().post(service.url(path)).body(body.clone());
            request = request.header("accept", "application/json, text/event-stream");
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            request.send().await.unwrap()
        };
        let forms = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];
        for kind in forms.map(Some).into_iter().chain([None, Some("application/jsonp")]) {
            let answer = post(kind).await;
            assert_eq!(answer.status(), 415, "{path} {kind:?}");
            let told = answer.text().await.unwrap();
            assert!(told.contains("application/json"), "{told}");
        }
        for kind in ["application/json", "Application/JSON; charset=utf-8"] {
            assert_ne!(post(Some(kind)).await.status(), 415, "{path} {kind}");
        }
    }
}

/// A browser asks before a page of another origin sends JSON, and lets it read what names its origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_listed_origin_can_ask() {
    let mut catalog = catalog(&DRY);
    catalog["pilotlight"]["http"] = json!({"allowed_origins": ["https://app.example"]});
    let service = Service::launch(&catalog, "off", &[("PILOTLIGHT_HTTP_TOKEN", "s3cret")]);
    service.ready().await;
    let url = service.url("/v1/chat/completions");
    let preflight = async |origin: &str| {
        let request = client().request(reqwest::Method::OPTIONS, &url).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        let names = "authorization,content-type";
        request.header("access-control-request-headers", names).send().await.unwrap()
    };
    let asked = preflight("https://app.example").await;
    assert_eq!(asked.status(), 200);
    assert_eq!(asked.headers()["access-control-allow-origin"], "https://app.example");
    assert_eq!(asked.headers()["access-control-allow-headers"], "authorization,content-type");
    assert_eq!(preflight("https://evil.example").await.status(), 403);
    let request = client().post(&url).header("origin", "https://app.example").json(&ask("x"));
    let answer = request.bearer_auth("s3cret").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_is_for_those_with_the_token() {
    let service = Service::launch(&catalog(&DRY), "off", &[("PILOTLIGHT_HTTP_TOKEN", "s3cret")]);
    service.ready().await;
    let ready = async |token: Option<&str>| -> Value {
        let mut request = client().get(service.url("/readyz"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        request.send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(ready(None).await, json!({"ready": true}));
    assert_eq!(ready(Some("other")).await, json!({"ready": true}));
    assert_eq!(ready(Some("s3cret")).await["servers"][0]["server"], "local");
    let http = format!("127.0.0.1:{}", service.http);
    let status = async |more: &[(&str, &str)]| {
        let mut env = vec![("PILOTLIGHT_HTTP", http.as_str())];
        env.extend(more);
        program(service.folder.path(), &["status"], &env).await
    };
    let (code, out, err) = status(&[]).await;
    assert!(code == 0 && out.is_empty() && err.contains("PILOTLIGHT_HTTP_TOKEN"), "{out}{err}");
    let (code, out, err) = status(&[("PILOTLIGHT_HTTP_TOKEN", "s3cret")]).await;
    assert!(code == 0 && out.contains("local (device): ready"), "{out}{err}");

    // without a token, for the programs of this machine
    let open = Service::start(&catalog(&DRY)).await;
    assert_eq!(open.state().await.unwrap()["servers"][0]["server"], "local");
    for path in ["/readyz", "/metrics"] {
        let request = client().get(open.url(path)).header("x-forwarded-for", "192.0.2.1");
        let told = request.send().await.unwrap().text().await.unwrap();
        assert!(!told.contains("local") && !told.contains("version"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_the_engine() {
    let service = Service::start(&catalog(&["--scripted", "dry", "--slots", "1"])).await;
    let request = and(ask("/tokens=8000 /delay-us=20000 x"), json!({"stream": true}));
    let mut answer =
        client().post(service.url("/v1/chat/completions")).json(&request).send().await.unwrap();
    answer.chunk().await.unwrap().unwrap();
    service.until("running", |state| state["running"] == 1).await;
    drop(answer);
    service.until("free", |state| state["running"] == 0).await;
    assert_eq!(service.chat(ask("next")).await.0, 200);
}
