//! Starts the modules of the service, connects them, waits for a signal, and stops them in order.

pub(crate) mod call_keys;

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backends::supervisor::supervise;
use crate::catalog::catalog::{Catalog, DeviceLimits};
use crate::clock;
use crate::config::{BrokerLogin, Config, EmbeddedBroker, Http, Mqtt};
use crate::device;
use crate::device::{SensorReading, Sensors};
use crate::dispatch;
use crate::dispatch::{Dispatch, DispatchPolicy, LearnedStore};
use crate::ingress;
use crate::ingress::mcp::Service;
use crate::ingress::mqtt::topics::DeviceTopics;
use crate::limits::MQTT_INBOX_MAX;
use crate::mcp::over_mqtt;
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::mcp::over_mqtt::worker;
use crate::metrics::Metrics;
use crate::mqtt;
#[cfg(feature = "embedded-broker")]
use crate::mqtt::broker::BrokerAccess;
use crate::mqtt::{Bus, Router, Subscription};
use crate::net::tls;
use crate::pressure::Bounds;
use crate::pressure::level::DevicePressure;
use crate::store::broker_password;

/// Tasks that stop together.
struct TaskGroup {
    name: &'static str,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl TaskGroup {
    fn new(name: &'static str) -> TaskGroup {
        TaskGroup { name, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    fn add(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, group = self.name, "a task failed");
            }
        }
        tracing::debug!(group = self.name, "stopped");
    }
}

/// The models and the dispatcher: the part of the service that answers prompts.
pub struct Core {
    /// Takes the jobs.
    pub dispatch: Dispatch,
    models: TaskGroup,
    scheduler: TaskGroup,
}

impl Core {
    /// Starts every model of the catalog; those over MQTT need `calls`.
    pub fn start(
        catalog: &Catalog,
        device_pressure: watch::Receiver<DevicePressure>,
        store: LearnedStore,
        calls: Option<&CallRouter>,
    ) -> Core {
        let (mut models, mut scheduler) = (TaskGroup::new("models"), TaskGroup::new("scheduler"));
        let mut backends = Vec::new();
        for server in &catalog.servers {
            let (backend, supervisor) = supervise(server, calls.cloned(), models.stop.clone());
            models.add(supervisor);
            backends.push(backend);
        }
        let policy =
            DispatchPolicy { caps: catalog.caps.clone(), redactor: catalog.redactor.clone() };
        let (dispatch, dispatcher) = dispatch::new(backends, device_pressure, store, policy);
        let stop = scheduler.stop.clone();
        scheduler.add(dispatcher.run(stop));
        Core { dispatch, models, scheduler }
    }

