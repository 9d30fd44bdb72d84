//! Reads the configuration again while the service runs: after a change of its files, on SIGHUP, and when
//! a client asks. A configuration with mistakes changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::broker::login_of;
use super::core::Core;
use super::{bounds_of, call_keys, log_in};
use crate::catalog::mistake::Mistake;
use crate::clock;
use crate::config::changes::FileChanges;
use crate::config::source::{self, ConfigSource};
use crate::config::{Config, Mqtt};
use crate::device::SensorReading;
use crate::ingress::http::{AccessGuard, PresentGuard};
use crate::ingress::reloads::ReloadRequests;
use crate::limits::reload::REPORTED_MISTAKES_MAX;
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::mqtt::{Bus, Login};
use crate::pressure::Bounds;
use crate::status::{ConfigState, ConfigStatus};

/// The configuration in force, and the parts of the service that follow it.
pub(super) struct Live {
    source: ConfigSource,
    /// The configuration with which the service has started.
    started: Config,
    present: Config,
    /// The digests of the files of the connection to the broker.
    tls: Vec<String>,
    guard: watch::Sender<Arc<AccessGuard>>,
    bounds: watch::Sender<Bounds>,
    status: watch::Sender<ConfigStatus>,
    /// The connections to the broker.
    buses: Vec<Bus>,
    calls: Option<CallRouter>,
    reading: watch::Receiver<SensorReading>,
    changes: Option<FileChanges>,
    /// The file has changed between its reading and the begin of the watch.
    is_stale: bool,
}

/// What a configuration comes to before it is in force.
struct Checked {
    config: Config,
    tls: Vec<String>,
    /// Another login at the broker.
    login: Option<Login>,
}

impl Live {
    /// The state of a service that starts with this configuration.
    pub(super) fn new(
        source: ConfigSource,
        config: &Config,
        reading: watch::Receiver<SensorReading>,
    ) -> Live {
        let guard = config.http.as_ref().map(|http| http.guard.clone()).unwrap_or_default();
        Live {
            source,
            started: config.clone(),
            present: config.clone(),
            tls: tls_digests(config),
            guard: watch::Sender::new(Arc::new(guard)),
            bounds: watch::Sender::new(bounds_of(&config.catalog.device_limits)),
            status: watch::Sender::new(kept(config, Vec::new())),
            buses: Vec::new(),
            calls: None,
            reading,
            changes: watched(config),
            is_stale: is_stale(config),
        }
    }

    pub(super) fn guard(&self) -> PresentGuard {
        self.guard.subscribe()
    }

    pub(super) fn bounds(&self) -> watch::Receiver<Bounds> {
        self.bounds.subscribe()
    }

    pub(super) fn status(&self) -> watch::Receiver<ConfigStatus> {
        self.status.subscribe()
    }

    /// Lets this connection to the broker follow the configuration.
    pub(super) fn log_in_of(&mut self, bus: Bus) {
        self.buses.push(bus);
    }

    /// Lets the calls over MQTT have this device's keys once they need them.
    pub(super) fn keys_of(&mut self, calls: CallRouter) {
        self.calls = Some(calls);
    }

    /// Waits until the files of the configuration have changed, or a client asks; returns those that ask.
    pub(super) async fn asked(
        &mut self,
        requests: &mut ReloadRequests,
    ) -> Vec<oneshot::Sender<ConfigStatus>> {
        if std::mem::take(&mut self.is_stale) {
            return Vec::new();
        }
        let changed = async {
            match &mut self.changes {
                Some(changes) => changes.changed().await,
                None => std::future::pending().await,
            }
        };
        let mut asking: Vec<_> = tokio::select! {
            () = changed => Vec::new(),
            Some(asking) = requests.recv() => vec![asking],
        };
        // one reload for all that wait
        while let Ok(other) = requests.try_recv() {
            asking.push(other);
        }
        asking
    }

    /// Reads the configuration again, and puts it into force if it has no mistakes. The present one serves
    /// until then.
    pub(super) async fn reload(&mut self, core: &mut Core) -> ConfigStatus {
        match self.check() {
            Ok(checked) => self.adopt(checked, core).await,
            Err(mistakes) => self.refuse(&mistakes),
        }
        self.status.borrow().clone()
    }

