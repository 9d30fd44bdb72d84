//! Reads the configuration again while the service runs: after a change of its files, on SIGHUP, and when
//! a client asks. A configuration with mistakes changes nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::broker::login_of;
use super::core::Core;
use super::{bounds_of, call_keys, log_in};
use crate::backends::set::NextBackends;
use crate::catalog::mistake::Mistake;
use crate::clock;
use crate::config::changes::FileChanges;
use crate::config::source::{self, ConfigSource, RemoteConfig};
use crate::config::{Config, Mqtt};
use crate::device::SensorReading;
use crate::fleet::digest::Digest;
use crate::fleet::update::{UpdateReport, UpdateState};
use crate::ingress::http::{AccessGuard, PresentGuard};
use crate::ingress::reloads::ReloadRequests;
use crate::limits::reload::REPORTED_MISTAKES_MAX;
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::mqtt::{Bus, Login};
use crate::pressure::Bounds;
use crate::pressure::level::DevicePressure;
use crate::status::{ConfigOrigin, ConfigStatus};

/// The configuration in force, and the parts of the service that follow it.
pub(super) struct Live {
    source: ConfigSource,
    /// The configuration with which the service has started.
    started: Config,
    present: Config,
    /// That of the file alone.
    local: Config,
    /// The digests of the files of the connection to the broker.
    tls: Vec<String>,
    guard: watch::Sender<Arc<AccessGuard>>,
    bounds: watch::Sender<Bounds>,
    status: watch::Sender<ConfigStatus>,
    /// What became of the last signed update, if there was one.
    update_state: Option<UpdateState>,
    /// The connections to the broker.
    buses: Vec<Bus>,
    calls: Option<CallRouter>,
    reading: watch::Receiver<SensorReading>,
    device_pressure: watch::Receiver<DevicePressure>,
    changes: Option<FileChanges>,
    /// The file has changed between its reading and the begin of the watch.
    is_stale: bool,
}

/// What a configuration comes to before it is in force.
pub(super) struct Checked {
    pub(super) config: Config,
    /// The configuration of the file alone.
    local: Config,
    tls: Vec<String>,
    /// Another login at the broker.
    login: Option<Login>,
}

