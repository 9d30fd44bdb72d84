//! Starts the modules of the service, connects them, follows the configuration, waits for a signal, and
//! stops them in order.

mod broker;
pub(crate) mod call_keys;
mod core;
mod fleet;
mod reload;
mod signals;
mod systemd;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::broker::connection_options;
use self::broker::{
    BrokerConnection, SharedParts, UpdateTopics, log_in, serve_calls, start_broker,
};
pub use self::core::Core;
use self::core::TaskGroup;
use self::fleet::{Fleet, StoredUpdates};
use self::reload::Live;
use self::signals::Signals;
use crate::catalog::catalog::DeviceLimits;
use crate::config::source::ConfigSource;
use crate::config::{Config, Http};
use crate::device;
use crate::device::{SensorReading, Sensors};
use crate::dispatch::LearnedStore;
use crate::ingress;
use crate::ingress::mcp::Service;
use crate::ingress::reloads::Reloads;
use crate::ingress::updates::Updates;
use crate::metrics::Metrics;
use crate::models::{CoolOnly, DownloadPace, ModelStore, UnmeteredOnly};
use crate::pressure::Bounds;
use crate::pressure::level::DevicePressure;
use crate::store::tool_pins::ToolPins;

/// The configuration to start with: the signed update that counts, unless it does not fit the local file.
fn with_update(local: &Config, source: &mut ConfigSource) -> Config {
    let Some(update) = &source.update else { return local.clone() };
    match source.load_update(local.clone(), update) {
        Ok(config) => config,
        Err(mistakes) => {
            for mistake in mistakes {
                tracing::error!("the signed update is not used, the local file is: {mistake}");
            }
            source.update = None;
            local.clone()
        }
    }
}

/// The state folder, created if it does not exist; none if that fails.
fn state_folder(config: &Config) -> Option<&Path> {
    let folder = config.state.as_deref()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let Err(error) = made {
        let folder = folder.display();
        tracing::warn!(%folder, %error, "the state folder can't be created; nothing is kept over a restart");
        return None;
    }
    Some(folder)
}

/// The store of what is kept over a restart.
pub fn keep_of(config: &Config) -> LearnedStore {
    LearnedStore::new(state_folder(config), device::governor(&config.sensors))
}

/// The pinned tools of the device's servers.
pub fn pins_of(config: &Config) -> Arc<ToolPins> {
    Arc::new(ToolPins::new(state_folder(config)))
}

/// The pressure of a device whose sensors are not read: none.
pub fn calm() -> watch::Receiver<DevicePressure> {
    watch::channel(DevicePressure::default()).1
}

/// Starts to read the sensors.
fn watch_sensors(
    config: &Config,
    live: &Live,
    core: &Core,
    out: (watch::Sender<SensorReading>, watch::Sender<DevicePressure>),
) -> TaskGroup {
    let mut group = TaskGroup::new("sensors");
    let sensors = Sensors::new(&config.sensors, config.written());
    let (rate, stop) = (core.dispatch.rate(), group.stop.clone());
    group.add(device::watch(sensors, live.bounds(), rate, out, stop));
    group
}

