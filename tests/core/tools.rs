//! Tools: each provider is asked for calls in its own words, what it calls comes back in ours, and an
//! asker that offers tools is sent to who can call them.

use crate::support::cloud::{Act, Cloud, answer, ending, entry, event, head, open_as};
use crate::support::contract::run;
#[cfg(feature = "embedded-broker")]
use crate::support::mqtt::App;
use crate::support::over_channels;
#[cfg(feature = "embedded-broker")]
use crate::support::service::{Service, catalog, client};
use pilotlight::catalog::catalog::Catalog;
use pilotlight::model::generate::{Fault, Finish, Generate, Usage};
use pilotlight::request::client::Client;
use pilotlight::request::format::Format;
use pilotlight::request::job::Job;
use pilotlight::wire::{Ask, read_value};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    OpenAi,
    Anthropic,
    #[cfg(feature = "bedrock")]
    Bedrock,
}

const KINDS: &[Kind] = &[
    Kind::OpenAi,
    Kind::Anthropic,
    #[cfg(feature = "bedrock")]
    Kind::Bedrock,
];

fn whole(body: &Value) -> Act {
    Act::Say(format!("{}{body}", head("200 OK", "application/json", "")).into())
}

async fn ask(kind: Kind, act: Act, job: &Job) -> (Result<(String, Usage), Fault>, Cloud) {
    let cloud = Cloud::start([act]).await;
    let result = run(open_as(&entry_of(kind, &cloud)).as_ref(), job).await;
    (result, cloud)
}

fn entry_of(kind: Kind, cloud: &Cloud) -> Value {
    let mut entry = entry(&cloud.url);
    match kind {
        Kind::OpenAi => {}
        Kind::Anthropic => entry["kind"] = json!("anthropic"),
        #[cfg(feature = "bedrock")]
        Kind::Bedrock => {
            (entry["kind"], entry["region"]) = (json!("bedrock"), json!("eu-central-1"));
        }
    }
    entry
}

fn valve() -> Value {
    json!({"type": "object", "properties": {"open": {"type": "boolean"}, "room": {"type": "string"}},
           "required": ["open"]})
}

fn tools() -> Value {
    json!([{"name": "valve", "description": "Opens or shuts it.", "input_schema": valve()},
           {"name": "siren"}])
}

fn job(request: Value) -> Job {
    read_value::<Ask>(request).unwrap().check(&Client::known("app"), &Catalog::default()).unwrap()
}

/// A conversation in which two tools were called.
fn talk(more: &Value) -> Job {
    let mut request = json!({
        "messages": [
            {"role": "system", "content": "Be careful."},
            {"role": "user", "content": "It smells of gas."},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "a", "name": "valve", "arguments": {"open": false}},
                {"id": "b", "name": "siren", "arguments": {}}]},
            {"role": "tool", "tool_call_id": "a", "content": "shut"},
            {"role": "tool", "tool_call_id": "b", "content": "on"},
            {"role": "user", "content": "And now?"},
        ],
        "tools": tools(), "max_tokens": 60,
    });
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    job(request)
}

fn once() -> Job {
    job(json!({"prompt": "It smells of gas.", "tools": tools()}))
}

