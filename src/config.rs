//! Configuration: environment, `.env` and `mcp.json`, checked together.

pub mod changes;
mod dry;
mod environment;
mod folders;
mod http;
mod proof;
pub mod source;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use self::dry::dry;
pub use self::environment::{VARIABLES, set_named, variables};
use self::environment::{default_folder, env_file_warnings, readable_by_others};
pub use self::proof::CallSecrets;
use crate::catalog::catalog::Catalog;
use crate::catalog::expand::Variables;
use crate::catalog::file_text;
use crate::catalog::mistake::{FILE, Mistake};
use crate::catalog::read;
use crate::catalog::secret;
use crate::catalog::secret::Secret;
use crate::catalog::server::{Endpoint, EngineStart};
use crate::catalog::strict;
use crate::device::identity::machine_suffix;
use crate::ingress::http::AccessGuard;
use crate::limits::{CONFIG_BYTES_MAX, NAME_BYTES_MAX};
use crate::net::tls;
use crate::request::client::UNLISTED;
use crate::request::name::{self, is_name};
use crate::store::{broker_password, files};

/// The checked configuration of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Path of `mcp.json`.
    pub path: PathBuf,
    /// The digest of its bytes, see [`source::digest`].
    pub digest: String,
    /// The signed update that this is the configuration of, on top of the file.
    pub update: Option<ActiveUpdate>,
    /// Models and tasks.
    pub catalog: Catalog,
    /// Name of this device.
    pub device: String,
    /// Connection to a broker, unless it is off.
    pub mqtt: Option<Mqtt>,
    /// The embedded broker, if it is used.
    pub broker: Option<EmbeddedBroker>,
    /// HTTP interface, unless it is off.
    pub http: Option<Http>,
    /// Root folder of the sensors.
    pub sensors: PathBuf,
    /// Folder of persistent state, unless it is off.
    pub state: Option<PathBuf>,
    /// Folder of the model store; none without a state folder.
    pub models: Option<PathBuf>,
    /// The file of the trust policy; none if remote configurations are refused.
    pub trust: Option<PathBuf>,
    /// How engines are started.
    pub engines: EngineStart,
    /// Warnings, which do not prevent the start.
    pub warnings: Vec<Mistake>,
}

/// The signed update that a configuration has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveUpdate {
    /// Its version.
    pub version: u64,
    /// The digest of its text.
    pub digest: String,
}

/// The embedded broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedBroker {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whether clients must log in.
    pub login: BrokerLogin,
}

/// Whether the clients of the embedded broker must log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerLogin {
    /// With the user name and the password of [`Mqtt::credentials`], or if there are none, of the file in
    /// the state folder.
    Required,
    /// Never: a try-out.
    Anonymous,
}

/// Connection to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Certificates, if the connection uses TLS.
    pub tls: Option<tls::TlsFiles>,
    /// First level of every topic.
    pub prefix: String,
    /// User name and password.
    pub credentials: Option<(String, Secret<String>)>,
    /// The private keys for encrypted calls that the file names; others are in the state folder.
    pub secrets: CallSecrets,
}

/// HTTP interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Address and port.
    pub listen: SocketAddr,
    /// Access rules: token, hosts and origins.
    pub guard: AccessGuard,
}

/// Loads the configuration from `path`, else from the file that `PILOTLIGHT_CONFIG` names, else
/// from `mcp.json` in the current directory or in the folder of an installed package.
///
/// # Errors
/// All mistakes that were found.
pub fn load(path: Option<&Path>, variables: &Variables) -> Result<Config, Vec<Mistake>> {
    let path = path_of(path, variables);
    let shown = path.display().to_string();
    let bytes =
        files::read(&path, CONFIG_BYTES_MAX).map_err(|e| one(&shown, unreadable(&path, &e)))?;
    let text = file_text::decode(&bytes).map_err(|message| one(&shown, message))?;
    let config = of_text(text, (path, &shown), variables, read::read(text, variables))?;
    Ok(Config { digest: source::digest(&bytes), ..config })
}