impl Live {
    /// The state of a service that starts with this configuration.
    pub(super) fn new(
        source: ConfigSource,
        (local, config): (Config, &Config),
        (reading, device_pressure): (
            watch::Receiver<SensorReading>,
            watch::Receiver<DevicePressure>,
        ),
    ) -> Live {
        let guard = config.http.as_ref().map(|http| http.guard.clone()).unwrap_or_default();
        Live {
            source,
            started: config.clone(),
            present: config.clone(),
            local,
            tls: tls_digests(config),
            guard: watch::Sender::new(Arc::new(guard)),
            bounds: watch::Sender::new(bounds_of(&config.catalog.device_limits)),
            status: watch::Sender::new(kept(config, Vec::new())),
            update_state: None,
            buses: Vec::new(),
            calls: None,
            reading,
            device_pressure,
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

    /// The fleet of this device.
    pub(super) fn set_fleet(&self, fleet: Option<&str>) {
        self.status.send_modify(|status| status.fleet = fleet.map(str::to_owned));
    }

    /// Lets these connections to the broker, and the calls over them, follow the configuration.
    pub(super) fn follow(&mut self, buses: Vec<Bus>, calls: CallRouter) {
        (self.buses, self.calls) = (buses, Some(calls));
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
        match self.check(&self.source) {
            Ok(checked) => self.adopt(checked, core).await,
            Err(mistakes) => match self.source.update.take() {
                None => self.refuse(&mistakes),
                Some(update) => Box::pin(self.without_update(update, &mistakes, core)).await,
            },
        }
        self.status.borrow().clone()
    }

    /// Leaves the signed update out, if the local file is right without it: what the file permits may have
    /// become less.
    async fn without_update(
        &mut self,
        update: RemoteConfig,
        mistakes: &[Mistake],
        core: &mut Core,
    ) {
        match self.check(&self.source) {
            Ok(checked) => {
                let version = update.version;
                let why = mistakes.first().map(ToString::to_string).unwrap_or_default();
                let reason = format!("it does not fit the local file any more: {why}");
                tracing::error!(version, reason, "the signed update is not used");
                self.adopt(checked, core).await;
                self.status.send_modify(|status| {
                    status.state = UpdateState::RolledBack;
                    (status.offered, status.reason) = (Some(version), Some(reason));
                });
            }
            Err(mistakes) => {
                self.source.update = Some(update);
                self.refuse(&mistakes);
            }
        }
    }

    /// Reads an update on top of the local file, or the file alone, and all that it names.
    ///
    /// # Errors
    /// All mistakes.
    pub(super) fn check_remote(
        &self,
        update: Option<&RemoteConfig>,
    ) -> Result<Checked, Vec<Mistake>> {
        self.check(&ConfigSource { update: update.cloned(), ..self.source.clone() })
    }

    /// Runs this update, or the file alone, from now on.
    pub(super) async fn return_to(&mut self, update: Option<RemoteConfig>, core: &mut Core) {
        self.source.update = update;
        Box::pin(self.reload(core)).await;
    }

    /// The update in force counts.
    pub(super) fn keep(&mut self, update: RemoteConfig) {
        self.source.update = Some(update);
    }

    /// The configuration in force: the local parts are those of the file.
    pub(super) fn local(&self) -> &Config {
        &self.local
    }

    /// The memory that is available for models, in bytes, if that is known.
    pub(super) fn memory(&self) -> Option<u64> {
        let memory = self.reading.borrow().sample.memory;
        let reserve = self.bounds.borrow().memory_reserve;
        memory.map(|memory| memory.available.saturating_sub(reserve))
    }

    /// The pressure of the device.
    pub(super) fn device_pressure(&self) -> watch::Receiver<DevicePressure> {
        self.device_pressure.clone()
    }

    /// Tells of the state of an update.
    pub(super) fn report(&mut self, report: &UpdateReport<'_>, digest: Option<Digest>) {
        tracing::info!(
            state = report.state.name(),
            version = report.version,
            reason = report.reason,
            "update"
        );
        self.update_state = Some(report.state);
        self.status.send_modify(|status| {
            (status.state, status.offered) = (report.state, report.version);
            status.offered_digest = digest.map(|digest| digest.to_string());
            status.code = report.code.map(str::to_owned);
            status.reason = report.reason.map(str::to_owned);
        });
    }

    /// Reads the configuration and all that it names.
    fn check(&self, source: &ConfigSource) -> Result<Checked, Vec<Mistake>> {
        let local = source.load_file()?;
        let mut config = match &source.update {
            Some(update) => source.load_update(local.clone(), update)?,
            None => local.clone(),
        };
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
        Ok(Checked { config, local, tls, login })
    }

    fn refuse(&mut self, mistakes: &[Mistake]) {
        let path = &self.present.path;
        let status = ConfigStatus {
            state: UpdateState::Refused,
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

    async fn adopt(&mut self, checked: Checked, core: &mut Core) {
        // the entries may be the same and the files that they name be others
        let next = core.prepare(&checked.config.catalog, self.memory());
        next.started().await;
        self.put(checked, next, core).await;
    }

    /// Puts a configuration with its backends into force; returns those before.
    pub(super) async fn put(
        &mut self,
        checked: Checked,
        next: NextBackends,
        core: &mut Core,
    ) -> (Box<Checked>, NextBackends) {
        let Checked { config, local, tls, login } = checked;
        let status = kept(&config, config.needs_restart(&self.started));
        let is_same = Config { warnings: Vec::new(), ..config.clone() }
            == Config { warnings: Vec::new(), ..self.present.clone() };
        for warning in config.warnings.iter().filter(|one| !self.present.warnings.contains(one)) {
            tracing::warn!("{warning}");
        }
        let previous = core.switch(Arc::new(config.catalog.clone()), next).await;
        let guard = config.http.as_ref().map(|http| http.guard.clone()).unwrap_or_default();
        self.guard.send_replace(Arc::new(guard));
        self.bounds.send_replace(bounds_of(&config.catalog.device_limits));
        let has_broker = !status.restart_required.iter().any(|name| name == "pilotlight.mqtt.url");
        if let Some(login) = login.filter(|_| has_broker) {
            self.buses.iter().for_each(|bus| bus.log_in(login.clone()));
        }
        if !is_same {
            let (version, digest) = (status.version, &status.digest);
            let restart = status.restart_required.join(", ");
            tracing::info!(version, restart, digest, "the configuration is in force");
        }
        self.tell(status, is_same);
        if self.present.files() != config.files() {
            self.changes = watched(&config);
            self.is_stale = is_stale(&config);
        }
        let config = std::mem::replace(&mut self.present, config);
        let local = std::mem::replace(&mut self.local, local);
        let tls = std::mem::replace(&mut self.tls, tls);
        (Box::new(Checked { config, local, tls, login: None }), previous)
    }

    /// Publishes the status of the configuration in force. What became of a signed update stays known.
    fn tell(&self, status: ConfigStatus, is_same: bool) {
        let before = self.status.borrow().clone();
        let since = if is_same { before.since } else { status.since };
        let ConfigStatus { fleet, offered, offered_digest, code, reason, .. } = before;
        // that of the update, and not that of a file which was refused in between
        let state = self.update_state.filter(|_| offered.is_some()).unwrap_or(status.state);
        self.status.send_replace(ConfigStatus {
            state,
            since,
            fleet,
            offered,
            offered_digest,
            code,
            reason,
            ..status
        });
    }
}

/// The status of a configuration in force.
fn kept(config: &Config, restart_required: Vec<String>) -> ConfigStatus {
    let update = config.update.as_ref();
    ConfigStatus {
        state: UpdateState::Kept,
        source: if update.is_some() { ConfigOrigin::Update } else { ConfigOrigin::File },
        version: update.map_or(config.catalog.version, |update| update.version),
        digest: update.map_or_else(|| config.digest.clone(), |update| update.digest.clone()),
        since: clock::since_epoch().as_secs(),
        group: config.catalog.device.group.clone(),
        restart_required,
        ..ConfigStatus::default()
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
