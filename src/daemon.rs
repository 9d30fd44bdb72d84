//! Builds the rooms of the service, joins them, waits for the word to stop, and stops in order.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::backends::supervisor::supervise;
use crate::catalog::catalog::{Catalog, DeviceLimits};
use crate::clock;
use crate::config::{Config, Http, Mqtt};
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
use crate::mqtt::Bus;
use crate::net::tls;
use crate::pressure::Bounds;
use crate::pressure::level::DevicePressure;

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
                tracing::error!(%error, floor = self.name, "a task failed");
            }
        }
        tracing::debug!(floor = self.name, "stopped");
    }
}

/// The models and the dispatcher over them: all that is needed to answer a prompt.
pub struct Core {
    /// The way in.
    pub dispatch: Dispatch,
    models: TaskGroup,
    judge: TaskGroup,
}

impl Core {
    /// Starts every model of the catalog; those on MQTT need the switch.
    pub fn start(
        catalog: &Catalog,
        device_pressure: watch::Receiver<DevicePressure>,
        keep: LearnedStore,
        switch: Option<&CallRouter>,
    ) -> Core {
        let (mut models, mut judge) = (TaskGroup::new("models"), TaskGroup::new("dispatcher"));
        let mut backends = Vec::new();
        for server in &catalog.servers {
            let (backend, keeper) = supervise(server, switch.cloned(), models.stop.clone());
            models.add(keeper);
            backends.push(backend);
        }
        let policy =
            DispatchPolicy { caps: catalog.caps.clone(), redactor: catalog.redactor.clone() };
        let (dispatch, dispatcher) = dispatch::new(backends, device_pressure, keep, policy);
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
        tracing::warn!(%folder, %error, "the state folder cannot be created; nothing is kept over \
                                         a restart");
        return None;
    }
    Some(folder)
}

/// What is kept over a restart, and where.
pub fn keep_of(config: &Config) -> LearnedStore {
    LearnedStore::new(keeps(config), device::governor(&config.sensors))
}

/// The strain of a device that is not watched: none.
pub fn calm() -> watch::Receiver<DevicePressure> {
    watch::channel(DevicePressure::default()).1
}

/// Runs the service until SIGTERM or SIGINT.
///
/// # Errors
/// If a port is taken or a certificate can't be used.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut words = Signals::listen()?;
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
    let (mut doors, mut lines) = (TaskGroup::new("doors"), TaskGroup::new("lines"));
    let on_mqtt = config.mqtt.as_ref().map(|mqtt| OnMqtt::open(mqtt, &config, &mut lines));
    let on_mqtt = on_mqtt.transpose()?;
    let switch = on_mqtt.as_ref().map(|on| &on.switch);
    let keep = keep_of(&config);
    let core = Core::start(&catalog, device_pressure, keep, switch);
    let mut sensors = TaskGroup::new("sensors");
    let all = Sensors::new(&config.sensors, Path::new("."));
    let bounds = bounds_of(&catalog.device_limits);
    let rate = core.dispatch.rate();
    sensors.add(device::watch(all, bounds, rate, (readings, pressures), sensors.stop.clone()));
    let line = on_mqtt.as_ref().map(|on| on.bus.line());
    if let Some(OnMqtt { bus, inbox, topics, switch: _ }) = on_mqtt {
        serve_calls(&config, &core.dispatch, &mut doors, &mut lines)?;
        let (dispatch, catalog, metrics) =
            (core.dispatch.clone(), Arc::clone(&catalog), metrics.clone());
        let health = ingress::mqtt::health::tell(
            bus.clone(),
            topics.health(),
            dispatch.clone(),
            reading.clone(),
            doors.stop.clone(),
        );
        doors.add(health);
        let door = ingress::mqtt::MqttInterface { bus, dispatch, catalog, topics, metrics };
        doors.add(door.run(inbox, doors.stop.clone()));
    }
    if let (Some(listener), Some(Http { guard, .. })) = (listener, config.http.clone()) {
        let addr = listener.local_addr()?;
        let dispatch = core.dispatch.clone();
        let mcp = Arc::new(Service::new(dispatch.clone(), Arc::clone(&catalog)));
        let door = ingress::http::HttpInterface { dispatch, mcp, catalog, metrics, line, reading };
        let routes = ingress::http::routes(door, guard, doors.stop.clone());
        doors.add(ingress::http::serve(listener, routes, doors.stop.clone()));
        tracing::info!(%addr, "HTTP interface listening");
    }
    words.wait().await;
    tracing::info!("stopping");
    tokio::select! {
        () = async {
            doors.stop().await;
            core.stop().await;
            sensors.stop().await;
            lines.stop().await;
            broker.stop().await;
        } => tracing::info!("stopped"),
        () = words.wait() => tracing::warn!("second signal: stopped without draining"),
    }
    Ok(())
}

