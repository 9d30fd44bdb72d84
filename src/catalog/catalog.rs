//! The catalog: every model server, task and policy of one `mcp.json`, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::bounds::{TOPIC_PATTERN, temperatures};
use super::golden::GoldenSet;
use super::model::{ModelEntry, matches};
use super::public_key::{
    CALLER_SECRET_PATTERN, CallerPublicKey, SERVICE_SECRET_PATTERN, ServicePublicKey,
};
use super::secret::Secret;
use super::server::{Endpoint, ServerEntry};
use super::task::Task;
use crate::limits::ZONES_MAX;
use crate::limits::call::{CALLERS_MAX, SERVICE_TOPIC_BYTES_MAX};
use crate::limits::models::{INTERFACE_BYTES_MAX, METERED_MAX};
use crate::model::context::Locality;
use crate::money::Caps;
use crate::pressure::limit::ZoneLimits;
use crate::redact::Redactor;
use crate::request::client::{Client, UNLISTED};
use crate::request::job::{Mode, Priority};
use crate::request::name::NAME_PATTERN;

/// Most memory or disk space that can be reserved, in MiB.
pub(super) const RESERVE_MB_MAX: u64 = 1 << 20;

/// The content of one `mcp.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Catalog {
    /// The version that the author of the file states; 0 if none is stated.
    pub version: u64,
    /// The model servers: those of `mcpServers` in the order of the file, then the providers by
    /// name. An earlier server is preferred.
    pub servers: Vec<ServerEntry>,
    /// The models as artefacts, by name.
    pub models: Vec<ModelEntry>,
    /// The tasks by name.
    pub tasks: BTreeMap<String, Task>,
    /// The privacy mode of a request that states none.
    pub default_mode: Mode,
    /// The furthest locality that may read a request, whatever the request states.
    pub furthest: Locality,
    /// When models may be downloaded.
    pub models_download: ModelsDownload,
    /// What the policy states for single applications, and for all others together as [`UNLISTED`].
    pub apps: BTreeMap<String, AppPolicy>,
    /// The spending caps.
    pub caps: Caps,
    /// The redaction rules for prompts that leave the device.
    pub redactor: Redactor,
    /// The deadlines by priority for requests that state none.
    pub deadlines: BTreeMap<Priority, Duration>,
    /// The part `device`.
    pub device: Device,
    /// The part `device_limits`.
    pub device_limits: DeviceLimits,
    /// The part `mqtt`.
    pub mqtt: MqttPart,
    /// The part `http`.
    pub http: HttpPart,
}

impl Catalog {
    /// The topic prefixes of the servers that are called over MQTT, with their keys.
    pub fn services(&self) -> impl Iterator<Item = (&str, Option<ServicePublicKey>)> {
        self.servers.iter().filter_map(|server| match &server.endpoint {
            Endpoint::Mqtt { topic, service_key } => Some((topic.as_str(), *service_key)),
            Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Provider(_) => None,
        })
    }

    /// The client of a request, if only itself states its application's name: that name counts if
    /// `policy.apps` or `policy.budget.apps` list it.
    pub fn client_named(&self, app: &str) -> Client {
        let is_listed = self.apps.contains_key(app) || self.caps.apps.contains_key(app);
        if is_listed { Client::vouched(app, app) } else { Client::unlisted(app) }
    }

    /// What `policy.apps` states for the client's principal.
    pub fn app_policy(&self, client: &Client) -> &AppPolicy {
        self.apps.get(&client.principal).unwrap_or(&AppPolicy::DEFAULT)
    }

    /// The furthest locality that may read a request under this application's policy and of this task: the
    /// nearest of what the policy, the application's policy and the task state.
    pub fn furthest(&self, of_app: &AppPolicy, task: Option<&Task>) -> Locality {
        let stated = of_app.furthest.into_iter().chain(task.and_then(|task| task.furthest));
        stated.fold(self.furthest, Locality::min)
    }

