//! The reader of `mcpServers` and of what `pilotlight.servers` adds to its entries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::addresses::AddressRule;
use super::bounds::TOPIC_PATTERN;
use super::mistake::{Mistakes, Scope};
use super::model::{NAME_PATTERN, is_model_name};
use super::public_key::ServicePublicKey;
use super::read_budget::RawPrice;
use super::read_provider::is_loopback;
use super::secret::{self, Secret};
use super::server::{Endpoint, ServerEntry, is_engine};
use super::shape;
use crate::limits::call::SERVICE_TOPIC_BYTES_MAX;
use crate::limits::engine::ENGINE_MEMORY_MB;
use crate::limits::liveness::{IDLE_PROBE_AFTER, IDLE_PROBE_S};
use crate::model::context::Locality;
use crate::request::name::is_name;

/// The message for a topic prefix of the wrong form.
pub(super) const TOPIC_LEVELS: &str =
    "topic must consist of levels [A-Za-z0-9_-]{1,64}, separated by /";

/// The placeholder for the name of the model in the arguments of a command.
const MODEL: &str = "{model}";
/// Before the hexadecimal digits of a pinned digest.
const DIGEST_PREFIX: &str = "sha256:";
/// The message for a digest of another form.
const DIGEST: &str = "must be \"sha256:\" and 64 digits 0-9a-f";

/// Whether this text can be the topic prefix of a service.
pub(super) fn is_topic(topic: &str) -> bool {
    topic.len() <= SERVICE_TOPIC_BYTES_MAX && topic.split('/').all(is_name)
}

/// An entry of `mcpServers`, in the form that MCP clients share: a command or a URL, or the topic of a
/// service on MQTT.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "McpServer", extend("oneOf" = endpoints()))]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    /// The transport; it follows from `command` or `url`, and is needed for `mqtt`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["stdio", "http", "streamable-http", "mqtt", null]))]
    kind: Option<String>,
    /// The program of a model server that is a child process; `pilotlight` is this program.
    #[schemars(length(min = 1))]
    command: Option<String>,
    /// The arguments of the command.
    #[serde(default)]
    args: Vec<String>,
    /// Variables of the environment of the child process, besides those of this process.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The URL of a model server over streamable HTTP.
    #[schemars(regex(pattern = "^https?://"))]
    url: Option<String>,
    /// With the type `mqtt`, the topic prefix of the service, such as `pilotlight/mcp/big`.
    #[schemars(regex(pattern = TOPIC_PATTERN), length(max = SERVICE_TOPIC_BYTES_MAX))]
    topic: Option<String>,
    /// The headers of each request to the URL.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// The combinations of values that are one endpoint.
fn endpoints() -> Value {
    let only = |key: &str, other: &str, kinds: Value| {
        json!({
            "required": [key],
            "properties": {key: {"type": "string"}, other: {"type": "null"}, "type": {"enum": kinds}},
        })
    };
    let mut mqtt = only("topic", "command", json!(["mqtt"]));
    mqtt["required"] = json!(["type", "topic"]);
    mqtt["properties"]["url"] = json!({"type": "null"});
    json!([
        only("command", "url", json!(["stdio", null])),
        only("url", "command", json!(["http", "streamable-http", null])),
        mqtt,
    ])
}