/// The board's own bounds, and what the configuration says instead.
fn bounds_of(limits: &DeviceLimits) -> Bounds {
    let own = device::bounds();
    Bounds {
        heat_c: limits.heat_c.or(own.heat_c),
        memory_reserve: limits.memory_reserve_mb.map_or(own.memory_reserve, |mb| mb << 20),
        disk_reserve: limits.disk_reserve_mb.map_or(own.disk_reserve, |mb| mb << 20),
        ..own
    }
}

#[cfg(feature = "embedded-broker")]
async fn start_broker(config: &Config, floor: &mut TaskGroup) -> anyhow::Result<()> {
    let Some(listen) = config.broker else {
        return Ok(());
    };
    let (addr, serve) = crate::mqtt::broker::open(listen, floor.stop.clone()).await?;
    floor.add(serve);
    tracing::info!(%addr, "embedded broker listening");
    Ok(())
}

#[cfg(not(feature = "embedded-broker"))]
#[expect(clippy::unused_async, reason = "its twin waits for a port")]
async fn start_broker(_config: &Config, _floor: &mut TaskGroup) -> anyhow::Result<()> {
    Ok(())
}

/// The one line to the broker, and who hears what comes on it.
struct OnMqtt {
    bus: Bus,
    /// What comes for the door.
    inbox: mpsc::Receiver<mqtt::Incoming>,
    topics: DeviceTopics,
    switch: CallRouter,
}

impl OnMqtt {
    fn open(mqtt: &Mqtt, config: &Config, lines: &mut TaskGroup) -> anyhow::Result<OnMqtt> {
        let topics =
            DeviceTopics::new(&mqtt.prefix, &config.device, mqtt.response_prefixes.clone())
                .in_group(&mqtt.prefix, config.catalog.device.group.as_deref());
        let mut options = bus_options(mqtt, &config.device, &topics)?;
        options.filters.extend(CallRouter::filters(&config.device, config.catalog.services()));
        let (bus, mut all, driver) = mqtt::open(options, lines.stop.clone());
        lines.add(driver);
        let switch = CallRouter::new(bus.clone(), &config.device, config.catalog.services());
        let (to, inbox) = mpsc::channel(MQTT_INBOX_MAX);
        let sorting = switch.clone();
        lines.add(async move {
            // ends with the line
            while let Some(message) = all.recv().await {
                let Some(message) = sorting.take(message) else { continue };
                if let Err(mpsc::error::SendError(message)) = to.send(message).await {
                    // the door is closed: a request waits at the broker for the next start
                    message.ack.leave();
                }
            }
        });
        Ok(OnMqtt { bus, inbox, topics, switch })
    }
}

/// Makes this service a worker of the service that the configuration names, if it names one. It has
/// a line of its own: a broker says of each line when it is gone.
fn serve_calls(
    config: &Config,
    dispatch: &Dispatch,
    doors: &mut TaskGroup,
    lines: &mut TaskGroup,
) -> anyhow::Result<()> {
    let (Some(mqtt), Some(base)) = (&config.mqtt, &config.catalog.mqtt.serve) else {
        return Ok(());
    };
    let topics = over_mqtt::ServiceTopics::new(base);
    let name = config.device.clone();
    let options = mqtt::ConnectionOptions {
        filters: worker::filters(&topics),
        presence: Some(worker::presence(&topics, &name)),
        ..line_options(mqtt, format!("pilotlight-{name}-worker"))?
    };
    let (bus, inbox, driver) = mqtt::open(options, lines.stop.clone());
    lines.add(driver);
    let host = Arc::new(Service::new(dispatch.clone(), Arc::new(config.catalog.clone())));
    let worker = worker::Worker { bus, host, topics, name };
    doors.add(worker.run(inbox, doors.stop.clone()));
    tracing::info!(topic = base, "serving MCP over MQTT");
    Ok(())
}

/// The line of the service itself.
fn bus_options(
    mqtt: &Mqtt,
    device: &str,
    topics: &DeviceTopics,
) -> anyhow::Result<mqtt::ConnectionOptions> {
    let epoch = clock::since_epoch().as_secs();
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
    Ok(mqtt::ConnectionOptions {
        filters: topics.filters(),
        presence: Some(mqtt::Presence {
            topic: topics.status(),
            online: presence("online"),
            offline: presence("offline"),
        }),
        session: mqtt::Session::Kept,
        ..base
    })
}

/// A line to the configured broker that listens to nothing yet.
///
/// # Errors
/// If a certificate can't be used.
pub fn line_options(mqtt: &Mqtt, client_id: String) -> anyhow::Result<mqtt::ConnectionOptions> {
    let tls = mqtt.tls.as_ref().map(tls::client).transpose();
    Ok(mqtt::ConnectionOptions {
        host: mqtt.host.clone(),
        port: mqtt.port,
        tls: tls.context("TLS of the broker connection cannot be configured")?,
        client_id,
        credentials: mqtt.credentials.clone().map(|(user, password)| (user, password.0)),
        filters: Vec::new(),
        presence: None,
        session: mqtt::Session::Clean,
    })
}

/// The words to stop. They are listened for before anybody can know that the service is there.
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
