//! `mcp.json` as the service understands it: every server and task, checked, or every mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::budget::{RawBudget, RawPrice};
use super::expand::{Variables, expand};
use super::provider;
use super::provider::{Provider, RawProvider};
use super::redact;
use super::redact::RawRule;
use super::secrets;
use super::server::{RawServer, TOPIC_LEVELS, is_topic};
use super::task;
use super::task::Task;
use crate::limits::{DEADLINE_MAX, SERVERS_MAX};
use crate::model::context::Locality;
use crate::money::{Caps, Price};
use crate::redact::Redactor;
use crate::request::job::{Mode, Priority};
use crate::request::name::is_name;

/// All models and tasks of one `mcp.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Catalog {
    /// Counted up by whoever writes the file.
    pub version: u64,
    /// The models, in the order of the file: the earlier is preferred.
    pub servers: Vec<ServerEntry>,
    /// The tasks by name.
    pub tasks: BTreeMap<String, Task>,
    /// Where a prompt may be answered if it does not say.
    pub default_mode: Mode,
    /// The most that may be spent.
    pub caps: Caps,
    /// What is hidden from models in a cloud.
    pub redactor: Redactor,
    /// Time for an answer by class if a request does not say.
    pub deadlines: BTreeMap<Priority, Duration>,
    /// What the file says of the device.
    pub device: Device,
    /// Where pressure on the device begins.
    pub device_limits: DeviceLimits,
    /// What the file says of the broker.
    pub mqtt: MqttPart,
    /// What the file says of the HTTP door.
    pub http: HttpPart,
}

/// One model server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEntry {
    /// Its key under `mcpServers`.
    pub name: String,
    /// How it is reached.
    pub link: Endpoint,
    /// How far from here it is.
    pub locality: Locality,
    /// How long it may be silent in the middle of an answer.
    pub silence: Option<Duration>,
    /// Talents that it has besides those that it states.
    pub skills: Vec<String>,
    /// Servers that may answer what this one refuses, because its rules forbid it or it is too long.
    pub fallbacks: Vec<String>,
    /// What its tokens cost.
    pub price: Price,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A child process that speaks MCP on its standard input and output.
    Child {
        /// The program; `pilotlight` is this very binary.
        command: String,
        /// Its arguments.
        args: Vec<String>,
        /// Its environment besides ours.
        env: BTreeMap<String, String>,
        /// Variables of ours that it does not get, because they hold secrets.
        hidden: BTreeSet<String>,
    },
    /// Streamable HTTP.
    Http {
        /// Where.
        url: String,
        /// Headers of every request. Secret: never printed.
        headers: Secret<BTreeMap<String, String>>,
    },
    /// MCP over MQTT, on the line to the broker.
    Mqtt {
        /// The first part of the service's topics.
        topic: String,
    },
    /// A cloud in its own protocol.
    Provider(Box<Provider>),
}

/// Something that never shows in logs, errors or debug prints.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(pub T);

impl<T> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// The device's names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// Its own.
    pub name: Option<String>,
    /// Devices of the same group share the requests to it.
    pub group: Option<String>,
}

/// Where pressure on the device begins; what is absent is taken from the board.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceLimits {
    /// Engines slow down from the first on and hardly compute at the second, in degrees Celsius.
    pub heat_c: Option<(f64, f64)>,
    /// Memory that is kept free, in MiB.
    pub memory_floor_mb: Option<u64>,
    /// Disk that is kept free, in MiB.
    pub disk_floor_mb: Option<u64>,
}

/// The broker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttPart {
    /// `mqtt://host:port` or `mqtts://host:port`; `embedded` for the broker that is built in.
    pub url: Option<String>,
    /// First level of every topic.
    pub prefix: Option<String>,
    /// File with the certificates that the broker's may be signed by.
    pub ca: Option<String>,
    /// File with our certificate chain.
    pub cert: Option<String>,
    /// File with our private key.
    pub key: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password: `${VAR}`.
    pub password: Option<Secret<String>>,
    /// Further topics, by prefix, that a response may be sent to.
    pub response_prefixes: Vec<String>,
    /// The first part of the topics of a service that this one is a worker of.
    pub serve: Option<String>,
}