    /// Reads the configuration and all that it names.
    fn check(&self) -> Result<Checked, Vec<Mistake>> {
        let mut config = self.source.load()?;
        let wrong =
            |path: &str, error: anyhow::Error| vec![Mistake::new(path, format!("{error:#}"))];
        log_in(&mut config).map_err(|error| wrong("pilotlight.mqtt.password", error))?;
        if let Some(calls) = &self.calls {
            let pair = call_keys::caller(&config);
            let pair = pair.map_err(|error| wrong("pilotlight.mqtt.caller_secret", error))?;
            calls.set_pair(pair);
        }
        let tls = tls_digests(&config);
        let credentials = |mqtt: &Mqtt| (mqtt.credentials.clone(), mqtt.tls.clone());
        let before = self.present.mqtt.as_ref().map(credentials);
        let is_new = before != config.mqtt.as_ref().map(credentials) || tls != self.tls;
        let login = match config.mqtt.as_ref().filter(|_| is_new) {
            Some(mqtt) => Some(login_of(mqtt).map_err(|error| wrong("pilotlight.mqtt", error))?),
            None => None,
        };
        Ok(Checked { config, tls, login })
    }

    fn refuse(&mut self, mistakes: &[Mistake]) {
        let path = &self.present.path;
        let status = ConfigStatus {
            state: ConfigState::Refused,
            mistakes: mistakes
                .iter()
                .take(REPORTED_MISTAKES_MAX)
                .map(ToString::to_string)
                .collect(),
            refused_digest: Some(source::file_digest(path)),
            ..self.status.borrow().clone()
        };
        if *self.status.borrow() != status {
            let count = mistakes.len();
            tracing::error!(
                count,
                "the changed configuration is refused; the one before stays in force"
            );
            for mistake in mistakes {
                tracing::error!("{mistake}");
            }
        }
        self.status.send_replace(status);
    }

    async fn adopt(&mut self, Checked { config, tls, login }: Checked, core: &mut Core) {
        let restart = config.needs_restart(&self.started);
        let status = kept(&config, restart);
        let is_same = Config { warnings: Vec::new(), ..config.clone() }
            == Config { warnings: Vec::new(), ..self.present.clone() };
        for warning in config.warnings.iter().filter(|one| !self.present.warnings.contains(one)) {
            tracing::warn!("{warning}");
        }
        let memory = self.reading.borrow().sample.memory;
        let reserve = self.bounds.borrow().memory_reserve;
        let memory = memory.map(|memory| memory.available.saturating_sub(reserve));
        // the entries may be the same and the files that they name be others
        core.adopt(Arc::new(config.catalog.clone()), memory).await;
        let guard = config.http.as_ref().map(|http| http.guard.clone()).unwrap_or_default();
        self.guard.send_replace(Arc::new(guard));
        self.bounds.send_replace(bounds_of(&config.catalog.device_limits));
        let has_broker = !status.restart_required.iter().any(|name| name == "pilotlight.mqtt.url");
        if let Some(login) = login.filter(|_| has_broker) {
            self.buses.iter().for_each(|bus| bus.log_in(login.clone()));
        }
        if !is_same {
            let (version, restart) = (status.version, status.restart_required.join(", "));
            tracing::info!(
                version,
                restart,
                digest = status.digest,
                "the configuration is in force"
            );
        }
        let since = if is_same { self.status.borrow().since } else { status.since };
        self.status.send_replace(ConfigStatus { since, ..status });
        if self.present.files() != config.files() {
            self.changes = watched(&config);
            self.is_stale = is_stale(&config);
        }
        (self.present, self.tls) = (config, tls);
    }
}

/// The status of a configuration in force.
fn kept(config: &Config, restart_required: Vec<String>) -> ConfigStatus {
    ConfigStatus {
        state: ConfigState::Kept,
        version: config.catalog.version,
        digest: config.digest.clone(),
        since: clock::since_epoch().as_secs(),
        mistakes: Vec::new(),
        refused_digest: None,
        restart_required,
    }
}

fn tls_digests(config: &Config) -> Vec<String> {
    let tls = config.mqtt.as_ref().and_then(|mqtt| mqtt.tls.as_ref());
    let files: Vec<PathBuf> = tls.map(|tls| source::tls_files(tls).collect()).unwrap_or_default();
    files.iter().map(|file| source::file_digest(file)).collect()
}

fn is_stale(config: &Config) -> bool {
    source::file_digest(&config.path) != config.digest
}

/// Without it the service works: it reads its configuration again when it is asked.
fn watched(config: &Config) -> Option<FileChanges> {
    FileChanges::new(config.files())
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "changes of the configuration's files are not noticed; run pilotlight reload after one"
            );
        })
        .ok()
}