/// A whole answer with this text and these calls.
fn calls(kind: Kind, text: &str, calls: &[(&str, &str, Value)]) -> Act {
    whole(&match kind {
        Kind::OpenAi => {
            let call = |(id, name, arguments): &(&str, &str, Value)| {
                let function = json!({"name": name, "arguments": arguments.to_string()});
                json!({"id": id, "type": "function", "function": function})
            };
            let calls: Vec<Value> = calls.iter().map(call).collect();
            let message = json!({"role": "assistant", "content": text, "tool_calls": calls});
            json!({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
        }
        Kind::Anthropic => {
            let call = |(id, name, input): &(&str, &str, Value)| json!({"type": "tool_use", "id": id, "name": name, "input": input});
            let text = std::iter::once(json!({"type": "text", "text": text}));
            let content: Vec<Value> = text.chain(calls.iter().map(call)).collect();
            json!({"type": "message", "content": content, "stop_reason": "tool_use"})
        }
        #[cfg(feature = "bedrock")]
        Kind::Bedrock => {
            let call = |(id, name, input): &(&str, &str, Value)| json!({"toolUse": {"toolUseId": id, "name": name, "input": input}});
            let text = std::iter::once(json!({"text": text}));
            let content: Vec<Value> = text.chain(calls.iter().map(call)).collect();
            json!({"output": {"message": {"content": content}}, "stopReason": "tool_use"})
        }
    })
}

#[cfg(feature = "bedrock")]
fn frames(events: &[(&str, Value)]) -> Act {
    use crate::support::cloud::{frame, framed};
    framed(&events.iter().map(|(name, payload)| frame("event", name, payload)).collect::<Vec<_>>())
}

fn sse(events: &[Value], end: &str) -> Act {
    let events: String = events.iter().map(event).collect();
    Act::Say(format!("{}{events}{end}", head("200 OK", "text/event-stream", "")).into())
}

/// The calls `valve` and `siren` as each streams them.
fn streamed(kind: Kind) -> Act {
    match kind {
        Kind::OpenAi => {
            let piece =
                |call: Value| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]});
            let head = |index, id, name| {
                piece(json!({"index": index, "id": id, "type": "function",
                             "function": {"name": name, "arguments": ""}}))
            };
            let more = |text| piece(json!({"index": 0, "function": {"arguments": text}}));
            let text = json!({"choices": [{"index": 0, "delta": {"content": "I act."}}]});
            let events = [
                text,
                head(0, "c", "valve"),
                more("{\"op"),
                more("en\": false}"),
                head(1, "d", "siren"),
            ];
            sse(&events, &ending("tool_calls"))
        }
        Kind::Anthropic => {
            let begin = |index, block: Value| json!({"type": "content_block_start", "index": index, "content_block": block});
            let call = |id, name| json!({"type": "tool_use", "id": id, "name": name, "input": {}});
            let more = |text| {
                let delta = json!({"type": "input_json_delta", "partial_json": text});
                json!({"type": "content_block_delta", "index": 1, "delta": delta})
            };
            let delta = json!({"type": "text_delta", "text": "I act."});
            let usage = json!({"input_tokens": 993, "cache_read_input_tokens": 7});
            let events = [
                json!({"type": "message_start", "message": {"content": [], "usage": usage}}),
                begin(0, json!({"type": "text", "text": ""})),
                json!({"type": "content_block_delta", "index": 0, "delta": delta}),
                begin(1, call("c", "valve")),
                more(""),
                more("{\"op"),
                more("en\": false}"),
                json!({"type": "content_block_stop", "index": 1}),
                begin(2, call("d", "siren")),
                json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"},
                       "usage": {"output_tokens": 500}}),
                json!({"type": "message_stop"}),
            ];
            sse(&events, "")
        }
        #[cfg(feature = "bedrock")]
        Kind::Bedrock => {
            let begin = |n: u32, id: &str, name: &str| {
                let call = json!({"toolUse": {"toolUseId": id, "name": name}});
                ("contentBlockStart", json!({"contentBlockIndex": n, "start": call}))
            };
            let more = |text: &str| {
                let delta = json!({"toolUse": {"input": text}});
                ("contentBlockDelta", json!({"contentBlockIndex": 1, "delta": delta}))
            };
            let usage = json!({"inputTokens": 993, "cacheReadInputTokens": 7, "outputTokens": 500});
            frames(&[
                ("contentBlockDelta", json!({"contentBlockIndex": 0, "delta": {"text": "I act."}})),
                begin(1, "c", "valve"),
                more("{\"op"),
                more("en\": false}"),
                begin(2, "d", "siren"),
                ("messageStop", json!({"stopReason": "tool_use"})),
                ("metadata", json!({"usage": usage})),
            ])
        }
    }
}