    /// The golden sets of the tasks.
    pub fn golden_sets(&self) -> impl Iterator<Item = (String, GoldenSet)> {
        self.tasks.iter().filter_map(|(name, task)| Some((name.clone(), task.golden.clone()?)))
    }

    /// The deadline of a request of this priority that states none: the configured one, or 30 s,
    /// 120 s and 900 s for `interactive`, `normal` and `batch`.
    pub fn deadline(&self, priority: Priority) -> Duration {
        let built_in = match priority {
            Priority::Interactive => Duration::from_secs(30),
            Priority::Normal => Duration::from_secs(120),
            Priority::Batch => Duration::from_secs(900),
        };
        self.deadlines.get(&priority).copied().unwrap_or(built_in)
    }
}

/// When models may be downloaded: `policy.models_download`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelsDownload {
    /// Only while the heat of the board does not slow down its engines.
    pub only_cool: bool,
    /// Only while no default route uses one of `device_limits.metered_interfaces`. A copy on this device
    /// is not a download.
    pub only_unmetered: bool,
}

/// The policy for one application, or for all that are not listed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AppPolicy {
    /// Its requests are refused.
    pub refuse: bool,
    /// The most urgent priority that its requests may have.
    #[serde(rename = "class")]
    pub most_urgent: Priority,
    /// The bearer token by which the HTTP interface knows its requests.
    pub http_token: Option<Secret<String>>,
    /// The furthest locality that may read its requests, if that is nearer than the policy's.
    #[serde(rename = "reach")]
    pub furthest: Option<Locality>,
    /// Applications of one group share an engine's prefix cache, and so can tell from the speed of an
    /// answer how another application's prompt begins.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub trust_group: Option<String>,
}

impl AppPolicy {
    /// The policy of an application for which nothing is stated.
    pub const DEFAULT: AppPolicy = AppPolicy {
        refuse: false,
        most_urgent: Priority::Interactive,
        http_token: None,
        furthest: None,
        trust_group: None,
    };

    /// Whose prompts may share an engine's prefix cache with those of this client: the group that it
    /// trusts, else the application alone. An application that is not listed can share with one of the
    /// same name that is not listed either.
    pub fn cache_group(&self, client: &Client) -> String {
        match &self.trust_group {
            Some(group) => group.clone(),
            None if client.principal == UNLISTED => format!("{UNLISTED}/{}", client.app),
            None => client.principal.clone(),
        }
    }
}

impl Default for AppPolicy {
    fn default() -> AppPolicy {
        AppPolicy::DEFAULT
    }
}

/// The names of the device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// The device's own name.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub name: Option<String>,
    /// The name of a group; requests to a group are shared by its devices.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub group: Option<String>,
}

/// The thresholds of device pressure; an absent one is derived from the board.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceLimits {
    /// The temperatures, in degrees Celsius, between which the duty cycle of the engines falls from
    /// its maximum to its minimum.
    #[schemars(extend("prefixItems" = temperatures()))]
    pub heat_c: Option<(f64, f64)>,
    /// Which thermal zones count, and with which bounds, by their types or names.
    #[schemars(extend("maxProperties" = ZONES_MAX))]
    pub zones: ZoneLimits,
    /// The memory that is kept free, in MiB.
    #[serde(rename = "memory_floor_mb")]
    #[schemars(range(max = RESERVE_MB_MAX), extend("default" = 128))]
    pub memory_reserve_mb: Option<u64>,
    /// The disk space that is kept free, in MiB.
    #[serde(rename = "disk_floor_mb")]
    #[schemars(range(max = RESERVE_MB_MAX), extend("default" = 64))]
    pub disk_reserve_mb: Option<u64>,
    /// Names of network interfaces whose traffic costs money; `*` stands for any characters.
    #[schemars(
        length(max = METERED_MAX),
        inner(length(min = 1, max = INTERFACE_BYTES_MAX), regex(pattern = INTERFACE_PATTERN)),
        extend("default" = METERED_INTERFACES)
    )]
    pub metered_interfaces: Option<Vec<String>>,
}

