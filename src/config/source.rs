//! Where the configuration comes from, so that it can be read again; the files that it names, and the
//! settings that count only after a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::environment::{env_path, environment};
use super::{
    ActiveUpdate, Config, Http, Mqtt, SettingsReader, dry, load, of_text, one, path_of, read,
    unreadable, variables,
};
use crate::catalog::file_text;
use crate::catalog::mistake::Mistake;
use crate::catalog::server::{Endpoint, ServerEntry};
use crate::catalog::{secret, strict};
use crate::fleet::digest::Digest;
use crate::fleet::local::LocalConfig;
use crate::fleet::trust::Trust;
use crate::fleet::{boundary, merge, places};
use crate::limits::CONFIG_BYTES_MAX;
use crate::net::tls::TlsFiles;
use crate::store::files;

/// The source of the configuration.
#[derive(Debug, Clone, Default)]
pub struct ConfigSource {
    /// The path of `mcp.json`, if the user has named it on the command line.
    pub path: Option<PathBuf>,
    /// A scripted model answers in place of the configured ones.
    pub is_dry: bool,
    /// The signed update on top of the file, if there is one.
    pub update: Option<RemoteConfig>,
}

/// A remote configuration that was accepted.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// Its version.
    pub version: u64,
    /// Its text.
    pub text: String,
    /// The policy by which it was accepted.
    pub trust: Arc<Trust>,
}

impl ConfigSource {
    /// Reads `.env` and `mcp.json`.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn load(&self) -> Result<Config, Vec<Mistake>> {
        let config = self.load_file()?;
        match &self.update {
            Some(update) => self.load_update(config, update),
            None => Ok(config),
        }
    }

    /// The same without the signed update.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn load_file(&self) -> Result<Config, Vec<Mistake>> {
        let config = load(self.path.as_deref(), &variables()?)?;
        Ok(if self.is_dry { dry(config) } else { config })
    }

    /// The configuration of an update on top of the file: the local file may have changed since the update
    /// was accepted, so what it may not do is checked again.
    ///
    /// # Errors
    /// All mistakes that were found.
    pub fn load_update(
        &self,
        local: Config,
        RemoteConfig { version, text, trust }: &RemoteConfig,
    ) -> Result<Config, Vec<Mistake>> {
        let variables = variables()?;
        let shown = format!("update {version}");
        let wrong = |message: String| vec![Mistake::new(shown.clone(), message)];
        let file = local_value(&local).map_err(wrong)?;
        let remote = boundary::parse(text)?;
        let effective = merge::effective(&file, &remote, trust);
        let found = places::read(&effective, &variables, &local.catalog, trust);
        let config = of_text(&effective, (local.path.clone(), &shown), &variables, found)?;
        let of_file = LocalConfig {
            file: &file,
            catalog: &local.catalog,
            variables: &variables,
            running: &file,
        };
        let forbidden = boundary::check(of_file, Some(&config.catalog), &remote, trust);
        if !forbidden.is_empty() {
            return Err(forbidden);
        }
        let update = ActiveUpdate { version: *version, digest: digest(text.as_bytes()) };
        let config = Config { digest: local.digest, update: Some(update), ..config };
        Ok(if self.is_dry { dry(config) } else { config })
    }
}

/// The content of this configuration's file.
///
/// # Errors
/// What is wrong.
pub fn local_value(config: &Config) -> Result<Value, String> {
    let bytes = files::read(&config.path, CONFIG_BYTES_MAX).map_err(|error| error.to_string())?;
    serde_json::from_str(file_text::decode(&bytes)?).map_err(|error| error.to_string())
}

/// The HTTP interface of the service with this configuration, as far as it can be read.
pub fn http_of(path: Option<&Path>) -> Option<Http> {
    let variables = &variables().unwrap_or_else(|_| environment());
    let path = path_of(path, variables);
    let text = files::read(&path, CONFIG_BYTES_MAX).unwrap_or_default();
    let (catalog, _) = read::read(file_text::decode(&text).unwrap_or_default(), variables);
    SettingsReader { variables, mistakes: Vec::new() }.http(&catalog)
}