#[tokio::test]
async fn calls_come_back_from_each_in_the_same_words() {
    let expected = json!([{"id": "c", "name": "valve", "arguments": {"open": false}},
                          {"id": "d", "name": "siren", "arguments": {}}]);
    for kind in KINDS {
        let (said, _) = ask(*kind, streamed(*kind), &talk(&json!({}))).await;
        let (text, usage) = said.unwrap_or_else(|fault| panic!("{kind:?}: {fault}"));
        assert_eq!(text, "I act.", "{kind:?}");
        assert_eq!(usage.finish, Finish::ToolCalls, "{kind:?}");
        assert_eq!(serde_json::to_value(&usage.tool_calls).unwrap(), expected, "{kind:?}");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (1000, 500), "{kind:?}");
        assert!((usage.cost_usd - 0.007).abs() < 1e-12, "{kind:?}: {}", usage.cost_usd);
        // through its MCP interface as well
        let cloud = Cloud::start([streamed(*kind)]).await;
        let model = open_as(&entry_of(*kind, &cloud));
        let (remote, _line) = over_channels(model).await;
        let (text, there) = run(&remote, &talk(&json!({}))).await.unwrap();
        assert_eq!((text.as_str(), there.tool_calls), ("I act.", usage.tool_calls), "{kind:?}");
        assert_eq!(remote.context().runtime.location, "cloud");
        // one that answers whole
        let made = [("c", "valve", json!({"open": false})), ("d", "siren", json!({}))];
        let (said, _) = ask(*kind, calls(*kind, "I act.", &made), &once()).await;
        let (text, usage) = said.unwrap_or_else(|fault| panic!("{kind:?}: {fault}"));
        assert_eq!((text.as_str(), usage.finish), ("I act.", Finish::ToolCalls), "{kind:?}");
        assert_eq!(serde_json::to_value(&usage.tool_calls).unwrap(), expected, "{kind:?}");
    }
}