/// What this program knows of an entry of `mcpServers`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "ServerOptions")]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServerOptions {
    /// Whether it is a model; a `tool` is not asked for answers.
    #[schemars(extend("default" = "model"))]
    role: Option<ServerRole>,
    /// Where the model runs, which bounds how far text may go: `device` for a child process, `cloud` for
    /// others, if not stated.
    #[serde(rename = "reach")]
    locality: Option<Locality>,
    /// The longest pause within an answer, in milliseconds.
    #[schemars(extend("default" = 60_000))]
    silence_ms: Option<u64>,
    /// An engine of this program that has been idle for so many seconds is asked for one token, and
    /// restarted if it does not answer; 0 is never.
    #[schemars(range(max = *IDLE_PROBE_S.end()), extend("default" = IDLE_PROBE_AFTER.as_secs()))]
    idle_probe_s: Option<u64>,
    /// Skills besides those that the server states; a request or task can require one.
    #[serde(rename = "talents")]
    skills: Vec<String>,
    /// Other models that may answer what this one refuses.
    fallbacks: Vec<String>,
    /// The price of its tokens.
    price: RawPrice,
    /// `sha256:` and 64 digits: an engine of this program loads no other model.
    #[schemars(regex(pattern = "^sha256:[0-9a-f]{64}$"))]
    digest: Option<String>,
    /// Digests of the server's tools, `sha256:` and 64 digits: a tool of another form is not called. Without
    /// one, the form at the first use counts.
    #[schemars(extend("propertyNames" = {"enum": TOOLS}, "additionalProperties" = tool_digest()))]
    tools: BTreeMap<String, String>,
    /// The name of an entry of `models`; it takes the place of `{model}` in the arguments of the command.
    #[schemars(regex(pattern = NAME_PATTERN))]
    model: Option<String>,
    /// The memory that an engine of this program may allocate, in MiB.
    #[schemars(range(min = *ENGINE_MEMORY_MB.start(), max = *ENGINE_MEMORY_MB.end()))]
    memory_mb: Option<u64>,
    /// The public key of a service of type `mqtt`, as `pilotlight key` prints it there: calls are encrypted.
    service_key: Option<ServicePublicKey>,
}

/// What a server is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ServerRole {
    /// It answers requests.
    Model,
    /// It is not asked for answers.
    Tool,
}

/// The model servers; an entry with the role `tool` is none.
///
/// Names of entries that can't be read are added to `unread`.
pub(super) fn read(
    servers: Vec<(String, Value)>,
    options: Vec<(String, Value)>,
    unread: &mut BTreeSet<String>,
    mistakes: &mut Mistakes,
) -> Vec<ServerEntry> {
    let mut options: BTreeMap<String, Value> = options.into_iter().collect();
    let mut found = Vec::new();
    for (name, server) in servers {
        let server = shape::read::<RawServer>(server, &mut mistakes.at("mcpServers").at(&name));
        let mut ours = mistakes.at("pilotlight");
        let mut ours = ours.at("servers");
        let mut ours = ours.at(&name);
        let extra: RawServerOptions = shape::read_or_default(options.remove(&name), &mut ours);
        if extra.role == Some(ServerRole::Tool) {
            continue;
        }
        let price = extra.price.check(&mut ours);
        let bounds = extra.engine_options(&mut ours);
        extra.check_tools(&mut ours);
        let endpoint =
            server.and_then(|server| server.endpoint(&mut mistakes.at("mcpServers").at(&name)));
        let Some(mut endpoint) = endpoint else {
            unread.insert(name);
            continue;
        };
        extra.put_model(&mut endpoint, &mut mistakes.at("pilotlight").at("servers").at(&name));
        let mut ours = mistakes.at("pilotlight");
        let mut ours = ours.at("servers");
        let idle_probe = extra.apply_to(&mut endpoint, bounds, &mut ours.at(&name));
        match (&mut endpoint, extra.service_key) {
            (Endpoint::Mqtt { service_key, .. }, key) => *service_key = key,
            (_, Some(_)) => mistakes
                .at("pilotlight")
                .at("servers")
                .at(&name)
                .at("service_key")
                .add("is for servers of type mqtt"),
            (_, None) => {}
        }
        let locality = extra.locality.unwrap_or(match endpoint {
            Endpoint::Child { .. } => Locality::Device,
            Endpoint::Http { .. } | Endpoint::Mqtt { .. } | Endpoint::Provider(_) => {
                Locality::Cloud
            }
        });
        let silence = extra.silence_ms.map(Duration::from_millis);
        let (skills, fallbacks) = (extra.skills, extra.fallbacks);
        let tools = extra.tools;
        let entry = ServerEntry {
            name,
            endpoint,
            locality,
            silence,
            idle_probe,
            skills,
            fallbacks,
            price,
            tools,
        };
        found.push(entry);
    }
    for (name, extra) in options {
        let mut ours = mistakes.at("pilotlight");
        let mut ours = ours.at("servers");
        let mut ours = ours.at(&name);
        ours.add("there is no such entry under mcpServers");
        shape::read::<RawServerOptions>(extra, &mut ours);
    }
    found
}