/// The configuration of this text, which was read into a catalog; `shown` is its name in messages.
fn of_text(
    text: &str,
    (path, shown): (PathBuf, &str),
    variables: &Variables,
    (catalog, mistakes): (Catalog, Vec<Mistake>),
) -> Result<Config, Vec<Mistake>> {
    let file: Option<Value> = serde_json::from_str(text).ok();
    let mut warnings = file.as_ref().map(secret::literal).unwrap_or_default();
    warnings.extend(env_file_warnings());
    warnings.extend(catalog.mqtt.key.as_ref().and_then(|key| readable_by_others(Path::new(key))));
    let mut reader = SettingsReader { variables, mistakes };
    let mut config = reader.config(path, catalog, warnings);
    strict::locate(text, shown, &mut reader.mistakes);
    strict::locate(text, shown, &mut config.warnings);
    secret::conceal(&mut reader.mistakes, file.as_ref(), variables);
    if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.mistakes) }
}

fn path_of(path: Option<&Path>, variables: &Variables) -> PathBuf {
    path.map_or_else(
        || match variables.get("PILOTLIGHT_CONFIG") {
            Some(named) => named.into(),
            None => default_folder().join(FILE),
        },
        Path::to_owned,
    )
}

/// Whether the user named the configuration: with `path` or with the variable of the environment. That
/// of `.env` does not count, because the file may be part of a stranger's folder.
pub fn is_named(path: Option<&Path>) -> bool {
    path.is_some() || std::env::var_os("PILOTLIGHT_CONFIG").is_some_and(|name| !name.is_empty())
}

/// The message for a file that cannot be read, with the path that was tried.
fn unreadable(path: &Path, error: &std::io::Error) -> String {
    let mut message = format!("cannot be read: {error}");
    if let (true, Ok(tried)) = (path.is_relative(), std::path::absolute(path)) {
        message = format!(
            "{message}; tried {}: a relative path is resolved against the current directory",
            tried.display()
        );
    }
    message + "; set --config or PILOTLIGHT_CONFIG, or copy the example mcp.json"
}

/// A warning, if the policy of single applications rests on names that only the clients of a broker state.
fn names_believed(catalog: &Catalog) -> Option<Mistake> {
    let has_apps = catalog.apps.keys().chain(catalog.caps.apps.keys()).any(|name| name != UNLISTED);
    let message = "is not set: a client of the broker can take the name of a listed application; let the \
                   broker's access rules tie topics to users and write \"topic\", name a user property that \
                   the broker sets, or write \"listed\" to accept it";
    (has_apps && catalog.mqtt.identity.is_none())
        .then(|| Mistake::new("pilotlight.mqtt.identity", message))
}

fn one(path: &str, message: String) -> Vec<Mistake> {
    vec![Mistake::new(path, message)]
}

struct SettingsReader<'v> {
    variables: &'v Variables,
    mistakes: Vec<Mistake>,
}

