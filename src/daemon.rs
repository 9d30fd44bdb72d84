//! Builds the rooms of the service, joins them, waits for the word to stop, and stops in order.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backends::supervise::supervise;
use crate::bus;
use crate::config::{Config, Http, Mqtt};
use crate::device::{self, Reading, Sensors};
use crate::dispatch::{self, Dispatch, Keep};
use crate::ingress::mqtt::topics::Topics;
use crate::ingress::{http, mqtt};
use crate::metrics::Metrics;
use crate::pressure::Bounds;
use crate::registry::catalog::{Catalog, DeviceLimits};
use crate::strain::Strain;
use crate::tls;

/// Tasks that stop together.
struct Floor {
    name: &'static str,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Floor {
    fn new(name: &'static str) -> Floor {
        Floor { name, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, floor = self.name, "a task ended badly");
            }
        }
        tracing::debug!(floor = self.name, "stopped");
    }
}

/// The models and the dispatcher over them: all that is needed to answer a prompt.
pub struct Core {
    /// The way in.
    pub dispatch: Dispatch,
    models: Floor,
    judge: Floor,
}

impl Core {
    /// Starts every model of the catalog.
    pub fn start(catalog: &Catalog, strain: watch::Receiver<Strain>, keep: Keep) -> Core {
        let (mut models, mut judge) = (Floor::new("models"), Floor::new("dispatcher"));
        let mut backends = Vec::new();
        for server in &catalog.servers {
            let (backend, keeper) = supervise(server, models.stop.clone());
            models.add(keeper);
            backends.push(backend);
        }
        let (dispatch, dispatcher) = dispatch::new(backends, strain, keep, catalog.caps.clone());
        let stop = judge.stop.clone();
        judge.add(dispatcher.run(stop));
        Core { dispatch, models, judge }
    }

    /// Lets running work end, then stops the models.
    pub async fn stop(self) {
        self.judge.stop().await;
        self.models.stop().await;
    }
}

/// The folder of what the service keeps, made if it is not there.
fn keeps(config: &Config) -> Option<&Path> {
    let folder = config.state.as_deref()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let Err(error) = made {
        let folder = folder.display();
        tracing::warn!(%folder, %error, "nothing can be kept here over a restart");
        return None;
    }
    Some(folder)
}

/// What is kept over a restart, and where.
pub fn keep_of(config: &Config) -> Keep {
    Keep::new(keeps(config), device::governor(&config.sensors))
}

/// The strain of a device that is not watched: none.
pub fn calm() -> watch::Receiver<Strain> {
    watch::channel(Strain::default()).1
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// If a port is taken or a certificate can't be used.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut broker = Floor::new("broker");
    start_broker(&config, &mut broker).await?;
    let listener = match &config.http {
        Some(Http { listen, .. }) => Some(http::listen(*listen).await?),
        None => None,
    };
    let catalog = Arc::new(config.catalog.clone());
    let metrics = Metrics::default();
    let (strains, strain) = watch::channel(Strain::default());
    let (readings, reading) = watch::channel(Reading::default());
    let keep = keep_of(&config);
    let core = Core::start(&catalog, strain, keep);
    let mut sensors = Floor::new("sensors");
    let all = Sensors::new(&config.sensors, Path::new("."));
    let bounds = bounds_of(&catalog.device_limits);
    let rate = core.dispatch.rate();
    sensors.add(device::watch(all, bounds, rate, (readings, strains), sensors.stop.clone()));
    let (mut doors, mut lines) = (Floor::new("doors"), Floor::new("lines"));
    let mut line = None;
    if let Some(mqtt) = &config.mqtt {
        let topics = Topics::new(&mqtt.prefix, &config.device, mqtt.response_prefixes.clone());
        let options = bus_options(mqtt, &config.device, &topics)?;
        let (bus, inbox, driver) = bus::open(options, lines.stop.clone());
        lines.add(driver);
        line = Some(bus.line());
        let (dispatch, catalog, metrics) =
            (core.dispatch.clone(), Arc::clone(&catalog), metrics.clone());
        let health = mqtt::health::tell(
            bus.clone(),
            topics.health(),
            dispatch.clone(),
            reading.clone(),
            doors.stop.clone(),
        );
        doors.add(health);
        let door = mqtt::Door { bus, dispatch, catalog, topics, metrics };
        doors.add(door.run(inbox, doors.stop.clone()));
    }
    if let (Some(listener), Some(Http { guard, .. })) = (listener, config.http.clone()) {
        let addr = listener.local_addr()?;
        let dispatch = core.dispatch.clone();
        let door = http::Door { dispatch, catalog, metrics, line, reading };
        let routes = http::routes(door, guard, doors.stop.clone());
        doors.add(http::serve(listener, routes, doors.stop.clone()));
        tracing::info!(%addr, "the HTTP door is open");
    }
    wait_for_signal().await?;
    tracing::info!("stopping");
    tokio::select! {
        () = async {
            doors.stop().await;
            core.stop().await;
            sensors.stop().await;
            lines.stop().await;
            broker.stop().await;
        } => tracing::info!("stopped"),
        again = wait_for_signal() => {
            again?;
            tracing::warn!("stopped at once");
        }
    }
    Ok(())
}

/// The board's own bounds, and what the configuration says instead.
fn bounds_of(limits: &DeviceLimits) -> Bounds {
    let own = device::bounds();
    Bounds {
        heat_c: limits.heat_c.or(own.heat_c),
        memory_floor: limits.memory_floor_mb.map_or(own.memory_floor, |mb| mb << 20),
        disk_floor: limits.disk_floor_mb.map_or(own.disk_floor, |mb| mb << 20),
        ..own
    }
}

#[cfg(feature = "embedded-broker")]
async fn start_broker(config: &Config, floor: &mut Floor) -> anyhow::Result<()> {
    let Some(listen) = config.broker else {
        return Ok(());
    };
    let (addr, serve) = crate::broker::open(listen, floor.stop.clone()).await?;
    floor.add(serve);
    tracing::info!(%addr, "the embedded broker is open");
    Ok(())
}

#[cfg(not(feature = "embedded-broker"))]
#[expect(clippy::unused_async, reason = "its twin waits for a port")]
async fn start_broker(_config: &Config, _floor: &mut Floor) -> anyhow::Result<()> {
    Ok(())
}

/// The line of the service itself.
fn bus_options(mqtt: &Mqtt, device: &str, topics: &Topics) -> anyhow::Result<bus::Options> {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let presence = |state: &str| {
        let word = json!({
            "state": state,
            "device": device,
            "epoch": epoch,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Bytes::from(word.to_string())
    };
    let base = line_options(mqtt, format!("pilotlight-{device}"))?;
    Ok(bus::Options {
        filters: topics.filters(),
        presence: Some(bus::Presence {
            topic: topics.status(),
            online: presence("online"),
            offline: presence("offline"),
        }),
        session: bus::Session::Kept,
        ..base
    })
}

/// A line to the configured broker that listens to nothing yet.
///
/// # Errors
/// If a certificate can't be used.
pub fn line_options(mqtt: &Mqtt, client_id: String) -> anyhow::Result<bus::Options> {
    let tls = mqtt.tls.as_ref().map(tls::client).transpose();
    Ok(bus::Options {
        host: mqtt.host.clone(),
        port: mqtt.port,
        tls: tls.context("the line to the broker can't be encrypted")?,
        client_id,
        credentials: mqtt.credentials.clone().map(|(user, password)| (user, password.0)),
        filters: Vec::new(),
        presence: None,
        session: bus::Session::Clean,
    })
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