/// The HTTP door.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpPart {
    /// Address and port to listen at; `off` for no door.
    pub listen: Option<String>,
    /// Token that clients must show: `${VAR}`.
    pub token: Option<Secret<String>>,
    /// Names besides loopback under which it is asked for.
    pub allowed_hosts: Vec<String>,
    /// Web origins that may ask.
    pub allowed_origins: Vec<String>,
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where: `pilotlight.tasks.classify.max_tokens`.
    pub path: String,
    /// What, and what to do.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawOurs {
    version: u64,
    device: Device,
    device_limits: DeviceLimits,
    mqtt: MqttPart,
    http: HttpPart,
    servers: BTreeMap<String, RawOurServer>,
    providers: BTreeMap<String, RawProvider>,
    tasks: BTreeMap<String, Task>,
    policy: RawPolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawOurServer {
    role: Option<ServerRole>,
    #[serde(rename = "reach")]
    locality: Option<Locality>,
    silence_ms: Option<u64>,
    #[serde(rename = "talents", default)]
    skills: Vec<String>,
    #[serde(default)]
    fallbacks: Vec<String>,
    #[serde(default)]
    price: RawPrice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ServerRole {
    Model,
    Tool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPolicy {
    default_mode: Mode,
    budget: RawBudget,
    redact: Vec<RawRule>,
    classes: BTreeMap<String, RawClass>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawClass {
    deadline_ms: Option<u64>,
}

/// Most memory or disk that may be kept free, in MiB.
const FLOOR_MB_MAX: u64 = 1 << 20;
/// Keys that the format knows and this version does not carry out: said, never passed over.
const NOT_YET: [&str; 2] = ["models", "fleet"];

/// Reads a whole `mcp.json`.
///
/// # Errors
/// Every mistake that could be found, each with its path.
pub fn read(text: &str, variables: &Variables) -> Result<Catalog, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mistake = |path: &str, message: String| Mistake { path: path.to_owned(), message };
    let value: Value = serde_json::from_str(text)
        .map_err(|e| vec![mistake("mcp.json", format!("not valid JSON: {e}"))])?;
    let secrets = secrets::variables(&value);
    let Value::Object(mut top) = expand_all(value, "", variables, &mut mistakes) else {
        return Err(vec![mistake("mcp.json", "must be a JSON object".to_owned())]);
    };
    let servers = top.remove("mcpServers").or_else(|| top.remove("servers"));
    let ours = top.remove("pilotlight").unwrap_or(Value::Object(Map::new()));
    for key in top.keys() {
        let message =
            "unknown key; model servers belong under mcpServers, all else under pilotlight";
        mistakes.push(mistake(key, message.to_owned()));
    }
    refuse_not_yet(&ours, &mut mistakes);
    let has_providers = ours["providers"].as_object().is_some_and(|all| !all.is_empty());
    let raw_servers = read_servers(servers, has_providers, &mut mistakes);
    let ours: RawOurs = match serde_path_to_error::deserialize(ours) {
        Ok(ours) => ours,
        Err(e) => {
            let path = match e.path().to_string().as_str() {
                "." => "pilotlight".to_owned(),
                path => format!("pilotlight.{path}"),
            };
            mistakes.push(Mistake { path, message: e.into_inner().to_string() });
            return Err(mistakes);
        }
    };
    let mut catalog = check(raw_servers, ours, &mut mistakes);
    for server in &mut catalog.servers {
        if let Endpoint::Child { hidden, .. } = &mut server.link {
            hidden.clone_from(&secrets);
        }
    }
    if mistakes.is_empty() { Ok(catalog) } else { Err(mistakes) }
}

/// Expands every string; a mistake leaves the string as it is.
fn expand_all(value: Value, path: &str, vars: &Variables, mistakes: &mut Vec<Mistake>) -> Value {
    let below = |key: &str| {
        if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
    };
    match value {
        Value::String(text) => match expand(&text, vars) {
            Ok(text) => Value::String(text),
            Err(message) => {
                mistakes.push(Mistake { path: path.to_owned(), message });
                Value::String(text)
            }
        },
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            items.map(|(i, v)| expand_all(v, &format!("{path}[{i}]"), vars, mistakes)).collect()
        }
        Value::Object(map) => map
            .into_iter()
            .map(|(key, v)| {
                let v = expand_all(v, &below(&key), vars, mistakes);
                (key, v)
            })
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

fn refuse_not_yet(ours: &Value, mistakes: &mut Vec<Mistake>) {
    for key in NOT_YET {
        for place in ["", ".policy", ".device"] {
            let part = place.strip_prefix('.').map_or(Some(ours), |part| ours.get(part));
            if part.is_some_and(|part| part.get(key).is_some()) {
                let message = "is not supported by this version; remove it".to_owned();
                mistakes.push(Mistake { path: format!("pilotlight{place}.{key}"), message });
            }
        }
    }
}

fn read_servers(
    servers: Option<Value>,
    has_providers: bool,
    mistakes: &mut Vec<Mistake>,
) -> Vec<(String, RawServer)> {
    let servers = servers.or_else(|| has_providers.then(|| Value::Object(Map::new())));
    let Some(Value::Object(map)) = servers else {
        let message = "is required: an object with one entry per model server".to_owned();
        mistakes.push(Mistake { path: "mcpServers".to_owned(), message });
        return Vec::new();
    };
    if (map.is_empty() && !has_providers) || map.len() > SERVERS_MAX {
        let message = format!("has {} entries, must have 1 to {SERVERS_MAX}", map.len());
        mistakes.push(Mistake { path: "mcpServers".to_owned(), message });
    }
    let mut servers = Vec::new();
    for (name, value) in map {
        match serde_path_to_error::deserialize::<_, RawServer>(value) {
            Ok(server) => servers.push((name, server)),
            Err(e) => mistakes
                .push(Mistake { path: format!("mcpServers.{name}"), message: e.to_string() }),
        }
    }
    servers
}

fn check(raw: Vec<(String, RawServer)>, mut ours: RawOurs, mistakes: &mut Vec<Mistake>) -> Catalog {
    let mut servers = Vec::new();
    for (name, server) in raw {
        let extra = ours.servers.remove(&name).unwrap_or_default();
        if extra.role == Some(ServerRole::Tool) {
            continue;
        }
        let path = format!("mcpServers.{name}");
        let Some(link) = server.link(&path, mistakes) else {
            continue;
        };
        let locality = extra.locality.unwrap_or(match link {
            Endpoint::Child { .. } => Locality::Device,
            Endpoint::Http { .. } | Endpoint::Mqtt { .. } | Endpoint::Provider(_) => {
                Locality::Cloud
            }
        });
        let silence = extra.silence_ms.map(Duration::from_millis);
        let price = extra.price.check(&format!("pilotlight.servers.{name}"), mistakes);
        let (skills, fallbacks) = (extra.skills, extra.fallbacks);
        servers.push(ServerEntry { name, link, locality, silence, skills, fallbacks, price });
    }
    for name in ours.servers.keys() {
        let message = "there is no such entry under mcpServers".to_owned();
        mistakes.push(Mistake { path: format!("pilotlight.servers.{name}"), message });
    }
    provider::check(ours.providers, &mut servers, mistakes);
    if servers.len() > SERVERS_MAX {
        let message = format!("there are {} models, at most {SERVERS_MAX}", servers.len());
        mistakes.push(Mistake { path: "pilotlight.providers".to_owned(), message });
    }
    check_fallbacks(&servers, mistakes);
    task::check(&ours.tasks, mistakes);
    check_limits(&ours.device_limits, mistakes);
    if ours.mqtt.serve.as_ref().is_some_and(|topic| !is_topic(topic)) {
        let path = "pilotlight.mqtt.serve".to_owned();
        mistakes.push(Mistake { path, message: TOPIC_LEVELS.to_owned() });
    }
    if ours.device.group.as_ref().is_some_and(|group| !is_name(group)) {
        let path = "pilotlight.device.group".to_owned();
        let message = "must be [A-Za-z0-9_-]{1,64}".to_owned();
        mistakes.push(Mistake { path, message });
    }
    let deadlines = deadlines_of(&ours.policy, mistakes);
    let caps = ours.policy.budget.check(mistakes);
    Catalog {
        version: ours.version,
        servers,
        tasks: ours.tasks,
        default_mode: ours.policy.default_mode,
        caps,
        redactor: redact::check(&ours.policy.redact, mistakes),
        deadlines,
        device: ours.device,
        device_limits: ours.device_limits,
        mqtt: ours.mqtt,
        http: ours.http,
    }
}

/// Who may stand in must be somebody, and somebody else.
fn check_fallbacks(servers: &[ServerEntry], mistakes: &mut Vec<Mistake>) {
    for server in servers {
        let others = || servers.iter().filter(|other| other.name != server.name);
        for (at, name) in server.fallbacks.iter().enumerate() {
            if others().any(|other| other.name == *name) {
                continue;
            }
            let part =
                if matches!(server.link, Endpoint::Provider(_)) { "providers" } else { "servers" };
            let known: Vec<&str> = others().map(|other| other.name.as_str()).collect();
            let message = format!(
                "fallbacks must name another existing model; {name:?} is unknown; there are: {}",
                known.join(", ")
            );
            let path = format!("pilotlight.{part}.{}.fallbacks[{at}]", server.name);
            mistakes.push(Mistake { path, message });
        }
    }
}

fn check_limits(limits: &DeviceLimits, mistakes: &mut Vec<Mistake>) {
    if let Some((low, high)) = limits.heat_c
        && !(20.0 <= low && low < high && high <= 120.0)
    {
        let message = format!(
            "[{low}, {high}] must be two temperatures from 20 to 120 °C in ascending order"
        );
        mistakes.push(Mistake { path: "pilotlight.device_limits.heat_c".to_owned(), message });
    }
    for (name, value) in
        [("memory_floor_mb", limits.memory_floor_mb), ("disk_floor_mb", limits.disk_floor_mb)]
    {
        if value.is_some_and(|mb| mb > FLOOR_MB_MAX) {
            let path = format!("pilotlight.device_limits.{name}");
            let message = format!("must be at most {FLOOR_MB_MAX}");
            mistakes.push(Mistake { path, message });
        }
    }
}

pub(super) fn is_deadline(ms: u64) -> bool {
    ms >= 1 && Duration::from_millis(ms) <= DEADLINE_MAX
}

pub(super) fn deadline_range() -> String {
    format!("must be 1 to {} ms", DEADLINE_MAX.as_millis())
}

fn deadlines_of(policy: &RawPolicy, mistakes: &mut Vec<Mistake>) -> BTreeMap<Priority, Duration> {
    let mut deadlines = BTreeMap::new();
    for (name, priority) in &policy.classes {
        let path = format!("pilotlight.policy.classes.{name}");
        let known = match name.as_str() {
            "interactive" => Priority::Interactive,
            "normal" => Priority::Normal,
            "batch" => Priority::Batch,
            _ => {
                let message = "must be interactive, normal or batch".to_owned();
                mistakes.push(Mistake { path, message });
                continue;
            }
        };
        match priority.deadline_ms {
            Some(ms) if is_deadline(ms) => {
                deadlines.insert(known, Duration::from_millis(ms));
            }
            Some(_) => mistakes
                .push(Mistake { path: format!("{path}.deadline_ms"), message: deadline_range() }),
            None => {}
        }
    }
    deadlines
}

impl Catalog {
    /// The first parts of the topics of the services that are asked over MQTT.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().filter_map(|server| match &server.link {
            Endpoint::Mqtt { topic } => Some(topic.as_str()),
            Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Provider(_) => None,
        })
    }

    /// Time for an answer of this class if the request does not say.
    pub fn deadline(&self, priority: Priority) -> Duration {
        let built_in = match priority {
            Priority::Interactive => Duration::from_secs(30),
            Priority::Normal => Duration::from_secs(120),
            Priority::Batch => Duration::from_secs(900),
        };
        self.deadlines.get(&priority).copied().unwrap_or(built_in)
    }
}