impl SettingsReader<'_> {
    fn config(
        &mut self,
        path: PathBuf,
        mut catalog: Catalog,
        mut warnings: Vec<Mistake>,
    ) -> Config {
        self.check_names();
        self.keys(&mut catalog);
        let sensors = self.get("PILOTLIGHT_SENSORS").unwrap_or_else(|| "/".to_owned());
        let sensors = PathBuf::from(sensors);
        let device = self.device(&catalog, &sensors, &mut warnings);
        let state = self.state();
        let engines = self.engines(state.as_deref());
        let models = self.models(&mut catalog, state.as_deref());
        let (mqtt, broker) = self.mqtt(&catalog, state.as_deref());
        if mqtt.is_some() && broker.is_none() {
            warnings.extend(names_believed(&catalog));
        }
        let http = self.http(&catalog);
        let needs_broker = catalog.services().next().is_some() || catalog.mqtt.serve.is_some();
        if needs_broker && mqtt.is_none() {
            let message = "a service on MQTT needs a broker; set pilotlight.mqtt.url";
            self.mistake("pilotlight.mqtt", message);
        }
        self.check_proof(&catalog, mqtt.as_ref(), state.as_deref(), &mut warnings);
        if catalog.caps.is_bound() && state.is_none() {
            let message = "spending caps need a state folder for the ledger; set PILOTLIGHT_STATE";
            self.mistake("pilotlight.policy.budget", message);
        }
        Config {
            path,
            digest: String::new(),
            update: None,
            catalog,
            device,
            mqtt,
            broker,
            http,
            sensors,
            state,
            models,
            trust: self.get("PILOTLIGHT_TRUST").map(PathBuf::from),
            engines,
            warnings,
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.variables.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// A variable of the environment, else the value of the file, with the name or path for its mistakes.
    fn setting<'p>(
        &self,
        name: &'p str,
        path: &'p str,
        written: Option<String>,
    ) -> (Option<String>, &'p str) {
        match self.get(name) {
            Some(value) => (Some(value), name),
            None => (written, path),
        }
    }

    fn mistake(&mut self, path: &str, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(path, message));
    }

    fn check_names(&mut self) {
        let known = |name: &str| VARIABLES.iter().any(|(known, _)| *known == name);
        let unknown: Vec<String> = self
            .variables
            .keys()
            .filter(|name| name.starts_with("PILOTLIGHT_") && !known(name))
            .cloned()
            .collect();
        for name in unknown {
            let all: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
            self.mistake(&name, format!("is unknown; known: {}", all.join(", ")));
        }
    }

    /// The configured name; else the host's name and a part of the machine's identity, because many
    /// boards have the host name of their image, and a name must belong to one device.
    fn device(&mut self, catalog: &Catalog, root: &Path, warnings: &mut Vec<Mistake>) -> String {
        let written = catalog.device.name.clone();
        let (named, path) = self.setting("PILOTLIGHT_DEVICE", "pilotlight.device.name", written);
        let name = named.unwrap_or_else(|| {
            let host = sysinfo::System::host_name().unwrap_or_default();
            let host = name::of_host(&host).unwrap_or_else(|| "device".to_owned());
            let Some(suffix) = machine_suffix(root) else {
                let message = "this machine has no /etc/machine-id: another device may have the same \
                               default name; set PILOTLIGHT_DEVICE";
                warnings.push(Mistake::new("pilotlight.device.name", message));
                return host;
            };
            let bytes_left = NAME_BYTES_MAX - suffix.len() - 1;
            format!("{}-{suffix}", host.get(..bytes_left).unwrap_or(&host))
        });
        if !is_name(&name) {
            let message = format!("{name:?} is not valid in a topic; use [A-Za-z0-9_-]{{1,64}}");
            self.mistake(path, message);
        }
        name
    }

    /// The value, or for `cred:NAME` the systemd credential of that name.
    fn secret(&mut self, path: &str, value: Option<String>) -> Option<String> {
        let value = value?;
        let Some(name) = value.strip_prefix("cred:") else {
            return Some(value);
        };
        let folder = self.get("CREDENTIALS_DIRECTORY").unwrap_or_default();
        let read = files::read(&Path::new(&folder).join(name), CONFIG_BYTES_MAX);
        let Some(bytes) = read.ok().filter(|_| !name.contains('/')) else {
            let message = format!("there is no credential {name:?} in $CREDENTIALS_DIRECTORY");
            self.mistake(path, message);
            return None;
        };
        match file_text::decode(&bytes) {
            Ok(text) if !text.trim_end().contains(char::is_control) => {
                Some(text.trim_end().to_owned())
            }
            Ok(_) => {
                let message = format!("the credential {name:?} has more than one line");
                self.mistake(path, message);
                None
            }
            Err(message) => {
                self.mistake(path, format!("the credential {name:?} {message}"));
                None
            }
        }
    }

    /// Resolves the providers' keys.
    fn keys(&mut self, catalog: &mut Catalog) {
        for server in &mut catalog.servers {
            if let Endpoint::Provider(provider) = &mut server.endpoint {
                let path = format!("pilotlight.providers.{}.key", server.name);
                let named = provider.key.take().map(|key| key.0);
                provider.key = self.secret(&path, named).map(Secret);
            }
        }
    }

    fn mqtt(
        &mut self,
        catalog: &Catalog,
        state: Option<&Path>,
    ) -> (Option<Mqtt>, Option<EmbeddedBroker>) {
        let written = &catalog.mqtt;
        let default = if cfg!(feature = "embedded-broker") { "embedded" } else { "off" };
        let (url, url_path) =
            self.setting("PILOTLIGHT_MQTT", "pilotlight.mqtt.url", written.url.clone());
        let url = url.unwrap_or_else(|| default.to_owned());
        let broker = if url == "embedded" { self.broker() } else { None };
        let address = match (url.as_str(), broker) {
            ("off", _) | ("embedded", None) => None,
            ("embedded", Some(EmbeddedBroker { listen, .. })) => {
                Some((listen.ip().to_string(), listen.port(), false))
            }
            (url, _) => self.broker_url(url, url_path),
        };
        let Some((host, port, encrypted)) = address else {
            return (None, broker);
        };
        let files = tls::TlsFiles {
            ca: written.ca.clone(),
            cert: written.cert.clone(),
            key: written.key.clone(),
        };
        if !encrypted && files != tls::TlsFiles::default() {
            self.mistake("pilotlight.mqtt", "certificates need an mqtts:// url");
        }
        let username = self.get("PILOTLIGHT_MQTT_USERNAME").or_else(|| written.username.clone());
        let password = written.password.clone().map(|p| p.0);
        let (password, path) =
            self.setting("PILOTLIGHT_MQTT_PASSWORD", "pilotlight.mqtt.password", password);
        let password = self.secret(path, password);
        let prefix = written.prefix.clone().unwrap_or_else(|| "pilotlight".to_owned());
        if prefix.is_empty()
            || prefix.contains(['+', '#', '\0'])
            || prefix.starts_with(['$', '/'])
            || prefix.ends_with('/')
        {
            self.mistake(
                "pilotlight.mqtt.prefix",
                format!("{prefix:?} is not a valid topic prefix"),
            );
        }
        let credentials = self.credentials(username, password, broker, state);
        let mqtt = Mqtt {
            host,
            port,
            tls: encrypted.then_some(files),
            prefix,
            credentials,
            secrets: self.call_secrets(written),
        };
        (Some(mqtt), broker)
    }

    /// The login at the broker; at the embedded one with the password of its file, if there is one
    /// already.
    fn credentials(
        &mut self,
        username: Option<String>,
        password: Option<String>,
        broker: Option<EmbeddedBroker>,
        state: Option<&Path>,
    ) -> Option<(String, Secret<String>)> {
        let password = password.map(Secret);
        let Some(EmbeddedBroker { login: BrokerLogin::Required, .. }) = broker else {
            return username.map(|user| (user, password.unwrap_or_default()));
        };
        let kept = || match broker_password::read(state?) {
            Ok(kept) => kept,
            Err(error) => {
                let file = broker_password::path(state?).display().to_string();
                self.mistake(&file, format!("the password cannot be read: {error}"));
                None
            }
        };
        let password = password.or_else(kept)?;
        Some((username.unwrap_or_else(|| broker_password::USER.to_owned()), password))
    }

    fn broker(&mut self) -> Option<EmbeddedBroker> {
        if !cfg!(feature = "embedded-broker") {
            self.mistake(
                "pilotlight.mqtt.url",
                "this build has no embedded broker; set the address of a broker",
            );
            return None;
        }
        let listen = self.get("PILOTLIGHT_BROKER").unwrap_or_else(|| "127.0.0.1:1883".to_owned());
        let login = match self.get("PILOTLIGHT_BROKER_ANONYMOUS").as_deref() {
            None | Some("no") => BrokerLogin::Required,
            Some("yes") => BrokerLogin::Anonymous,
            Some(_) => {
                self.mistake("PILOTLIGHT_BROKER_ANONYMOUS", "must be yes or no");
                BrokerLogin::Required
            }
        };
        match listen.parse() {
            Ok(listen) => Some(EmbeddedBroker { listen, login }),
            Err(_) => {
                self.mistake(
                    "PILOTLIGHT_BROKER",
                    format!("{listen:?} is not an address with a port"),
                );
                None
            }
        }
    }

    fn broker_url(&mut self, url: &str, path: &str) -> Option<(String, u16, bool)> {
        let encrypted = url.starts_with("mqtts://");
        let rest = url.strip_prefix("mqtts://").or_else(|| url.strip_prefix("mqtt://"));
        let place =
            rest.map(|rest| rest.trim_end_matches('/')).filter(|rest| !rest.contains(['/', '@']));
        let default = if encrypted { 8883 } else { 1883 };
        let parsed = place.and_then(|place| match place.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() => {
                Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
            }
            Some(_) => None,
            None => (!place.is_empty()).then(|| (place.to_owned(), default)),
        });
        match parsed {
            Some((host, port)) => Some((host, port, encrypted)),
            None => {
                let message = "must be mqtt://host[:port], mqtts://host[:port], embedded or off; \
                               user and password go into their own fields";
                self.mistake(path, message);
                None
            }
        }
    }
}