/// Adds a mistake for servers of one topic with different keys: their messages can't be told apart.
pub(super) fn check_service_keys(servers: &[ServerEntry], scope: &mut Scope<'_>) {
    let mut known: BTreeMap<&str, Option<ServicePublicKey>> = BTreeMap::new();
    for server in servers {
        let Endpoint::Mqtt { topic, service_key } = &server.endpoint else { continue };
        if known.insert(topic, *service_key).is_some_and(|other| other != *service_key) {
            let message = format!("differs from that of another server with the topic {topic}");
            scope.at(&server.name).at("service_key").add(message);
        }
    }
}

/// Adds a mistake for each secret that an entry would send over a network in plain text: a header, or a
/// part of the URL, for plain `http://` to another host. `written` is the part `mcpServers` before its
/// variables were expanded.
pub(super) fn check_plain_text(servers: &[ServerEntry], written: &Value, mistakes: &mut Mistakes) {
    for server in servers {
        let Endpoint::Http { url: Secret(url), .. } = &server.endpoint else { continue };
        let uri: Option<http::Uri> = url.parse().ok();
        if url.starts_with("https://") || uri.as_ref().is_some_and(is_loopback) {
            continue;
        }
        let mut scope = mistakes.at("mcpServers");
        let mut scope = scope.at(&server.name);
        let entry = &written[server.name.as_str()];
        for (name, value) in entry["headers"].as_object().into_iter().flatten() {
            if secret::is_secret_field(name, value.as_str().unwrap_or_default()) {
                scope.at("headers").at(name).add(PLAIN_TEXT);
            }
        }
        let authority = url.split('/').nth(2).unwrap_or_default();
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
        if authority.contains('@')
            || names.into_iter().any(|name| secret::is_secret_field(name, ""))
        {
            scope.at("url").add(PLAIN_TEXT);
        }
    }
}

/// The message of [`check_plain_text`].
const PLAIN_TEXT: &str = "http:// would send a secret in plain text over the network; use https://, or a \
                          loopback address";

/// The tools of a server that are called, and so can be pinned.
const TOOLS: [&str; 1] = ["generate"];