#[tokio::test]
async fn each_is_asked_in_its_own_words() {
    let named = json!({"tool_choice": {"name": "valve"}, "parallel_tool_calls": false});
    for kind in KINDS {
        let act = calls(*kind, "", &[("c", "valve", json!({"open": true}))]);
        let (said, cloud) = ask(*kind, act, &talk(&named)).await;
        said.unwrap_or_else(|fault| panic!("{kind:?}: {fault}"));
        let body = cloud.asked()[0].body.clone();
        let (want, of_tools) = match kind {
            Kind::OpenAi => {
                let call = |id, name, text| json!({"id": id, "type": "function", "function": {"name": name, "arguments": text}});
                let turns = json!([
                    {"role": "system", "content": "Be careful."},
                    {"role": "user", "content": "It smells of gas."},
                    {"role": "assistant", "content": "I look.",
                     "tool_calls": [call("a", "valve", "{\"open\":false}"), call("b", "siren", "{}")]},
                    {"role": "tool", "tool_call_id": "a", "content": "shut"},
                    {"role": "tool", "tool_call_id": "b", "content": "on"},
                    {"role": "user", "content": "And now?"},
                ]);
                let valve = json!({"name": "valve", "description": "Opens or shuts it.", "parameters": valve()});
                let siren = json!({"name": "siren", "parameters": {"type": "object"}});
                let tool = |function| json!({"type": "function", "function": function});
                (turns, json!([[tool(valve), tool(siren)], tool(json!({"name": "valve"})), false]))
            }
            Kind::Anthropic => {
                let call = |id, name, input: Value| json!({"type": "tool_use", "id": id, "name": name, "input": input});
                let result =
                    |id, text| json!({"type": "tool_result", "tool_use_id": id, "content": text});
                let turns = json!([
                    {"role": "user", "content": "It smells of gas."},
                    {"role": "assistant", "content": [{"type": "text", "text": "I look."},
                        call("a", "valve", json!({"open": false})), call("b", "siren", json!({}))]},
                    {"role": "user", "content": [result("a", "shut"), result("b", "on")]},
                    {"role": "user", "content": "And now?"},
                ]);
                let siren = json!({"name": "siren", "input_schema": {"type": "object"}});
                let choice =
                    json!({"type": "tool", "name": "valve", "disable_parallel_tool_use": true});
                (turns, json!([[tools()[0], siren], choice, null]))
            }
            #[cfg(feature = "bedrock")]
            Kind::Bedrock => {
                let call = |id, name, input: Value| json!({"toolUse": {"toolUseId": id, "name": name, "input": input}});
                let result = |id, text| json!({"toolResult": {"toolUseId": id, "content": [{"text": text}]}});
                let turns = json!([
                    {"role": "user", "content": [{"text": "It smells of gas."}]},
                    {"role": "assistant", "content": [{"text": "I look."},
                        call("a", "valve", json!({"open": false})), call("b", "siren", json!({}))]},
                    {"role": "user", "content": [result("a", "shut"), result("b", "on")]},
                    {"role": "user", "content": [{"text": "And now?"}]},
                ]);
                let told = json!([
                    {"toolSpec": {"name": "valve", "description": "Opens or shuts it.", "inputSchema": {"json": valve()}}},
                    {"toolSpec": {"name": "siren", "inputSchema": {"json": {"type": "object"}}}},
                ]);
                assert_eq!(
                    body["toolConfig"],
                    json!({"tools": told, "toolChoice": {"tool": {"name": "valve"}}})
                );
                (turns, json!([null, null, null]))
            }
        };
        assert_eq!(body["messages"], want, "{kind:?}");
        let got = json!([body["tools"], body["tool_choice"], body["parallel_tool_calls"]]);
        assert_eq!(got, of_tools, "{kind:?}");
    }
}