/// Runs the service until SIGTERM or SIGINT; `source` is where its configuration is read from again.
///
/// # Errors
/// If a port is taken or a certificate is not usable.
pub async fn run(local: Config, mut source: ConfigSource) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let stored = StoredUpdates::open(&local);
    source.update = stored.as_ref().and_then(StoredUpdates::live);
    let mut config = with_update(&local, &mut source);
    log_in(&mut config)?;
    let mut broker = TaskGroup::new("broker");
    start_broker(&config, &mut broker).await?;
    let listener = match &config.http {
        Some(Http { listen, .. }) => Some(ingress::http::listen(*listen).await?),
        None => None,
    };
    let metrics = Metrics::default();
    let (pressures, device_pressure) = watch::channel(DevicePressure::default());
    let (readings, reading) = watch::channel(SensorReading::default());
    let on_device = (reading.clone(), device_pressure.clone());
    let mut live = Live::new(source, (local, &config), on_device);
    let topics =
        stored.as_ref().map(|stored| UpdateTopics { fleet: stored.fleet().map(str::to_owned) });
    live.set_fleet(stored.as_ref().and_then(StoredUpdates::fleet));
    let (reloads, mut requests) = Reloads::new(live.status());
    let (updates, update_requests) = Updates::new();
    let mut interfaces = TaskGroup::new("interfaces");
    let mut connections = TaskGroup::new("connections");
    let broker_connection = config
        .mqtt
        .as_ref()
        .map(|mqtt| BrokerConnection::open(mqtt, &config, topics.as_ref(), &mut connections));
    let broker_connection = broker_connection.transpose()?;
    let calls = broker_connection.as_ref().map(|connection| &connection.calls);
    let mut core = Core::start(&config, device_pressure, keep_of(&config), calls);
    let service = Arc::new(Service::new(core.dispatch.clone()));
    let sensors = watch_sensors(&config, &live, &core, (readings, pressures));
    let broker_bus = broker_connection.as_ref().map(|connection| connection.bus.clone());
    let dispatch = core.dispatch.clone();
    let shared = SharedParts { dispatch, metrics, reading, reloads };
    let mut desired = None;
    if let Some(connection) = broker_connection {
        let worker = serve_calls(&config, Arc::clone(&service), &mut interfaces, &mut connections)?;
        let buses = worker.into_iter().chain([connection.bus.clone()]);
        live.follow(buses.collect(), connection.calls.clone());
        desired = Some(connection.serve(&config, &shared, &mut interfaces));
    }
    let fleet = stored.map(|stored| Fleet::new(stored, (desired, update_requests), &core));
    if let Some(listener) = listener {
        let addr = listener.local_addr()?;
        let SharedParts { dispatch, metrics, reading, reloads } = shared;
        let (mcp, broker) = (service, broker_bus);
        let interface = ingress::http::HttpInterface {
            dispatch,
            mcp,
            metrics,
            broker,
            reading,
            reloads,
            updates,
        };
        let routes = ingress::http::routes(interface, live.guard(), interfaces.stop.clone());
        interfaces.add(ingress::http::serve(listener, routes, interfaces.stop.clone()));
        tracing::info!(%addr, "the HTTP interface listens");
    }
    let watchdog = systemd::start(core.dispatch.clone());
    Box::pin(signals.serve(&mut live, &mut requests, (&mut core, fleet))).await;
    tracing::info!("stopping");
    watchdog.stop().await;
    systemd::notify_stopping();
    tokio::select! {
        () = async {
            interfaces.stop().await;
            core.stop().await;
            for group in [sensors, connections, broker] {
                group.stop().await;
            }
        } => tracing::info!("stopped"),
        () = signals.stop() => tracing::warn!("second signal: stopped without draining"),
    }
    Ok(())
}

/// The folder of this device's models; none if it has none.
pub(crate) fn model_store(config: &Config) -> Option<ModelStore> {
    let folder = config.models.clone()?;
    let bounds = bounds_of(&config.catalog.device_limits);
    let reserve_bytes = bounds.disk_reserve;
    let (when, sensors) = (config.catalog.models_download, &config.sensors);
    let cool_only = when.only_cool.then(|| CoolOnly { sensors: sensors.clone(), bounds });
    let limits = || config.catalog.device_limits.clone();
    let unmetered_only =
        when.only_unmetered.then(|| UnmeteredOnly { sensors: sensors.clone(), limits: limits() });
    let pace = DownloadPace::default();
    Some(ModelStore { folder, reserve_bytes, cool_only, unmetered_only, pace })
}

/// The bounds of the sensors: those of the configuration, else the board's defaults.
pub(crate) fn bounds_of(limits: &DeviceLimits) -> Bounds {
    let board = device::bounds();
    Bounds {
        heat_c: limits.heat_c.or(board.heat_c),
        zones: limits.zones.clone(),
        memory_reserve: limits.memory_reserve_mb.map_or(board.memory_reserve, |mb| mb << 20),
        disk_reserve: limits.disk_reserve_mb.map_or(board.disk_reserve, |mb| mb << 20),
        ..board
    }
}