/// Printable ASCII without `/` and `:`, as `dev_valid_name` of Linux demands.
const INTERFACE_PATTERN: &str = "^[!-.0-9;-~]+$";

/// Interfaces of modems: `ww*` are the names of systemd and the kernel, `ppp*` those of pppd, `rmnet*`
/// those of Qualcomm's driver.
const METERED_INTERFACES: [&str; 3] = ["ww*", "ppp*", "rmnet*"];

impl DeviceLimits {
    /// Whether the traffic of this network interface costs money.
    pub fn is_metered(&self, interface: &str) -> bool {
        let fits = |pattern: &str| matches(pattern, interface);
        match &self.metered_interfaces {
            Some(own) => own.iter().any(|pattern| fits(pattern)),
            None => METERED_INTERFACES.into_iter().any(fits),
        }
    }
}

/// The connection to the MQTT broker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MqttPart {
    /// `mqtt://host:port`, `mqtts://host:port`, `embedded` for the built-in broker, or `off`.
    #[schemars(regex(pattern = r"^(mqtts?://[^/@]+/*|embedded|off)$"))]
    pub url: Option<String>,
    /// The first level of every topic.
    #[schemars(regex(pattern = r"^[^+#$/\x00]([^+#\x00]*[^+#/\x00])?$"), extend("default" = "pilotlight"))]
    pub prefix: Option<String>,
    /// A PEM file with the certificate authorities that the broker is verified by.
    pub ca: Option<String>,
    /// A PEM file with the client certificate chain.
    pub cert: Option<String>,
    /// A PEM file with the client's private key.
    pub key: Option<String>,
    /// The user name.
    pub username: Option<String>,
    /// The password, written as `${VAR}` or `cred:NAME`.
    pub password: Option<Secret<String>>,
    /// Topic prefixes, besides the service's own, that a response topic may begin with.
    pub response_prefixes: Vec<String>,
    /// The topic prefix of a service that this process serves as a worker.
    #[schemars(regex(pattern = TOPIC_PATTERN), length(max = SERVICE_TOPIC_BYTES_MAX))]
    pub serve: Option<String>,
    /// How the broker tells who sent a request; `listed` if not stated.
    #[schemars(extend("default" = "listed"))]
    pub identity: Option<MqttIdentity>,
    /// The callers that this worker serves, by name, with their public keys. With this, also if it is
    /// empty, calls must be encrypted.
    #[schemars(extend("maxProperties" = CALLERS_MAX, "propertyNames" = {"pattern": NAME_PATTERN}))]
    pub callers: Option<BTreeMap<String, CallerPublicKey>>,
    /// The private key of the service, written as `${VAR}` or `cred:NAME`; else that of the state folder.
    #[schemars(regex(pattern = SERVICE_SECRET_PATTERN))]
    pub service_secret: Option<Secret<String>>,
    /// The private key of this device as a caller, written in the same ways.
    #[schemars(regex(pattern = CALLER_SECRET_PATTERN))]
    pub caller_secret: Option<Secret<String>>,
}

/// How the broker tells which application sent a request. MQTT itself does not name the sender.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MqttIdentity {
    /// It does not: a name in a topic counts if the policy or the budget lists it.
    Listed,
    /// The broker's access rules let each user publish under its own name only.
    Topic,
    /// The broker puts the user's name into this user property of each message.
    UserProperty(
        /// The name of the user property.
        String,
    ),
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpPart {
    /// The address and port to listen at, or `off`.
    #[schemars(regex(pattern = r"^(off|.+:[0-9]{1,5})$"))]
    pub listen: Option<String>,
    /// The bearer token that clients must present, written as `${VAR}` or `cred:NAME`.
    pub token: Option<Secret<String>>,
    /// Host names, besides loopback, that a request's `Host` header may have.
    pub allowed_hosts: Vec<String>,
    /// Web origins, besides loopback, that a request's `Origin` header may have.
    pub allowed_origins: Vec<String>,
}