#[tokio::test]
async fn what_was_not_offered_is_not_taken() {
    let open = |value: Value| vec![("c", "valve", json!({"open": value}))];
    let quiet = json!({"tool_choice": "none"});
    let one = json!({"parallel_tool_calls": false});
    for kind in KINDS {
        let both = vec![("c", "siren", json!({})), ("d", "siren", json!({}))];
        for (job, made, part) in [
            (once(), vec![("c", "door", json!({}))], "unknown tool"),
            (once(), open(json!("secret")), "valve do not fit"),
            (once(), open(Value::Null), "valve do not fit"),
            (talk(&quiet), open(json!(true)), "tool_choice is none"),
            (talk(&one), both, "parallel calls"),
            (job(json!({"prompt": "hi"})), open(json!(true)), "no tools were offered"),
            (talk(&json!({"tool_choice": "required"})), vec![], "without a call"),
        ] {
            let (said, _) = ask(*kind, calls(*kind, "", &made), &job).await;
            let fault = said.map(|(text, usage)| (text, usage.tool_calls)).unwrap_err();
            assert_eq!(fault.name(), "broken", "{kind:?} {part}: {fault}");
            assert!(
                fault.to_string().contains(part) && !fault.to_string().contains("secret"),
                "{fault}"
            );
        }
    }
    let required = talk(&json!({"tool_choice": "required"}));
    let (said, _) = ask(Kind::OpenAi, answer(&["No."]), &required).await;
    assert!(said.unwrap_err().to_string().contains("did not call"));
    // arguments that are no JSON, and what has no end
    let piece = |text: &str| {
        let call = json!({"index": 0, "id": "c", "function": {"name": "siren", "arguments": text}});
        json!({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    };
    let (said, _) = ask(Kind::OpenAi, sse(&[piece("{")], &ending("tool_calls")), &once()).await;
    assert!(said.unwrap_err().to_string().contains("not valid JSON"));
    let flood = vec![piece(&"x".repeat(100_000)); 12];
    let (said, _) = ask(Kind::OpenAi, sse(&flood, &ending("tool_calls")), &once()).await;
    assert!(said.unwrap_err().to_string().contains("too many tool calls"));
    // an answer that was cut off calls nothing
    let (said, _) = ask(Kind::OpenAi, sse(&[piece("{}")], &ending("length")), &once()).await;
    let usage = said.unwrap().1;
    assert_eq!((usage.finish, usage.tool_calls.len()), (Finish::Length, 0));
    // some give every call the same place, or none
    let call = |id: &str| json!({"id": id, "function": {"name": "siren", "arguments": "{}"}});
    let delta = |id| json!({"choices": [{"index": 0, "delta": {"tool_calls": [call(id)]}}]});
    let (said, _) =
        ask(Kind::OpenAi, sse(&[delta("c"), delta("d")], &ending("stop")), &once()).await;
    let usage = said.unwrap().1;
    let ids: Vec<&str> = usage.tool_calls.iter().map(|call| call.id.as_str()).collect();
    assert_eq!((usage.finish, ids), (Finish::ToolCalls, vec!["c", "d"]));
}

#[tokio::test]
async fn who_has_no_words_for_json_calls_a_tool_for_it() {
    let schema = json!({"type": "object", "properties": {"state": {"enum": ["ok", "hot"]}},
                        "required": ["state"]});
    let wanted = job(json!({"prompt": "81 degrees", "schema": schema}));
    let state = |state: &str| [("c", "answer", json!({"state": state}))];
    for kind in KINDS.iter().filter(|kind| **kind != Kind::OpenAi) {
        let (said, cloud) = ask(*kind, calls(*kind, "I think", &state("hot")), &wanted).await;
        let (text, usage) = said.unwrap_or_else(|fault| panic!("{kind:?}: {fault}"));
        assert_eq!((text.as_str(), usage.finish), (r#"{"state":"hot"}"#, Finish::Stop), "{kind:?}");
        assert_eq!(usage.tool_calls, []);
        let body = cloud.asked()[0].body.to_string();
        assert!(body.contains(&schema.to_string()) && body.contains("answer"), "{body}");
        // any object
        let any = Job { format: Format::Json, ..wanted.clone() };
        let (said, _) = ask(*kind, calls(*kind, "", &state("cold")), &any).await;
        assert_eq!(said.unwrap().0, r#"{"state":"cold"}"#);
        for act in [calls(*kind, "", &state("cold")), calls(*kind, r#"{"state":"hot"}"#, &[])] {
            assert_eq!(ask(*kind, act, &wanted).await.0.unwrap_err().name(), "broken", "{kind:?}");
        }
        // not all can be asked in this way, which is said before anything is sent
        let list = Format::Schema(json!({"type": "array"}).into());
        let both = Job { tools: once().tools, ..wanted.clone() };
        for job in [Job { format: list, ..wanted.clone() }, both] {
            let (said, cloud) = ask(*kind, calls(*kind, "", &[]), &job).await;
            assert_eq!((said.unwrap_err().name(), cloud.opened()), ("unfit", 0), "{kind:?}");
        }
    }
    // piece by piece
    let more = |text: &str| {
        let delta = json!({"type": "input_json_delta", "partial_json": text});
        json!({"type": "content_block_delta", "index": 0, "delta": delta})
    };
    let events = [
        json!({"type": "content_block_start", "index": 0, "content_block":
               {"type": "tool_use", "id": "c", "name": "answer", "input": {}}}),
        more("{\"state\":"),
        more(" \"hot\"}"),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
        json!({"type": "message_stop"}),
    ];
    let (said, _) = ask(Kind::Anthropic, sse(&events, ""), &wanted).await;
    let (text, usage) = said.unwrap();
    assert_eq!((text.as_str(), usage.chunks), ("{\"state\": \"hot\"}", 2));
}

/// A service with a scripted model and this cloud, from which addresses are hidden.
#[cfg(feature = "embedded-broker")]
async fn service(cloud: &Cloud) -> Service {
    let mut catalog = catalog(&["--scripted", "small"]);
    catalog["pilotlight"]["providers"] = json!({"big": entry(&cloud.url)});
    catalog["pilotlight"]["policy"] = json!({"redact": ["email"]});
    let service = Service::start(&catalog).await;
    service.ready_all().await;
    service
}

#[cfg(feature = "embedded-broker")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_offers_tools_is_sent_to_who_calls_them() {
    let write =
        json!({"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]});
    let call = json!({"to": "[EMAIL_1]"});
    let cloud = Cloud::start([calls(Kind::OpenAi, "", &[("c", "write", call)])]).await;
    let service = service(&cloud).await;
    let function = json!({"name": "write", "parameters": write, "strict": true});
    let mut body = json!({
        "model": "auto", "messages": [{"role": "user", "content": "tell ann@mail.example"}],
        "tools": [{"type": "function", "function": function}], "tool_choice": "auto",
    });
    let (code, reply) = service.chat(body.clone()).await;
    let choice = &reply["choices"][0];
    assert_eq!((code, &choice["finish_reason"]), (200, &json!("tool_calls")), "{reply}");
    let arguments = r#"{"to":"ann@mail.example"}"#;
    let made = json!([{"id": "c", "type": "function", "function": {"name": "write", "arguments": arguments}}]);
    assert_eq!(
        (&choice["message"]["tool_calls"], &choice["message"]["content"]),
        (&made, &Value::Null)
    );
    assert_eq!(reply["pilotlight"]["decision"]["reason"], "capability:tools", "{reply}");

    // the next turn, with what the tool has returned; streamed
    let turn = choice["message"].clone();
    body["messages"].as_array_mut().unwrap().extend([
        turn,
        json!({"role": "tool", "tool_call_id": "c", "content": "sent to ann@mail.example"}),
    ]);
    body["stream"] = json!(true);
    let url = service.url("/v1/chat/completions");
    let stream = client().post(url).json(&body).send().await.unwrap().text().await.unwrap();
    let sent = cloud.asked()[1].body.to_string();
    assert!(sent.contains("[EMAIL_1]") && !sent.contains("ann@"), "{sent}");
    let mut with_place = made[0].clone();
    with_place["index"] = json!(0);
    let events: Vec<Value> = stream
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
    assert_eq!(deltas[1]["delta"]["tool_calls"], json!([with_place]), "{stream}");
    assert_eq!(deltas[2]["finish_reason"], "tool_calls", "{stream}");

    // nobody here calls tools
    body["metadata"] = json!({"mode": "local-only"});
    body["stream"] = json!(false);
    let (code, refusal) = service.chat(body.clone()).await;
    assert_eq!((code, &refusal["error"]["param"]), (400, &json!("tools")), "{refusal}");
    // mistakes are named in the words of the door
    body["tools"][0]["function"]["parameters"] = json!({"type": "array"});
    let (code, refusal) = service.chat(body).await;
    let place = json!("tools[0].function.parameters");
    assert_eq!((code, &refusal["error"]["param"]), (400, &place), "{refusal}");

    // the same over MQTT
    let mut app = App::of(service.mqtt, "valves").await;
    let offered = json!([{"name": "write", "input_schema": write}]);
    let ask = json!({"id": "m", "prompt": "tell ann@mail.example", "tools": offered});
    let reply = app.ask("valves", ask.to_string()).await;
    let want = json!([{"id": "c", "name": "write", "arguments": {"to": "ann@mail.example"}}]);
    assert_eq!((&reply["tool_calls"], &reply["finish"]), (&want, &json!("tool_calls")), "{reply}");
}