    /// Lets running jobs end, then stops the models.
    pub async fn stop(self) {
        self.scheduler.stop().await;
        self.models.stop().await;
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

/// The pressure of a device whose sensors are not read: none.
pub fn calm() -> watch::Receiver<DevicePressure> {
    watch::channel(DevicePressure::default()).1
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// If a port is taken or a certificate is not usable.
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    log_in(&mut config)?;
    let mut broker = TaskGroup::new("broker");
    start_broker(&config, &mut broker).await?;
    let listener = match &config.http {
        Some(Http { listen, .. }) => Some(ingress::http::listen(*listen).await?),
        None => None,
    };
    let catalog = Arc::new(config.catalog.clone());
    let metrics = Metrics::default();
    let (pressures, device_pressure) = watch::channel(DevicePressure::default());
    let (readings, reading) = watch::channel(SensorReading::default());
    let mut interfaces = TaskGroup::new("interfaces");
    let mut connections = TaskGroup::new("connections");
    let broker_connection =
        config.mqtt.as_ref().map(|mqtt| BrokerConnection::open(mqtt, &config, &mut connections));
    let broker_connection = broker_connection.transpose()?;
    let calls = broker_connection.as_ref().map(|connection| &connection.calls);
    let core = Core::start(&catalog, device_pressure, keep_of(&config), calls);
    let service = Arc::new(Service::new(core.dispatch.clone(), Arc::clone(&catalog)));
    let mut sensors = TaskGroup::new("sensors");
    let all = Sensors::new(&config.sensors, Path::new("."));
    let bounds = bounds_of(&catalog.device_limits);
    let rate = core.dispatch.rate();
    sensors.add(device::watch(all, bounds, rate, (readings, pressures), sensors.stop.clone()));
    let broker_bus = broker_connection.as_ref().map(|connection| connection.bus.clone());
    if let Some(BrokerConnection { bus, requests, topics, calls: _ }) = broker_connection {
        serve_calls(&config, Arc::clone(&service), &mut interfaces, &mut connections)?;
        let (dispatch, catalog, metrics) =
            (core.dispatch.clone(), Arc::clone(&catalog), metrics.clone());
        let health = ingress::mqtt::health::publish(
            bus.clone(),
            topics.health(),
            dispatch.clone(),
            reading.clone(),
            interfaces.stop.clone(),
        );
        interfaces.add(health);
        let state = state_folder(&config).map(Path::to_owned);
        let interface =
            ingress::mqtt::MqttInterface { bus, dispatch, catalog, topics, metrics, state };
        interfaces.add(interface.run(requests, interfaces.stop.clone()));
    }
    if let (Some(listener), Some(Http { guard, .. })) = (listener, config.http.clone()) {
        let addr = listener.local_addr()?;
        let dispatch = core.dispatch.clone();
        let (mcp, broker) = (service, broker_bus);
        let interface =
            ingress::http::HttpInterface { dispatch, mcp, catalog, metrics, broker, reading };
        let routes = ingress::http::routes(interface, guard, interfaces.stop.clone());
        interfaces.add(ingress::http::serve(listener, routes, interfaces.stop.clone()));
        tracing::info!(%addr, "the HTTP interface listens");
    }
    signals.wait().await;
    tracing::info!("stopping");
    tokio::select! {
        () = async {
            interfaces.stop().await;
            core.stop().await;
            sensors.stop().await;
            connections.stop().await;
            broker.stop().await;
        } => tracing::info!("stopped"),
        () = signals.wait() => tracing::warn!("second signal: stopped without draining"),
    }
    Ok(())
}

/// The bounds of the sensors: those of the configuration, else the board's defaults.
fn bounds_of(limits: &DeviceLimits) -> Bounds {
    let board = device::bounds();
    Bounds {
        heat_c: limits.heat_c.or(board.heat_c),
        zones: limits.zones.clone(),
        memory_reserve: limits.memory_reserve_mb.map_or(board.memory_reserve, |mb| mb << 20),
        disk_reserve: limits.disk_reserve_mb.map_or(board.disk_reserve, |mb| mb << 20),
        ..board
    }
}

/// Gives the service its login at the embedded broker: with the configured password, else with that of
/// the file in the state folder, which is generated at the first start.
///
/// # Errors
/// If the file can't be read or written.
fn log_in(config: &mut Config) -> anyhow::Result<()> {
    let Some(EmbeddedBroker { login: BrokerLogin::Required, .. }) = config.broker else {
        return Ok(());
    };
    if config.mqtt.as_ref().is_none_or(|mqtt| mqtt.credentials.is_some()) {
        return Ok(());
    }
    let password = match state_folder(config) {
        Some(folder) => broker_password::read_or_generate(folder).with_context(|| {
            let file = broker_password::path(folder);
            format!("the password of the embedded broker is not usable: {}", file.display())
        })?,
        None => {
            tracing::warn!(
                "no state folder for the embedded broker's password: only this service can use the \
                 broker; set PILOTLIGHT_STATE or PILOTLIGHT_MQTT_PASSWORD"
            );
            broker_password::generate()?
        }
    };
    if let Some(mqtt) = &mut config.mqtt {
        mqtt.credentials = Some((broker_password::USER.to_owned(), password));
    }
    Ok(())
}

#[cfg(feature = "embedded-broker")]
async fn start_broker(config: &Config, group: &mut TaskGroup) -> anyhow::Result<()> {
    let Some(EmbeddedBroker { listen, login }) = config.broker else {
        return Ok(());
    };
    let credentials = config.mqtt.as_ref().and_then(|mqtt| mqtt.credentials.clone());
    let access = match (login, credentials) {
        (BrokerLogin::Required, Some((user, password))) => BrokerAccess::Login(user, password),
        (BrokerLogin::Required, None) => anyhow::bail!("the embedded broker needs a password"),
        (BrokerLogin::Anonymous, _) => BrokerAccess::Anonymous,
    };
    let (addr, serve) = crate::mqtt::broker::open(listen, access, group.stop.clone()).await?;
    group.add(serve);
    match (login, config.state.as_deref()) {
        (BrokerLogin::Anonymous, _) => tracing::warn!(
            %addr,
            "the embedded broker asks for no password: every program of this machine can read all \
             prompts and answers"
        ),
        (BrokerLogin::Required, Some(folder)) if broker_password::path(folder).exists() => {
            let password_file = broker_password::path(folder);
            let password_file = password_file.display();
            tracing::info!(%addr, %password_file, "the embedded broker listens");
        }
        (BrokerLogin::Required, _) => tracing::info!(%addr, "the embedded broker listens"),
    }
    Ok(())
}

#[cfg(not(feature = "embedded-broker"))]
#[expect(clippy::unused_async, reason = "the variant with the feature awaits")]
async fn start_broker(_config: &Config, _group: &mut TaskGroup) -> anyhow::Result<()> {
    Ok(())
}

/// The service's connection to the broker, with its subscriptions.
struct BrokerConnection {
    bus: Bus,
    /// Requests to the MQTT interface.
    requests: Subscription,
    topics: DeviceTopics,
    /// Calls to services over MQTT.
    calls: CallRouter,
}

impl BrokerConnection {
    fn open(
        mqtt: &Mqtt,
        config: &Config,
        connections: &mut TaskGroup,
    ) -> anyhow::Result<BrokerConnection> {
        let (device, catalog) = (&config.device, &config.catalog);
        let topics = DeviceTopics::new(&mqtt.prefix, device, mqtt.response_prefixes.clone())
            .in_group(&mqtt.prefix, catalog.device.group.as_deref());
        let mut router = Router::default();
        let requests = router.subscribe(topics.filters(), MQTT_INBOX_MAX);
        let bases = catalog.services().map(|(base, _)| base);
        let answers = CallRouter::subscribe(&mut router, device, bases);
        let pair = call_keys::caller(config).context("the key of this caller is not usable")?;
        let options = service_options(mqtt, config, &topics)?;
        let (bus, driver) = mqtt::open(options, router, connections.stop.clone());
        connections.add(driver);
        let calls = CallRouter::new(bus.clone(), (device, pair), catalog.services());
        connections.add(calls.clone().run(answers));
        Ok(BrokerConnection { bus, requests, topics, calls })
    }
}

/// Makes this process a worker of the service that the configuration names, if any. It has a
/// connection of its own: a connection has one last will, and so one presence.
fn serve_calls(
    config: &Config,
    host: Arc<Service>,
    interfaces: &mut TaskGroup,
    connections: &mut TaskGroup,
) -> anyhow::Result<()> {
    let (Some(mqtt), Some(base)) = (&config.mqtt, &config.catalog.mqtt.serve) else {
        return Ok(());
    };
    let topics = over_mqtt::ServiceTopics::new(base);
    let name = config.device.clone();
    let identity =
        call_keys::worker(config, &topics).context("the key of the service is not usable")?;
    let identity = identity.map(Arc::new);
    let options = mqtt::ConnectionOptions {
        presence: Some(worker::presence(&topics, &name, identity.clone())),
        // a colon is in no device's name: no device has this identifier
        ..connection_options(mqtt, format!("pilotlight-{name}:worker"))?
    };
    let mut router = Router::default();
    let calls =
        router.subscribe(worker::filters(&topics, &name, identity.is_some()), MQTT_INBOX_MAX);
    let (bus, driver) = mqtt::open(options, router, connections.stop.clone());
    connections.add(driver);
    let worker = worker::Worker { bus, host, topics, name, identity };
    interfaces.add(worker.run(calls, interfaces.stop.clone()));
    tracing::info!(topic = base, "serves calls over MQTT");
    Ok(())
}

/// The options of the service's own connection: with presence and a kept session.
fn service_options(
    mqtt: &Mqtt,
    config: &Config,
    topics: &DeviceTopics,
) -> anyhow::Result<mqtt::ConnectionOptions> {
    let device = &config.device;
    let epoch = clock::since_epoch().as_secs();
    // two boards that start together have one epoch
    let instance = format!("{:08x}", fastrand::u32(..));
    let presence = |state: &str| {
        let message = json!({
            "state": state,
            "device": device,
            "epoch": epoch,
            "instance": instance,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Bytes::from(message.to_string())
    };
    let base = connection_options(mqtt, format!("pilotlight-{device}"))?;
    Ok(mqtt::ConnectionOptions {
        presence: Some(mqtt::Presence {
            topic: topics.status(),
            messages: Arc::new(mqtt::FixedPresence {
                online: presence("online"),
                offline: presence("offline"),
            }),
            is_asserted: false,
        }),
        session: mqtt::Session::Kept,
        spool: state_folder(config).map(|folder| folder.join("spool")),
        ..base
    })
}

/// The options of a connection to the configured broker, without presence and with a clean session.
///
/// # Errors
/// If a certificate is not usable.
pub fn connection_options(
    mqtt: &Mqtt,
    client_id: String,
) -> anyhow::Result<mqtt::ConnectionOptions> {
    let tls = mqtt.tls.as_ref().map(tls::client).transpose();
    Ok(mqtt::ConnectionOptions {
        host: mqtt.host.clone(),
        port: mqtt.port,
        tls: tls.context("the connection to the broker can't be encrypted")?,
        client_id,
        credentials: mqtt.credentials.clone().map(|(user, password)| (user, password.0)),
        presence: None,
        session: mqtt::Session::Clean,
        spool: None,
    })
}

/// SIGTERM and SIGINT. They are handled before the service is reachable, so that none is missed.
struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let (term, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Signals { term: signal(term)?, interrupt: signal(interrupt)? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
