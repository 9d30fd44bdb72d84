//! The connections to the broker: their login, options, presence and subscriptions; the embedded broker.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use tokio::sync::watch;

use super::core::TaskGroup;
use super::{call_keys, state_folder};
use crate::clock;
use crate::config::{BrokerLogin, Config, EmbeddedBroker, Mqtt};
use crate::device::SensorReading;
use crate::dispatch::Dispatch;
use crate::ingress;
use crate::ingress::mcp::Service;
use crate::ingress::mqtt::topics::DeviceTopics;
use crate::ingress::reloads::Reloads;
use crate::limits::MQTT_INBOX_MAX;
use crate::limits::fleet::UPDATES_WAITING_MAX;
use crate::mcp::over_mqtt;
use crate::mcp::over_mqtt::caller::CallRouter;
use crate::mcp::over_mqtt::worker;
use crate::metrics::Metrics;
use crate::mqtt;
#[cfg(feature = "embedded-broker")]
use crate::mqtt::broker::BrokerAccess;
use crate::mqtt::{Bus, Login, Router, Subscription};
use crate::net::tls;
use crate::store::broker_password;

/// Gives the service its login at the embedded broker: with the configured password, else with that of
/// the file in the state folder, which is generated at the first start.
///
/// # Errors
/// If the file can't be read or written.
pub(super) fn log_in(config: &mut Config) -> anyhow::Result<()> {
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
pub(super) async fn start_broker(config: &Config, group: &mut TaskGroup) -> anyhow::Result<()> {
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
pub(super) async fn start_broker(_config: &Config, _group: &mut TaskGroup) -> anyhow::Result<()> {
    Ok(())
}

/// The topics of signed updates: of the device, of its group, and of the fleet if it has one.
pub(super) struct UpdateTopics {
    pub(super) fleet: Option<String>,
}

/// The service's connection to the broker, with its subscriptions.
pub(super) struct BrokerConnection {
    pub(super) bus: Bus,
    /// Requests to the MQTT interface.
    pub(super) requests: Subscription,
    pub(super) topics: DeviceTopics,
    /// Calls to services over MQTT.
    pub(super) calls: CallRouter,
    /// Signed updates.
    pub(super) desired: Subscription,
}

impl BrokerConnection {
    /// Opens it; `updates` is there if signed updates are taken.
    pub(super) fn open(
        mqtt: &Mqtt,
        config: &Config,
        updates: Option<&UpdateTopics>,
        connections: &mut TaskGroup,
    ) -> anyhow::Result<BrokerConnection> {
        let (device, catalog) = (&config.device, &config.catalog);
        let topics = DeviceTopics::new(&mqtt.prefix, device)
            .in_group(&mqtt.prefix, catalog.device.group.as_deref());
        let mut router = Router::default();
        let requests = router.subscribe(topics.filters(), MQTT_INBOX_MAX);
        let answers = CallRouter::subscribe(&mut router);
        let desired =
            updates.map(|updates| topics.config_desired(&mqtt.prefix, updates.fleet.as_deref()));
        let desired = router.subscribe(desired.unwrap_or_default(), UPDATES_WAITING_MAX);
        let pair = call_keys::caller(config).context("the key of this caller is not usable")?;
        let options = service_options(mqtt, config, &topics)?;
        let (bus, driver) = mqtt::open(options, router, connections.stop.clone());
        connections.add(driver);
        let calls = CallRouter::new((bus.clone(), answers.filters()), (device, pair));
        connections.add(calls.clone().run(answers));
        Ok(BrokerConnection { bus, requests, topics, calls, desired })
    }
}

/// What the interfaces share.
pub(super) struct SharedParts {
    pub(super) dispatch: Dispatch,
    pub(super) metrics: Metrics,
    pub(super) reading: watch::Receiver<SensorReading>,
    pub(super) reloads: Reloads,
}

impl BrokerConnection {
    /// Starts the MQTT interface and the publishers of health and configuration; returns the subscription
    /// to signed updates.
    pub(super) fn serve(
        self,
        config: &Config,
        shared: &SharedParts,
        interfaces: &mut TaskGroup,
    ) -> Subscription {
        let BrokerConnection { bus, requests, topics, calls: _, desired } = self;
        let SharedParts { dispatch, metrics, reading, reloads } = shared;
        let stop = || interfaces.stop.clone();
        let health = ingress::mqtt::health::publish(
            bus.clone(),
            topics.health(),
            dispatch.clone(),
            (reading.clone(), reloads.clone()),
            stop(),
        );
        let reported = ingress::mqtt::reported::publish(
            bus.clone(),
            topics.config_reported(),
            reloads.changes(),
            stop(),
        );
        let interface = ingress::mqtt::MqttInterface {
            bus,
            dispatch: dispatch.clone(),
            topics,
            metrics: metrics.clone(),
            state: state_folder(config).map(Path::to_owned),
        };
        let serving = interface.run(requests, stop());
        interfaces.add(health);
        interfaces.add(reported);
        interfaces.add(serving);
        desired
    }
}

/// Makes this process a worker of the service that the configuration names, if any. It has a
/// connection of its own, which is returned: a connection has one last will, and so one presence.
pub(super) fn serve_calls(
    config: &Config,
    host: Arc<Service>,
    interfaces: &mut TaskGroup,
    connections: &mut TaskGroup,
) -> anyhow::Result<Option<Bus>> {
    let (Some(mqtt), Some(base)) = (&config.mqtt, &config.catalog.mqtt.serve) else {
        return Ok(None);
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
    let worker = worker::Worker { bus: bus.clone(), host, topics, name, identity };
    interfaces.add(worker.run(calls, interfaces.stop.clone()));
    tracing::info!(topic = base, "serves calls over MQTT");
    Ok(Some(bus))
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
    let Login { tls, credentials } = login_of(mqtt)?;
    Ok(mqtt::ConnectionOptions {
        host: mqtt.host.clone(),
        port: mqtt.port,
        tls,
        client_id,
        credentials,
        presence: None,
        session: mqtt::Session::Clean,
        spool: None,
    })
}

/// What this device proves itself by at the broker.
///
/// # Errors
/// If a certificate is not usable.
pub(super) fn login_of(mqtt: &Mqtt) -> anyhow::Result<Login> {
    let tls = mqtt.tls.as_ref().map(tls::client).transpose();
    Ok(Login {
        tls: tls.context("the connection to the broker can't be encrypted")?,
        credentials: mqtt.credentials.clone().map(|(user, password)| (user, password.0)),
    })
}