/// The connection to the broker with the variables of the environment, `.env` and `mcp.json`, for a program
/// that uses nothing else of them: what the file says of models may be for other devices. The file may be
/// missing if it was not named. None if the connection is off.
///
/// # Errors
/// The mistakes that concern the connection, or that the file can't be read.
pub fn broker_of(path: Option<&Path>) -> Result<Option<Mqtt>, Vec<Mistake>> {
    let variables = &variables()?;
    let is_named = path.is_some() || variables.contains_key("PILOTLIGHT_CONFIG");
    let path = path_of(path, variables);
    let shown = path.display().to_string();
    let bytes = match files::read(&path, CONFIG_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => b"{}".to_vec(),
        read => read.map_err(|error| one(&shown, unreadable(&path, &error)))?,
    };
    let text = file_text::decode(&bytes).map_err(|message| one(&shown, message))?;
    let file: Option<Value> = serde_json::from_str(text).ok();
    let (catalog, mut mistakes) = read::read(text, variables);
    if file.is_some() {
        mistakes.retain(|mistake| mistake.path.starts_with("pilotlight.mqtt"));
    }
    let mut reader = SettingsReader { variables, mistakes };
    reader.check_names();
    let state = reader.state();
    let (mqtt, _) = reader.mqtt(&catalog, state.as_deref());
    strict::locate(text, &shown, &mut reader.mistakes);
    secret::conceal(&mut reader.mistakes, file.as_ref(), variables);
    if reader.mistakes.is_empty() { Ok(mqtt) } else { Err(reader.mistakes) }
}

/// The digest of some bytes, `sha256:` and 64 digits.
pub fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// The digest of a file, or why it can't be read.
pub fn file_digest(path: &Path) -> String {
    let read = files::read(path, CONFIG_BYTES_MAX);
    read.map_or_else(|error| error.to_string(), |bytes| digest(&bytes))
}

impl Config {
    /// The files that this configuration is made of, those that it names included. Some may be missing.
    pub fn files(&self) -> Vec<PathBuf> {
        let own = [self.path.clone(), env_path()];
        let servers = self.catalog.servers.iter().filter_map(files_of);
        let broker = self.mqtt.iter().filter_map(|mqtt| mqtt.tls.as_ref()).flat_map(tls_files);
        own.into_iter().chain(servers).chain(broker).collect()
    }

    /// Settings of this configuration that a running service with the settings of `started` does not
    /// adopt, by their paths or variables.
    pub fn needs_restart(&self, started: &Config) -> Vec<String> {
        let broker = |config: &Config| {
            let mqtt = config.mqtt.as_ref()?;
            Some((mqtt.host.clone(), mqtt.port, mqtt.tls.is_some()))
        };
        let prefix = |config: &Config| config.mqtt.as_ref().map(|mqtt| mqtt.prefix.clone());
        let secrets = |config: &Config| config.mqtt.as_ref().map(|mqtt| mqtt.secrets.clone());
        let listen = |config: &Config| config.http.as_ref().map(|http| http.listen);
        let (new, old) = (&self.catalog, &started.catalog);
        let differs = [
            ("pilotlight.device.name", self.device != started.device),
            ("pilotlight.device.group", new.device.group != old.device.group),
            ("pilotlight.mqtt.url", broker(self) != broker(started)),
            ("pilotlight.mqtt.prefix", prefix(self) != prefix(started)),
            ("pilotlight.mqtt.serve", new.mqtt.serve != old.mqtt.serve),
            ("pilotlight.mqtt.callers", new.mqtt.callers != old.mqtt.callers),
            ("pilotlight.mqtt.service_secret and caller_secret", secrets(self) != secrets(started)),
            ("pilotlight.http.listen", listen(self) != listen(started)),
            ("PILOTLIGHT_BROKER and PILOTLIGHT_BROKER_ANONYMOUS", self.broker != started.broker),
            ("PILOTLIGHT_SENSORS", self.sensors != started.sensors),
            (
                "PILOTLIGHT_ENGINES, PILOTLIGHT_ENGINE_SANDBOX and PILOTLIGHT_PREFIX_CACHE",
                self.engines != started.engines,
            ),
            ("PILOTLIGHT_STATE", self.state != started.state),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.into()).collect()
    }
}

/// The files of a server's entry whose content counts as a part of the entry.
pub fn files_of(entry: &ServerEntry) -> Option<PathBuf> {
    match &entry.endpoint {
        Endpoint::Provider(provider) => provider.ca.as_ref().map(PathBuf::from),
        Endpoint::Child { .. } | Endpoint::Http { .. } | Endpoint::Mqtt { .. } => None,
    }
}

/// The files of a connection with TLS.
pub fn tls_files(tls: &TlsFiles) -> impl Iterator<Item = PathBuf> {
    [&tls.ca, &tls.cert, &tls.key].into_iter().flatten().map(PathBuf::from)
}