/// The schema of a pinned digest.
fn tool_digest() -> Value {
    json!({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"})
}

impl RawServerOptions {
    fn check_tools(&self, scope: &mut Scope<'_>) {
        let mut scope = scope.at("tools");
        for (tool, digest) in &self.tools {
            if !TOOLS.contains(&tool.as_str()) {
                scope
                    .at(tool)
                    .add(format!("is no tool that is called; there is {}", TOOLS.join(", ")));
            }
            if !digest.strip_prefix(DIGEST_PREFIX).is_some_and(is_sha256) {
                scope.at(tool).add(DIGEST);
            }
        }
    }

    /// Puts the name of the model into the arguments of the command.
    fn put_model(&self, endpoint: &mut Endpoint, scope: &mut Scope<'_>) {
        let mut scope = scope.at("model");
        let none = &mut Vec::new();
        let args = match endpoint {
            // the arguments of a remote configuration are those of the trust policy
            Endpoint::Child { args, .. } if args.is_empty() => return,
            Endpoint::Child { args, .. } => args,
            Endpoint::Http { .. } | Endpoint::Mqtt { .. } | Endpoint::Provider(_) => none,
        };
        let mut places = args.iter_mut().filter(|arg| arg.contains(MODEL)).peekable();
        match (&self.model, places.peek()) {
            (Some(name), Some(_)) if is_model_name(name) => {
                places.for_each(|arg| *arg = arg.replace(MODEL, name));
            }
            (Some(_), Some(_)) => scope.add("must be the name of an entry of pilotlight.models"),
            (Some(_), None) => {
                scope.add("takes the place of {model} in the arguments, which is not there");
            }
            (None, Some(_)) => {
                scope.add("must name the entry of pilotlight.models for {model} in the arguments");
            }
            (None, None) => {}
        }
    }

    /// Gives an engine its options, and returns after what idle time it is probed: none for never, and for
    /// other servers.
    fn apply_to(
        &self,
        endpoint: &mut Endpoint,
        bounds: Vec<String>,
        scope: &mut Scope<'_>,
    ) -> Option<Duration> {
        if let Endpoint::Child { command, args, .. } = endpoint
            && is_engine(command, args)
        {
            args.extend(bounds);
            let after = self.idle_probe_s.unwrap_or(IDLE_PROBE_AFTER.as_secs());
            return (after > 0).then(|| Duration::from_secs(after));
        }
        if !bounds.is_empty() || self.idle_probe_s.is_some() {
            scope.add(
                "digest, memory_mb and idle_probe_s are for engines of this program: command \
                 \"pilotlight\", args [\"engine\", ...]",
            );
        }
        None
    }

    /// The arguments of an engine that carry its options.
    fn engine_options(&self, scope: &mut Scope<'_>) -> Vec<String> {
        let mut args = Vec::new();
        if let Some(digest) = &self.digest {
            match digest.strip_prefix(DIGEST_PREFIX) {
                Some(hex) if is_sha256(hex) => args.extend(["--digest".to_owned(), digest.clone()]),
                Some(_) | None => {
                    scope.at("digest").add(DIGEST);
                }
            }
        }
        if let Some(mb) = self.memory_mb {
            if ENGINE_MEMORY_MB.contains(&mb) {
                args.extend(["--memory-mb".to_owned(), mb.to_string()]);
            } else {
                let (least, most) = ENGINE_MEMORY_MB.into_inner();
                scope.at("memory_mb").add(format!("{mb} must be {least} to {most}"));
            }
        }
        if let Some(after) = self.idle_probe_s.filter(|after| !IDLE_PROBE_S.contains(after)) {
            let (least, most) = IDLE_PROBE_S.into_inner();
            scope.at("idle_probe_s").add(format!("{after} must be {least} to {most}"));
        }
        args
    }
}

fn is_sha256(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl RawServer {
    /// The endpoint, if the entry names exactly one.
    fn endpoint(self, scope: &mut Scope<'_>) -> Option<Endpoint> {
        let raw = self;
        let mut mistake = |message: &str| {
            scope.add(message);
            None
        };
        match (raw.kind.as_deref(), raw.command, raw.url) {
            (Some("mqtt"), None, None) => match raw.topic {
                Some(topic) if is_topic(&topic) => {
                    Some(Endpoint::Mqtt { topic, service_key: None })
                }
                Some(_) => mistake(TOPIC_LEVELS),
                None => mistake("needs the topic of the service, such as pilotlight/mcp/big"),
            },
            (Some("mqtt"), _, _) => mistake("type mqtt takes a topic, not a command or url"),
            (Some("sse"), _, _) => {
                mistake("the sse transport has been replaced; use type \"http\" (streamable HTTP)")
            }
            (None | Some("stdio"), Some(command), None) if !command.is_empty() => {
                Some(Endpoint::Child {
                    command,
                    args: raw.args,
                    env: raw.env,
                    hidden: BTreeSet::new(),
                })
            }
            (None | Some("http" | "streamable-http"), None, Some(url))
                if url.starts_with("http://") || url.starts_with("https://") =>
            {
                let (url, headers) = (Secret(url), Secret(raw.headers));
                Some(Endpoint::Http { url, headers, addresses: AddressRule::Any })
            }
            (None | Some("http" | "streamable-http"), None, Some(_)) => {
                mistake("url must start with http:// or https://")
            }
            (None | Some("stdio" | "http" | "streamable-http"), _, _) => {
                mistake("needs either command (a child process) or url (streamable HTTP), not both")
            }
            (Some(_), _, _) => mistake("type must be stdio, http, streamable-http or mqtt"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The arguments of the engine `a` with these options, or the mistakes.
    fn read_with(server: Value, ours: Value) -> Result<Vec<String>, Vec<String>> {
        let mut mistakes = Mistakes::default();
        let servers = vec![("a".to_owned(), server)];
        let ours = vec![("a".to_owned(), ours)];
        let found = read(servers, ours, &mut BTreeSet::new(), &mut mistakes);
        let mistakes: Vec<String> = mistakes.into_vec().iter().map(ToString::to_string).collect();
        match found.into_iter().next().map(|server| server.endpoint) {
            Some(Endpoint::Child { args, .. }) if mistakes.is_empty() => Ok(args),
            _ => Err(mistakes),
        }
    }

    #[test]
    fn the_bounds_of_an_engine_become_its_arguments() {
        let engine = || json!({"command": "pilotlight", "args": ["engine", "--gguf", "m"]});
        let digest = format!("sha256:{}", "0a".repeat(32));
        let args = read_with(engine(), json!({"digest": digest, "memory_mb": 512})).unwrap();
        assert_eq!(args[3..], ["--digest", &digest, "--memory-mb", "512"]);
        let path = json!({"command": "/usr/bin/pilotlight", "args": ["engine"]});
        assert_eq!(read_with(path, json!({"memory_mb": 64})).unwrap()[1..], ["--memory-mb", "64"]);
        for (ours, expected) in [
            (json!({"digest": "0a".repeat(32)}), "pilotlight.servers.a.digest: must be"),
            (json!({"digest": "sha256:0a"}), "pilotlight.servers.a.digest: must be"),
            (
                json!({"digest": format!("sha256:{}", "0A".repeat(32))}),
                "pilotlight.servers.a.digest: must be",
            ),
            (json!({"digest": 5}), "pilotlight.servers.a.digest: invalid type"),
            (json!({"memory_mb": 63}), "pilotlight.servers.a.memory_mb: 63 must be 64 to"),
            (json!({"memory_mb": 1 << 30}), "pilotlight.servers.a.memory_mb: 1073741824 must be"),
            (json!({"idle_probe_s": 86_401}), "pilotlight.servers.a.idle_probe_s: 86401 must be 0"),
        ] {
            let mistakes = read_with(engine(), ours).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{mistakes:?}");
        }
        let with = |args: Value| json!({"command": "pilotlight", "args": args});
        let placed = with(json!(["engine", "--gguf={model}", "--slots", "2"]));
        let args = read_with(placed.clone(), json!({"model": "m.gguf"})).unwrap();
        assert_eq!(args, ["engine", "--gguf=m.gguf", "--slots", "2"]);
        for (server, ours, expected) in [
            (placed.clone(), json!({}), "model: must name the entry"),
            (placed, json!({"model": "../m"}), "model: must be the name of an entry"),
            (engine(), json!({"model": "m.gguf"}), "model: takes the place of {model}"),
            (
                json!({"url": "https://far.example"}),
                json!({"model": "m.gguf"}),
                "model: takes the place",
            ),
        ] {
            let mistakes = read_with(server, ours).unwrap_err();
            let expected = format!("pilotlight.servers.a.{expected}");
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(&expected), "{mistakes:?}");
        }
        let tools = |tools: Value| read_with(engine(), json!({"tools": tools}));
        tools(json!({"generate": digest})).unwrap();
        for (wrong, expected) in [
            (json!({"generate": "0a"}), "pilotlight.servers.a.tools.generate: must be \"sha256:\""),
            (
                json!({"embed": digest}),
                "pilotlight.servers.a.tools.embed: is no tool that is called",
            ),
            (json!([digest]), "pilotlight.servers.a.tools: "),
            (json!({"generate": 1}), "pilotlight.servers.a.tools.generate: invalid type"),
        ] {
            let mistakes = tools(wrong).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].starts_with(expected), "{mistakes:?}");
        }
        // silently ignored, they would be taken for protection
        for other in [json!({"command": "tool"}), json!({"url": "https://far.example"})] {
            let mistakes = read_with(other, json!({"memory_mb": 512})).unwrap_err();
            assert!(mistakes[0].contains("are for engines of this program"), "{mistakes:?}");
        }
    }
}
